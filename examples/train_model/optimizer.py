"""Muon for the matrices inside the layers, AdamW for the embedding and the norms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def orthogonalize(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices [n, rows, columns], by five Newton-Schulz steps in bfloat16.

    The quintic's coefficients are Jordan's: they bring all singular values near 1 fast, not exactly to 1.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon:
    """Momentum, orthogonalized, with decoupled weight decay; updates have the size of AdamW's (0.2 RMS)."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, momentum: float = 0.95, weight_decay: float = 0.05
    ) -> None:
        self.momentum, self.weight_decay = momentum, weight_decay
        groups: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            groups[parameter.shape].append(parameter)
        # Equal shapes are orthogonalized together: a handful of batched products a step.
        self._groups = [(group, torch.zeros_like(torch.stack(group))) for group in groups.values()]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for group, velocity in self._groups:
            gradient = torch.stack([parameter.grad for parameter in group])
            velocity.lerp_(gradient, 1 - self.momentum)
            update = orthogonalize(gradient.lerp(velocity, self.momentum)).to(gradient.dtype)
            scale = 0.2 * max(gradient.shape[-2:]) ** 0.5
            torch._foreach_mul_(group, 1 - lr * self.weight_decay)
            torch._foreach_add_(group, list(update.unbind()), alpha=-lr * scale)


class Optimizer:
    """Both optimizers behind one learning rate."""

    def __init__(self, model: nn.Module) -> None:
        parameters = dict(model.named_parameters())
        matrices = [p for name, p in parameters.items() if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in parameters.items() if p.ndim != 2 or "embed" in name]
        self._muon = Muon(matrices)
        self._adamw = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0, foreach=True)
        self._parameters = matrices + others

    def step(self, lr: float) -> None:
        """One update at learning rate `lr`; gradients are cleared."""
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._muon.step(lr)
        self._adamw.step()
        for parameter in self._parameters:
            parameter.grad = None
