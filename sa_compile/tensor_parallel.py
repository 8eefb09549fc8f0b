"""What a report says of a model that transformers split over ranks (``tp_plan``)."""

from __future__ import annotations

from typing import Any


def notes_on(model: Any) -> tuple[str, ...]:
    """That every rank computes all of the attention, if a model's ranks share it but its plan splits none."""
    ranks, plan = getattr(model, "_tp_size", None) or 1, getattr(model, "tp_plan", None) or {}
    if ranks == 1 or any("attn" in name or "attention" in name for name in plan):
        return ()
    return (
        f"tensor parallel over {ranks} ranks: the plan of {type(model).__name__} splits no attention, so "
        "each rank computes all of it",
    )
