"""What a decision reads of the frame that Dynamo captured, beyond its graph; guards hold the answers.

A guard makes Dynamo capture the frame again when an answer changes. Without Dynamo (a graph handed to the
backend by hand) the answers are those of this moment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._dynamo.guards import GuardBuilder, install_guard
from torch._dynamo.output_graph import OutputGraph
from torch._dynamo.source import (
    AttrSource,
    CallFunctionNoArgsSource,
    GlobalSource,
    LocalSource,
    NNModuleSource,
    UnspecializedNNModuleSource,
)
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch._guards import Source, TracingContext

Modules = dict[str, tuple[torch.nn.Module, Source]]


class Frame:
    """The frame whose graph is being compiled."""

    def __init__(self) -> None:
        self._output = _output_graph()
        self._modules: Modules | None = None
        self._answers: dict[Callable[[], str], str] = {}

    def answer(self, ask: Callable[[], str]) -> str:
        """``ask()``, a module-level function of the process's state, guarded."""
        if ask not in self._answers:
            self._answers[ask] = ask()
            if self._output is not None:
                name = self._output.install_global_by_id(f"sampleattn_{ask.__name__}", ask)
                _hold(CallFunctionNoArgsSource(GlobalSource(name)))
        return self._answers[ask]

    def module_trains(self, node: fx.Node) -> bool:
        """Whether the innermost module that a node was traced in is in training mode, guarded.

        False if the node was traced in no module that Dynamo knows.
        """
        if self._output is None:
            return False
        stack = node.meta.get("nn_module_stack")
        if stack:  # keys are ids, with "@n" behind them from a module's second call on
            self._modules = self._modules or _entered_modules(self._output)
            owner = self._modules.get(list(stack)[-1].split("@")[0])
        else:
            owner = _own_module(self._output)
        if owner is None:
            return False
        module, source = owner
        _hold(AttrSource(source, "training"))
        return module.training


def _output_graph() -> OutputGraph | None:
    try:
        output: OutputGraph = InstructionTranslator.current_tx().output
    except AttributeError:
        return None
    return output if TracingContext.try_get() is not None else None


def _entered_modules(output: OutputGraph) -> Modules:
    """Every module that Dynamo entered, by its id, with the source that guards can reach it from."""
    scope, cache = {"L": output.local_scope, "G": output.global_scope}, dict[Source, Any]()
    found: Modules = {}
    for guard in TracingContext.get().guards_context.dynamo_guards:
        source = guard.originating_source
        if isinstance(source, NNModuleSource) and source not in cache:
            module = source.get_value(scope, {}, cache)
            found.setdefault(str(id(module)), (module, source))
    return found


def _own_module(output: OutputGraph) -> tuple[torch.nn.Module, Source] | None:
    """The module whose forward the frame is: the first argument, which no module stack holds."""
    for name, held in output.local_scope.items():
        if isinstance(held, torch.nn.Module):
            return held, UnspecializedNNModuleSource(LocalSource(name, is_input=True))
    return None


def _hold(source: Source) -> None:
    install_guard(source.make_guard(GuardBuilder.CONSTANT_MATCH))
