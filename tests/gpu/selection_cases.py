"""Inputs of the selections by landmarks that the GPU tests compare with the oracles."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    q_len: int = 640
    kv_len: int = 640
    q_offset: int = 0
    batch: int = 1
    heads: int = 4
    kv_heads: int = 2
    dim: int = 128
    dtype: torch.dtype = torch.bfloat16
    landmarks: int = 15
    padding: str = "none"  # or "left", "right"
    hidden: tuple[int, ...] = (200, 0, 130)  # keys that padding takes of each batch entry
    layout: str = "bhsd"  # or "bshd", transposed
    sharpness: float = 2.0
    keep_sink: bool = True
    window: int = 2
    last_rows: int = 0
    sinks: tuple[float, ...] | None = None  # of heads, or one for all


BASE = Case()
CASES = {
    "bf16": BASE,
    "fp16": replace(BASE, dtype=torch.float16),
    "head_dim_64": replace(BASE, dim=64, layout="bshd"),
    "seven_landmarks": replace(BASE, landmarks=7, dim=64),
    "seven_landmarks_128": replace(BASE, landmarks=7, q_len=1500, kv_len=1500),
    "ragged": replace(BASE, q_len=555, kv_len=555, layout="bshd"),
    "one_head_a_key_head": replace(BASE, heads=3, kv_heads=3, batch=2),
    "three_heads_a_key_head": replace(BASE, heads=3, kv_heads=1),
    "eight_heads_a_key_head": replace(BASE, heads=8, kv_heads=1, batch=2, dim=64),
    "left_padding": replace(BASE, batch=3, padding="left"),
    "right_padding": replace(BASE, batch=3, padding="right", landmarks=7),
    "last_rows_before_padding": replace(BASE, batch=3, padding="right", last_rows=130),
    "padding_of_every_row": replace(
        BASE,
        batch=3,
        padding="right",
        q_len=300,
        kv_len=900,
        q_offset=577,
        hidden=(500, 40, 900),
        last_rows=1,
    ),
    "rows_without_a_key_behind_padding": replace(
        BASE, batch=2, padding="right", q_len=900, kv_len=640, last_rows=40
    ),
    "second_chunk": replace(BASE, q_len=200, kv_len=840, q_offset=640),
    "offset_inside_a_block": replace(BASE, q_len=300, kv_len=900, q_offset=577, window=1),
    "rows_before_the_first_key": replace(BASE, q_len=640, kv_len=300, q_offset=-200),
    "positions_past_the_last_key": replace(BASE, q_len=900, kv_len=300),
    "positions_past_a_ragged_end": replace(BASE, q_len=300, kv_len=2000, q_offset=3000, landmarks=7),
    "one_row": replace(BASE, q_len=1, kv_len=700, q_offset=699),
    "wide_window": replace(BASE, window=4),
    "no_sink": replace(BASE, keep_sink=False, window=1),
    "no_sink_padded": replace(BASE, keep_sink=False, window=1, padding="left", batch=2),
    "last_rows": replace(BASE, last_rows=130),
    "all_rows_last": replace(BASE, last_rows=5000, padding="left"),
    "last_rows_of_a_second_chunk": replace(BASE, q_len=300, kv_len=900, q_offset=577, last_rows=1),
    "flat": replace(BASE, sharpness=0.1),
    # Scores of several hundred: a landmark's exceeds every forced key's by more than a float can hold.
    "steep": replace(BASE, sharpness=60.0),
    "steep_no_sink": replace(BASE, sharpness=60.0, keep_sink=False, window=1, landmarks=7),
    **{f"head_dim_{dim}": replace(BASE, dim=dim, batch=3, padding="left") for dim in (96, 192, 256)},
    **{f"seven_landmarks_{dim}": replace(BASE, dim=dim, landmarks=7) for dim in (96, 192, 256)},
    "head_dim_256_ragged": replace(BASE, dim=256, q_len=555, kv_len=555, layout="bshd", heads=8, kv_heads=1),
    "head_dim_192_fp16": replace(BASE, dim=192, dtype=torch.float16, q_len=1500, kv_len=1500),
    "sinks": replace(BASE, sinks=(-2.0, 0.0, 3.0, 6.0)),
    "one_sink_padded": replace(BASE, sinks=(3.0,), batch=3, padding="left", q_len=555, kv_len=555),
    "sinks_of_three_heads_a_key_head": replace(
        BASE, heads=3, kv_heads=1, batch=2, sinks=(5.0, 0.0, -3.0), dim=64, landmarks=7
    ),
    # Beside scores of several hundred, and without any that is exact before the estimates come.
    "sinks_steep": replace(BASE, sharpness=60.0, sinks=(0.0, 200.0, 400.0, 800.0)),
    "sinks_without_end": replace(BASE, sinks=(float("-inf"), float("inf"), 60.0, -500.0)),
    "sinks_256": replace(BASE, dim=256, sinks=(-2.0, 0.0, 3.0, 6.0)),
    "two_words": replace(BASE, q_len=256, kv_len=5000, q_offset=4744, heads=2, kv_heads=1),
}


def inputs(case: Case, seed: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Query, key and key segments; keys that nobody sees hold NaN."""
    generator = torch.Generator("cuda").manual_seed(seed)

    def random(heads: int, length: int) -> Tensor:
        shape = (case.batch, heads, length, case.dim)
        if case.layout == "bshd":
            shape = (case.batch, length, heads, case.dim)
        tensor = torch.randn(shape, generator=generator, device="cuda")
        return tensor.transpose(1, 2) if case.layout == "bshd" else tensor

    query = (case.sharpness * random(case.heads, case.q_len)).to(case.dtype)
    key = random(case.kv_heads, case.kv_len).to(case.dtype)
    if case.padding == "none":
        return query, key, None
    count = torch.tensor(case.hidden, device="cuda")[: case.batch, None]
    place = torch.arange(case.kv_len, device="cuda")
    hidden = place < count if case.padding == "left" else place >= case.kv_len - count
    key = key.masked_fill(hidden[:, None, :, None], float("nan"))
    return query, key, torch.where(hidden, -1, 0).int()
