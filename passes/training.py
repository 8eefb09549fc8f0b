"""Whether an attention belongs to a training step, where it must be exact.

A step that trains computes some attentions without a gradient of their own: in frozen layers, and in the
first forward of reentrant checkpointing, which the backward pass repeats with gradients. Sampled, they would
give the loss of one model and the gradient of another. The signs, in the order in which they are asked:

======================================================================  =====================================
sign                                                                    what it tells
======================================================================  =====================================
a gradient flows through the attention                                  it trains; only ops with a gradient do
gradients are recorded where it stands                                  later layers may train (frozen layers,
                                                                        LoRA behind the attention)
it runs inside the forward of a ``torch.autograd.Function``             reentrant checkpointing
its module is in training mode                                          a no-grad pass of a training step, or
                                                                        ``model.eval()`` was forgotten
======================================================================  =====================================

What shows none of them is inference: ``model.eval()`` under ``torch.no_grad()`` or
``torch.inference_mode()``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from .fx_utils import calls

MODULE_TRAINS = "training: the module is in training mode; call model.eval() for inference"


@dataclass(frozen=True)
class Training:
    """The sign that was found: ``reason`` in words, ``gradient``: one flows through the attention itself."""

    reason: str
    gradient: bool = False


def training_step(
    gradient: bool,
    recording: bool,
    in_autograd_function: Callable[[], bool],
    module_trains: Callable[[], bool],
) -> Training | None:
    """The first sign of the table in this module's docstring that holds; None: inference.

    The last two are asked only if those before them do not hold, since an answer may cost a guard.
    """
    if gradient:
        return Training("training: the block-sparse op has no gradient", gradient=True)
    if recording:
        return Training("training: gradients are recorded, if not here; use torch.no_grad() for inference")
    if in_autograd_function():
        return Training("training: inside an autograd.Function, as reentrant checkpointing runs its forward")
    if module_trains():
        return Training(MODULE_TRAINS)
    return None


def in_autograd_function() -> bool:
    """Whether this runs in the forward of a ``torch.autograd.Function``.

    That turns off forward-mode gradients too, as nothing else does but inference mode.
    """
    return not (
        torch.is_grad_enabled() or torch._C._is_fwd_grad_enabled() or torch.is_inference_mode_enabled()
    )


def recording_nodes(graph: fx.Graph, recording: bool) -> set[fx.Node]:
    """The nodes at which gradients are recorded; ``recording``: they are where the graph begins."""
    nodes, inference = set(), 0
    for node in graph.nodes:
        if calls(node, "_set_grad_enabled"):
            recording = bool(node.args[0])
        elif calls(node, "_enter_inference_mode"):
            inference += 1
        elif calls(node, "_exit_inference_mode"):
            inference -= 1
        if recording and not inference:
            nodes.add(node)
    return nodes
