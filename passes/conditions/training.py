"""Whether an attention belongs to a training step, where it must be exact.

A step that trains computes some attentions without a gradient of their own: in frozen layers, and in the
first forward of reentrant checkpointing, which the backward pass repeats with gradients. Sampled, they would
give the loss of one model and the gradient of another. The signs, in the order in which they are asked:

======================================================================  =====================================
sign                                                                    what it tells
======================================================================  =====================================
a gradient flows through the attention                                  it trains; only ops with a gradient do
forward-mode AD is on                                                   the same, with tangents
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

_SET_GRAD = torch._C._set_grad_enabled
_ENTER, _EXIT = torch.autograd.grad_mode._enter_inference_mode, torch.autograd.grad_mode._exit_inference_mode

MODULE_TRAINS = "training: the module is in training mode; call model.eval() for inference"
_FORWARD_AD = "training: forward-mode AD, for which no fast attention has a formula"
_IN_FUNCTION = "training: inside an autograd.Function, as reentrant checkpointing runs its forward"


@dataclass(frozen=True)
class Training:
    """The sign that was found: ``reason`` in words, ``gradient``: one flows through the attention itself;
    ``tangent``: a tangent may, for which SDPA has no formula either.
    """

    reason: str
    gradient: bool = False
    tangent: bool = False


def training_step(
    gradient: bool, recording: bool, hidden: Callable[[], str], module_trains: Callable[[], bool]
) -> Training | None:
    """The first sign of the table in this module's docstring that holds; None: inference.

    ``hidden``: :func:`hidden_sign`. It and ``module_trains`` are asked only where they matter, since an
    answer may cost a guard.
    """
    if gradient:
        return Training("training: the block-sparse op has no gradient", gradient=True)
    if recording:
        return Training("training: gradients are recorded, if not here; use torch.no_grad() for inference")
    reason = hidden()
    if reason:
        tangent = reason == _FORWARD_AD
        return Training(reason, gradient=tangent, tangent=tangent)
    if module_trains():
        return Training(MODULE_TRAINS)
    return None


def hidden_sign() -> str:
    """What the process's state tells of a training step though no gradients are recorded, in words; "" if
    nothing.

    The forward of a ``torch.autograd.Function`` runs with forward-mode gradients turned off, as nothing else
    does but inference mode.
    """
    if torch.autograd.forward_ad._current_level >= 0:
        return _FORWARD_AD
    if torch.is_grad_enabled() or torch._C._is_fwd_grad_enabled() or torch.is_inference_mode_enabled():
        return ""
    return _IN_FUNCTION


def recording_nodes(graph: fx.Graph, recording: bool) -> set[fx.Node]:
    """The nodes at which gradients are recorded; ``recording``: they are where the graph begins."""
    nodes, inference = set(), 0
    for node in graph.nodes:
        if node.target is _SET_GRAD:
            recording = bool(node.args[0])
        elif node.target is _ENTER:
            inference += 1
        elif node.target is _EXIT:
            inference -= 1
        if recording and not inference:
            nodes.add(node)
    return nodes
