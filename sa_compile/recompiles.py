"""Dynamo's limit on the graphs of one function: raised, and said when it is reached.

At its limit Dynamo runs every call that fits none of the function's graphs uncompiled, so nothing is sampled
there, and no backend is asked again. A model that serves chats needs more than torch's 8: first prompts and
follow-ups, one row and several, short and long, with padding and without, and the decode step. Models of
transformers share the code object of a decorator, and with it the limit.
"""

from __future__ import annotations

from types import CodeType
from typing import Any

from torch._dynamo import config, eval_frame
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch._guards import CompileContext

GRAPHS_OF_ONE_FUNCTION = 64
_ENTRY = config._config["recompile_limit"]  # type: ignore[attr-defined]
_TORCHS_DEFAULT = _ENTRY.default


def raise_limit() -> None:
    """Let Dynamo make up to ``GRAPHS_OF_ONE_FUNCTION`` graphs of a function, where torch's default holds.

    Another value (``torch._dynamo.config.recompile_limit``, ``torch.compile(recompile_limit=...)``) stays.
    """
    # A value that is set counts in the thread that set it alone, so the default itself is raised.
    _ENTRY.default = max(_TORCHS_DEFAULT, GRAPHS_OF_ONE_FUNCTION)
    # ``config.patch`` leaves the default behind as a value that was set.
    if config.recompile_limit == _TORCHS_DEFAULT:
        config.recompile_limit = _ENTRY.default


def last_graph() -> str:
    """What the report says if Dynamo will make no further graph of the function at hand; else "".

    To be called while a backend runs.
    """
    compile_id = CompileContext.current_compile_id()
    if compile_id is None or compile_id.frame_compile_id is None:
        return ""
    code = InstructionTranslator.current_tx().output.root_tx.f_code
    graphs = len(_graphs_of(code)) + 1
    compiled = compile_id.frame_compile_id + 1  # those whose model is gone included
    if graphs < config.recompile_limit and compiled < config.accumulated_recompile_limit:
        return ""
    return (
        f"the last of {graphs} graphs that Dynamo makes of {code.co_name} ({code.co_filename}:"
        f"{code.co_firstlineno}): calls that fit none of them will run uncompiled, and nothing is "
        "sampled there. Allow more with torch.compile(recompile_limit=...) or "
        f"torch._dynamo.config.recompile_limit (now {config.recompile_limit})"
    )


def _graphs_of(code: CodeType) -> list[Any]:
    """The graphs that count against the limit: those of the compiled function's region, if it has one."""
    of_region = getattr(eval_frame, "_get_cache_entries_for_region", None)
    if of_region is None:  # before torch 2.13
        return eval_frame._debug_get_cache_entry_list(code)
    entries: list[Any] = of_region(code, eval_frame.get_eval_frame_isolate_recompiles_id())
    return entries
