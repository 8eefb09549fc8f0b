"""The masks of ``attn_implementation="sampleattn"``: what a causal mask means, instead of its entries.

transformers asks a mask function for the mask of each forward, and says what the mask is: a function of
indices, a query offset and a 2-D padding mask. Where that function is transformers' own causal or
sliding-window one, the answer is a :class:`CausalMask`, which holds the meaning and becomes a dense tensor
only if something other than our attention reads it. Everything else is SDPA's mask, unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from transformers import masking_utils
from transformers.utils.import_utils import is_tracing


class CausalMask(Tensor):
    """Bool [B, 1, Sq, Sk], True where attended: ``q + q_offset - window < k <= q + q_offset`` and key_valid.

    ``window`` None: no lower bound; ``key_valid`` bool [B, Sk] or None. Any operation on it but moving it to
    another device works on the dense tensor, once made: ``meaning_holds`` is then False, for whoever has the
    dense entries may have changed them.
    """

    q_offset: int
    window: int | None
    key_valid: Tensor | None
    meaning_holds: bool
    _entries: Tensor | None

    @staticmethod
    def __new__(
        cls,
        shape: tuple[int, ...],
        q_offset: int,
        window: int | None,
        key_valid: Tensor | None,
        device: torch.device,
    ) -> CausalMask:
        mask = Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bool, device=device)
        mask.q_offset, mask.window, mask.key_valid = q_offset, window, key_valid
        mask._entries, mask.meaning_holds = None, True
        return mask

    def dense(self) -> Tensor:
        """The entries as an ordinary tensor, the same one at every call; for reading only."""
        if self._entries is None:
            with torch.no_grad():
                position = torch.arange(self.shape[2], device=self.device)[:, None] + self.q_offset
                key = torch.arange(self.shape[3], device=self.device)
                allowed = key <= position
                if self.window is not None:
                    allowed = allowed & (key > position - self.window)
                allowed = allowed.expand(self.shape)
                if self.key_valid is not None:
                    allowed = allowed & self.key_valid[:, None, None]
                self._entries = allowed.contiguous()
        return self._entries

    def _like(self, device: torch.device) -> CausalMask:
        valid = self.key_valid.to(device) if self.key_valid is not None else None
        return CausalMask(tuple(self.shape), self.q_offset, self.window, valid, device)

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        moves = func is torch.ops.aten._to_copy.default and kwargs.get("dtype") in (None, torch.bool)
        if moves and args[0].meaning_holds and kwargs.get("memory_format") is None:
            return args[0]._like(torch.device(kwargs.get("device") or args[0].device))
        args, kwargs = tree_map(lambda x: x._hand_out() if isinstance(x, CausalMask) else x, (args, kwargs))
        return func(*args, **kwargs)

    def _hand_out(self) -> Tensor:
        self.meaning_holds = False
        return self.dense()

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        padded = "" if self.key_valid is None else ", padded"
        return f"CausalMask({tuple(self.shape)}, q_offset={self.q_offset}, window={self.window}{padded})"


def mask_function_for_sampleattn(
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable = masking_utils.causal_mask_function,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    use_vmap: bool = False,
    allow_is_causal_skip: bool = True,
    **rest: Any,
) -> Tensor | None:
    """Registered with transformers' AttentionMaskInterface; arguments are those of its ``sdpa_mask``.

    None and bool tensors mean what they mean for SDPA. Reads the padding mask on the host, as ``sdpa_mask``
    does, so that a batch without padding costs nothing.
    """
    known, window = _window_of(mask_function)
    if (
        q_length == 1
        or not known
        or use_vmap
        or not allow_is_causal_skip
        or not (isinstance(kv_offset, int) and kv_offset == 0)
        or is_tracing(attention_mask)
        or is_tracing(q_offset if isinstance(q_offset, Tensor) else None)
    ):
        return masking_utils.sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,  # type: ignore[arg-type]  # static caches give tensors
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            device=device,
            use_vmap=use_vmap,
            allow_is_causal_skip=allow_is_causal_skip,
            **rest,
        )
    offset = int(q_offset)
    seen = min(offset + q_length, kv_length)
    if window is not None and window >= seen:
        window = None
    valid = _valid_keys(attention_mask, kv_length)
    if valid is not None and bool(valid[:, :seen].all()):
        valid = None
    if offset == 0 and window is None and valid is None:
        return None  # SDPA's is_causal: aligned top left, keys behind the rows cut off
    shape = (batch_size, 1, q_length, kv_length)
    return CausalMask(shape, offset, window, valid, torch.device(device))


def _valid_keys(attention_mask: Tensor | None, kv_length: int) -> Tensor | None:
    """Bool [B, kv_length]; keys that the 2-D mask does not reach to are not valid."""
    if attention_mask is None:
        return None
    valid = attention_mask.bool()[:, :kv_length]
    return torch.nn.functional.pad(valid, (0, kv_length - valid.shape[1]))


def _window_of(mask_function: Callable) -> tuple[bool, int | None]:
    """(whether it is transformers' causal mask, perhaps with a sliding window; the window's length)."""
    if mask_function is masking_utils.causal_mask_function:
        return True, None
    parts = _closure(mask_function, masking_utils.and_masks(masking_utils.causal_mask_function))
    functions = parts.get("mask_functions") if parts else None
    if not isinstance(functions, tuple) or len(functions) != 2:
        return False, None
    if functions[1] is not masking_utils.causal_mask_function:
        return False, None
    overlay = _closure(functions[0], masking_utils.sliding_window_overlay(1))
    window = overlay.get("sliding_window") if overlay else None
    known = isinstance(window, int) and not isinstance(window, bool) and window > 0
    return known, window if known else None


def _closure(function: Callable, made_by_same_factory: Callable) -> dict[str, Any] | None:
    """What a function closed over, if it has the code of the other one, so that only its variables differ."""
    if not isinstance(function, FunctionType) or not isinstance(made_by_same_factory, FunctionType):
        return None
    if function.__code__ is not made_by_same_factory.__code__:
        return None
    cells = function.__closure__ or ()
    return dict(zip(function.__code__.co_freevars, (cell.cell_contents for cell in cells), strict=True))
