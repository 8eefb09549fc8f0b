"""What every selection rule shares: the problem it sees, and the interface it fills."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from sa_compile.kernels import ops
from sa_compile.kernels.shared import checks
from sa_compile.kernels.shared.blocks import causal_blocks, pack_bits
from sa_compile.kernels.shared.rows import blocks_of_last_rows, row_ends
from sa_compile.kernels.shared.shapes import ceil_div, query_block_positions
from sa_compile.methods import Kept

# Scores held at a time; rows are processed in chunks, so that 32K tokens fit wherever the model does. Of a
# chunk, keys behind its last row are left out.
SCORE_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20}
HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Problem:
    """One attention whose blocks are to be selected.

    query [B, Hq, Sq, D], key [B, Hkv, Sk, D]; row i of the queries has position ``i + q_offset``;
    ``key_segment`` int32 [B|1, Sk] marks padding with -1 (None: no padding).
    """

    query: Tensor
    key: Tensor
    scale: float
    q_offset: int
    key_segment: Tensor | None
    block_q: int
    block_k: int

    @property
    def device(self) -> torch.device:
        return self.query.device

    @property
    def batch(self) -> int:
        return self.query.shape[0]

    @property
    def heads(self) -> int:
        return self.query.shape[1]

    @property
    def q_len(self) -> int:
        return self.query.shape[2]

    @property
    def kv_len(self) -> int:
        return self.key.shape[2]

    @property
    def n_query_blocks(self) -> int:
        return ceil_div(self.q_len, self.block_q)

    @property
    def n_key_blocks(self) -> int:
        return ceil_div(self.kv_len, self.block_k)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[B, Hq, n_query_blocks, n_key_blocks]."""
        return self.batch, self.heads, self.n_query_blocks, self.n_key_blocks

    @cached_property
    def valid_keys(self) -> Tensor | None:
        """Bool [B|1, Sk]: the key is not padding; None if no key is."""
        return None if self.key_segment is None else self.key_segment == 0

    @cached_property
    def causal(self) -> Tensor:
        """Bool [n_query_blocks, n_key_blocks]: causality allows an entry of the block."""
        return causal_blocks(self.q_len, self.kv_len, self.q_offset, self.block_q, self.block_k, self.device)

    @cached_property
    def valid_blocks(self) -> Tensor:
        """Bool [B|1, n_key_blocks]: the key block holds a key that is not padding."""
        if self.valid_keys is None:
            return torch.ones((1, self.n_key_blocks), dtype=torch.bool, device=self.device)
        return self.pooled_keys(self.valid_keys.float()[:, None, :, None])[:, 0, :, 0] > 0

    @cached_property
    def allowed(self) -> Tensor:
        """Bool [B|1, 1, n_query_blocks, n_key_blocks]: causality and padding allow an entry of the block."""
        return self.causal & self.valid_blocks[:, None, None]

    @cached_property
    def first_blocks(self) -> Tensor:
        """Bool [B|1, 1, 1, n_key_blocks]: the first key block that holds a valid key (the sink's)."""
        first = self.valid_blocks & (self.valid_blocks.cumsum(-1) == 1)
        return first[:, None, None]

    @cached_property
    def distance(self) -> Tensor:
        """int64 [n_query_blocks, n_key_blocks]: key blocks from block j to the one of block i's first row."""
        first, _ = self.row_positions
        return (first // self.block_k)[:, None] - torch.arange(self.n_key_blocks, device=self.device)

    @property
    def row_positions(self) -> tuple[Tensor, Tensor]:
        """Positions of the first and the last row of every query block."""
        return query_block_positions(self.q_len, self.q_offset, self.block_q, self.device)

    def window(self, blocks: int) -> Tensor:
        """Bool [n_query_blocks, n_key_blocks]: the ``blocks`` block diagonals, from the main one down."""
        return self.distance < blocks

    def last_rows(self, count: int) -> Tensor:
        """Bool [B|1, 1, n_query_blocks, 1]: the query block holds one of a prompt's last ``count`` rows."""
        ends = row_ends(self.key_segment, self.q_len, self.q_offset, self.device)
        return blocks_of_last_rows(ends, self.q_len, self.block_q, count)[:, None, :, None]

    def none(self) -> Tensor:
        """Bool [1, 1, n_query_blocks, n_key_blocks], all False."""
        return torch.zeros(
            (1, 1, self.n_query_blocks, self.n_key_blocks), dtype=torch.bool, device=self.device
        )

    def row_chunks(self, n_rows: int, multiple: int = 1, columns: int | None = None) -> Iterator[slice]:
        """Slices of ``n_rows`` rows, each a multiple of ``multiple``, whose scores fit in SCORE_BYTES."""
        row_bytes = 4 * self.batch * self.heads * max(self.kv_len if columns is None else columns, 1)
        step = max(SCORE_BYTES[self.device.type] // row_bytes // multiple, 1) * multiple
        for start in range(0, n_rows, step):
            yield slice(start, min(start + step, n_rows))

    def scores(self, query: Tensor, key: Tensor, scale: float) -> Tensor:
        """Scaled fp32 products [B, Hq, M, N] of query [B, Hq, M, D] and key [B, Hkv, N, D]."""
        batch, heads, rows, depth = query.shape
        kv_heads = key.shape[1]
        shape = (batch * kv_heads, heads // kv_heads * rows, depth)
        if query.is_cuda and query.dtype == key.dtype and query.dtype in HALF:
            # Tensor cores: products of half precision are exact in fp32, in which they are summed.
            keys = key.flatten(0, 1).transpose(-1, -2)
            grouped = torch.bmm(query.reshape(shape), keys, out_dtype=torch.float32).mul_(scale)
        else:
            keys = key.float().flatten(0, 1).transpose(-1, -2)
            grouped = (query.float() * scale).reshape(shape) @ keys
        return grouped.reshape(batch, heads, rows, key.shape[2])

    def probabilities(self, rows: slice, keys: int | None = None) -> Tensor:
        """Exact causal attention of some rows, fp32 [B, Hq, rows, Sk]; a row without keys is all 0.

        ``keys``: only the first so many, [B, Hq, rows, keys]; the rows must see none behind them.
        """
        keys = self.kv_len if keys is None else keys
        position = torch.arange(rows.start, rows.stop, device=self.device) + self.q_offset
        hidden = torch.arange(keys, device=self.device) > position[:, None]
        if self.valid_keys is not None:
            hidden = hidden | ~self.valid_keys[:, None, None, :keys]
        scores = self.scores(self.query[:, :, rows], self.key[:, :, :keys], self.scale)
        weights = scores.masked_fill_(hidden, -torch.inf).softmax(-1)
        return weights if self.valid_keys is None else weights.nan_to_num_(0.0)

    def pooled_keys(self, x: Tensor) -> Tensor:
        """Sums over key blocks: [..., Sk, C] to [..., n_key_blocks, C]."""
        return block_sums(x, self.block_k, -2)

    def mean_keys(self) -> Tensor:
        """Mean valid key of every block, fp32 [B, Hkv, n_key_blocks, D]; 0 for a block without any."""
        key = self.key.float()
        if self.valid_keys is None:
            weight = torch.ones((1, 1, self.kv_len, 1), device=self.device)
        else:
            weight = self.valid_keys.float()[:, None, :, None]
        total = self.pooled_keys(torch.where(weight > 0, key, 0))
        return total / self.pooled_keys(weight).clamp(min=1)

    def mean_queries(self) -> Tensor:
        """Mean query of every block, fp32 [B, Hq, n_query_blocks, D]."""
        total = block_sums(self.query.float(), self.block_q, -2)
        rows = block_sums(torch.ones((self.q_len, 1), device=self.device), self.block_q, -2)
        return total / rows


class Rule(ABC):
    """A selection rule: queries and keys to the blocks that attention is computed on.

    Subclasses are frozen dataclasses of settings; they see a :class:`Problem` and say which blocks they
    keep, per query head. What causality or padding forbids is taken out here.
    """

    name: ClassVar[str]

    def select(self, query: Tensor, key: Tensor, **where: Any) -> Tensor:
        """block_mask int32 [B|1, Hq|1, n_query_blocks, n_words] for one attention; arguments as of
        :meth:`problem`."""
        problem = self.problem(query, key, **where)
        return pack_bits(self.blocks(problem) & problem.allowed)

    def problem(
        self,
        query: Tensor,
        key: Tensor,
        *,
        scale: float | None = None,
        q_offset: int = 0,
        key_segment: Tensor | None = None,
        block_q: int = 128,
        block_k: int = 128,
    ) -> Problem:
        """What rules see of query [B, Hq, Sq, D] and key [B, Hkv, Sk, D] in float32, bfloat16 or float16.

        ``scale`` None is 1/sqrt(D); ``key_segment`` int32 [B|1, Sk] holds 0 for valid keys and -1 for
        padding. Raises ValueError for tensors or block sizes that do not fit.
        """
        checks.check_qkv(self.name, query, key)
        checks.check_segment(self.name, "key_segment", key_segment, query.shape[0], key.shape[2], query)
        checks.check_block_size(self.name, block_q=block_q, block_k=block_k)
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return Problem(query, key, scale, q_offset, key_segment, block_q, block_k)

    def keep(self, query: Tensor, key: Tensor, value: Tensor, **where: Any) -> Kept:
        """:meth:`select`, and what :meth:`attend` wants to know of the blocks that are left out."""
        return Kept(self.select(query, key, **where))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, kept: Kept, **where: Any) -> Tensor:
        """Attention over what was kept, [B, Hq, Sq, Dv]; ``where`` as of :meth:`select`."""
        return ops.block_sparse_attention(query, key, value, kept.block_mask, **where)[0]

    def unread(self) -> Mapping[str, str]:
        """Settings that these settings leave without effect, each with the one that does so."""
        return {}

    @abstractmethod
    def blocks(self, problem: Problem) -> Tensor:
        """Bool, broadcastable to [B, Hq, n_query_blocks, n_key_blocks]: the blocks to keep."""

    @property
    def spec(self) -> str:
        """The string that ``parse_rule`` turns into this rule; settings at their defaults are left out."""
        settings = ",".join(
            f"{field.name}={_plain(getattr(self, field.name))}"
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
            if getattr(self, field.name) != field.default
        )
        return f"{self.name}:{settings}" if settings else self.name


def _plain(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def masked_softmax(scores: Tensor, allowed: Tensor) -> Tensor:
    """Softmax over the last dimension of what is allowed; a row that is allowed nothing is all 0.

    ``scores`` are overwritten.
    """
    hidden = ~allowed
    return scores.masked_fill_(hidden, -torch.inf).softmax(-1).masked_fill_(hidden, 0)


def block_sums(x: Tensor, block: int, dim: int) -> Tensor:
    """Sums of ``block`` consecutive entries along a negative ``dim``; the last block may hold fewer."""
    missing = -x.shape[dim] % block
    if missing:
        shape = list(x.shape)
        shape[dim] = missing
        x = torch.cat((x, x.new_zeros(shape)), dim)
    return x.unflatten(dim, (-1, block)).sum(dim)


def fewest_reaching(scores: Tensor, share: float, total: Tensor | None = None) -> Tensor:
    """Bool, shape of scores [..., n]: the fewest entries, largest first, reaching ``share`` of the total.

    The t-th is kept iff those before it sum to less than ``share * total``; ``total`` [..., 1] is the
    row's own sum unless given; entries of 0 are never kept.
    """
    ordered, order = scores.double().sort(dim=-1, descending=True, stable=True)
    cumulated = ordered.cumsum(-1)
    needed = share * (cumulated[..., -1:] if total is None else total.double())
    keep = (cumulated - ordered < needed) & (ordered > 0)
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, keep)
