"""``sa_compile.context_parallel``: a causal LM of transformers whose long prompts several ranks share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import DynamicCache, PreTrainedModel

from sa_compile import hf
from sa_compile.config import SampleAttentionConfig, without_compiler_options
from sa_compile.distributed import attention
from sa_compile.distributed.attention import Context
from sa_compile.distributed.checks import attention_modules, check_call, check_model, check_options
from sa_compile.distributed.implementation import CONTEXT, NAME
from sa_compile.distributed.layout import Layout, in_order, shard_mask
from sa_compile.distributed.ranks import Ranks
from sa_compile.model_call import CACHES, cache_argument


def context_parallel(
    model: PreTrainedModel,
    mesh: DeviceMesh | dist.ProcessGroup,
    options: Mapping[str, Any] | None = None,
    *,
    compile: bool = True,
) -> PreTrainedModel:
    """Let the ranks of ``mesh`` share each long prompt of ``model``, in place; returns the model.

    ``model``: a causal LM of transformers, the same on all ranks (under tensor parallel, its part); ``mesh``:
    of one dimension. ``options``: those of the backend, with which the model is compiled unless ``compile``
    is False. All ranks call the model, or its ``generate``, with the same inputs and get the same results:
    logits of the last position (``logits_to_keep=k``: of the last k, 0: of all) and a KV cache of all keys. A
    prompt of fewer rows than one run (``block_q``) a rank, a step of decoding, and a prompt behind what is in
    the cache are computed by every rank for itself.

    Raises ValueError for a model, a mesh or options that can not be, and at a call for inputs that ranks can
    not share. If a rank raises, the others raise a RuntimeError that says which and why.
    """
    config = SampleAttentionConfig.from_options(options)
    check_options(config)
    ranks = Ranks.of(mesh)
    modules = attention_modules(model)
    check_model(model, modules, CACHES)
    model.set_attn_implementation(NAME)
    hf.configure(model, without_compiler_options(options))
    context = Context(ranks, config, modules)
    name = attention.register(context)
    for module in modules.values():
        setattr(module, CONTEXT, name)
    run: Callable[..., Any] = model.forward
    if compile:
        run = torch.compile(run, backend="sampleattn", options=dict(options or {}))
    model.forward = _Sharing(model, run, context).as_forward()
    return model


class _Sharing:
    """A model's forward on several ranks; ``run`` is the forward of one."""

    def __init__(self, model: PreTrainedModel, run: Callable[..., Any], context: Context) -> None:
        self.config, self.forward, self.run, self.context = model.config, model.forward, run, context
        self.signature = inspect.signature(model.forward)
        self.cache_name = cache_argument(model)

    def as_forward(self) -> Callable[..., Any]:
        """What the model's ``forward`` becomes; its signature stays, which ``generate`` reads."""

        @torch.compiler.disable
        @functools.wraps(self.forward)
        def shared(*args: Any, **kwargs: Any) -> Any:
            given = self.signature.bind(*args, **kwargs).arguments
            given |= given.pop("kwargs", {})
            given = {name: value for name, value in given.items() if value is not None}
            for name in CACHES:
                if name in given:
                    given[self.cache_name] = given.pop(name)
            given.setdefault("logits_to_keep", 1)
            name = "inputs_embeds" if "inputs_embeds" in given else "input_ids"
            return self._guarded(given, name) if self._is_shared(given, name) else self.run(**given)

        return shared

    def _is_shared(self, given: Mapping[str, Any], name: str) -> bool:
        cache = given.get(self.cache_name)
        past = cache.get_seq_length() if cache is not None else 0
        least = self.context.ranks.size * self.context.config.block_q
        return name in given and past == 0 and given[name].shape[1] >= least

    def _guarded(self, given: Mapping[str, Any], name: str) -> Any:
        """The call, and that what one rank raises ends it on all."""
        ranks = self.context.ranks
        ranks.calls += 1
        try:
            found = self._call(given, name)
            ranks.synchronise(given[name].device)
            return found
        except BaseException as error:
            ranks.fail(error)
            raise

    def _call(self, given: Mapping[str, Any], name: str) -> Any:
        check_call(given, CACHES)
        context, ranks, rows = self.context, self.context.ranks, given[name]
        batch, length = rows.shape[:2]
        layout, keep = context.layout(length), given["logits_to_keep"]
        mask = shard_mask(given.get("attention_mask"), length, rows.device)
        ranks.agree([batch, length, keep, mask.shape[0]], "batch, length and logits_to_keep", rows.device)
        wants_cache = given.get("use_cache", getattr(self.config, "use_cache", True))
        positions = given.get("position_ids")
        if positions is None:
            positions = torch.arange(length, device=rows.device)[None]
        slots, places = _slots(layout, range(length)[-keep:], ranks.rank)
        own_cache = DynamicCache() if wants_cache else None
        context.seen.clear()
        output = self.run(
            **{name: layout.of_rank(rows, 1, ranks.rank)},
            position_ids=layout.of_rank(positions, positions.dim() - 1, ranks.rank),
            attention_mask=mask,
            logits_to_keep=slots.to(rows.device),
            use_cache=wants_cache,
            return_dict=True,
            **{self.cache_name: own_cache},
        )
        context.check_that_all_ran()
        parts = ranks.gather(output.logits)()
        output.logits = torch.stack([parts[rank, :, slot] for rank, slot in places], 1)
        if wants_cache:
            cache = given.get(self.cache_name)
            output[self.cache_name] = DynamicCache(config=self.config) if cache is None else cache
            self._fill(output[self.cache_name], own_cache, layout)
        return output

    def _fill(self, cache: Any, own: Any, layout: Layout) -> None:
        """Put all ranks' keys and values, in order, into the caller's cache, a layer at a time."""
        for number, layer in enumerate(own.layers):
            parts = [self.context.ranks.gather(x) for x in (layer.keys, layer.values)]
            layer.keys = layer.values = None
            keys, values = (in_order(wait(), 2, layout.run)[:, :, : layout.length] for wait in parts)
            cache.update(keys, values, number)


def _slots(layout: Layout, wanted: range, rank: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """Rows whose logits a rank computes, as many as every other, and of each wanted position (rank, slot)."""
    rows: list[list[int]] = [[] for _ in range(layout.ranks)]
    places = []
    for position in wanted:
        owner, row = layout.place(position)
        places.append((owner, len(rows[owner])))
        rows[owner].append(row)
    most = max(map(len, rows))
    return torch.tensor(rows[rank] + [0] * (most - len(rows[rank]))), places
