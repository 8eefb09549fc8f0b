"""A process a model: what hangs or dies takes nothing else with it."""

from __future__ import annotations

import multiprocessing
import resource
import warnings
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from sa_compile.lab.census import tiny
from sa_compile.lab.census.arguments import Variant

# Seconds without a result after which a process is ended, on a busy machine too; Inductor compiles C++.
LIMIT = 300.0
INDUCTOR_LIMIT = 600.0
# Bytes of memory that a process may ask for; what asks for more gets an error.
MEMORY = 8 << 30
PRELOAD = ["sa_compile.lab.census.warm"]


def context() -> Any:
    """Processes start from one that has imported torch and transformers and compiled something already."""
    start = multiprocessing.get_context("forkserver")
    start.set_forkserver_preload(PRELOAD)
    return start


def census_of(class_name: str, model_type: str, attn: str, variants: Sequence[Variant]) -> dict[str, Any]:
    """The record of one class and attention implementation, as plain data.

    "status" is "run", "not built" or "not offered" (no such implementation), the latter two with a "reason";
    "variants" holds what :func:`sa_compile.lab.census.variants.measure` returns for each, with "plain" (the
    same call under plain torch.compile) where it is not ok.
    """
    record: dict[str, Any] = {"model": class_name, "model_type": model_type, "attn": attn}
    if attn == "sdpa" and not tiny.offers_sdpa(class_name):
        return {**record, "status": "not offered", "reason": "the class does not support SDPA"}
    first, results = _collect(class_name, model_type, attn, variants, "sampleattn")
    record.update(first)
    if first["status"] != "run":
        return record
    for result, variant in zip(results, variants, strict=False):
        if result["status"] in ("timeout", "died"):
            result["plain"] = _plain(class_name, model_type, attn, variant)
    record["variants"] = results
    return record


def _plain(class_name: str, model_type: str, attn: str, variant: Variant) -> dict[str, Any]:
    _, results = _collect(class_name, model_type, attn, [variant], variant.inner)
    return results[0]


def _collect(
    class_name: str, model_type: str, attn: str, variants: Sequence[Variant], backend: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The worker's first message and its results; what hangs or dies leaves a result that says so."""
    start = context()
    receiver, sender = start.Pipe(duplex=False)
    process = start.Process(
        target=_work, args=(sender, class_name, model_type, attn, list(variants), backend), daemon=True
    )
    process.start()
    sender.close()
    first: dict[str, Any] = {}
    results: list[dict[str, Any]] = []
    try:
        for expected in [None, *variants]:
            limit = INDUCTOR_LIMIT if expected is not None and expected.inner == "inductor" else LIMIT
            message = _receive(receiver, limit, expected)
            if expected is None:
                first = message
                if message["status"] != "run":
                    break
            else:
                results.append(message)
                if message["status"] in ("timeout", "died"):
                    break
    finally:
        process.join(0 if _stuck(first, results) else 10)
        process.kill()
        process.join()
    if first["status"] in ("timeout", "died"):
        first = {"status": "not built", "reason": first["reason"]}
    return first, results


def _stuck(first: dict[str, Any], results: list[dict[str, Any]]) -> bool:
    return "timeout" in (first.get("status"), *(result["status"] for result in results))


def _receive(receiver: Connection, limit: float, expected: Variant | None) -> dict[str, Any]:
    name = {"variant": str(expected)} if expected is not None else {}
    if not receiver.poll(limit):
        return {**name, "status": "timeout", "reason": f"no result within {limit:.0f} s", "seconds": limit}
    try:
        return receiver.recv()
    except EOFError:
        return {**name, "status": "died", "reason": "the process ended without a result"}


def _work(
    sender: Connection, class_name: str, model_type: str, attn: str, variants: list[Variant], backend: str
) -> None:
    """Body of the process: build, then one message a variant."""
    import torch
    import transformers

    from sa_compile.lab.census.arguments import find_media, reach
    from sa_compile.lab.census.variants import first_line, measure

    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    shown = None
    try:
        model: Any = tiny.build(class_name, model_type, attn)
        shown = find_media(model)
        moved, causal = reach(model, shown)
        first = {
            "status": "run",
            "reach": moved,
            "causal": causal,
            "text_type": model.config.get_text_config(decoder=True).model_type,
            "media": shown and shown.what,
        }
    except NotImplementedError as error:
        first = {"status": "not offered", "reason": str(error)}
    except Exception as error:
        first = {"status": "not built", "reason": first_line(error)}
    sender.send(first)
    if first["status"] != "run":
        return
    for variant in variants:
        if variant.media and shown is None:
            variant = replace(variant, media=False)
        result = measure(model, variant, backend, shown)
        if backend == "sampleattn" and result["status"] in ("wrong", "crash"):
            result["plain"] = measure(model, variant, variant.inner, shown)
        sender.send(result)
