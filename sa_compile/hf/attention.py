"""The attention function of ``attn_implementation="sampleattn"``: decide per call, run, say what was done.

The order of trust: what transformers' ``sdpa`` implementation would compute is the reference. Only attention
whose meaning is known to be causal (offset, padding, sliding window) leaves it. Of soft caps and sinks, which
``sdpa`` does not know, the model's own eager attention is the reference; with a sink logit a head (``s_aux``)
an attention is sampled or exact like any other.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch import Tensor, nn
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils.import_utils import is_tracing

from sa_compile import prefill
from sa_compile.config import SampleAttentionConfig
from sa_compile.hf.masks import CausalMask
from sa_compile.hf.state import site_of
from sa_compile.kernels import ops
from sa_compile.passes.conditions.kernels import why_no_kernel, why_not_dtypes
from sa_compile.passes.conditions.training import Training, hidden_sign, training_step
from sa_compile.passes.decide import Decision, outlook
from sa_compile.passes.site_record import SiteRecord
from sa_compile.prefill import CausalAttention
from sa_compile.report import warn_of_training_mode

# Keyword arguments that change what is computed, and that transformers' "sdpa" leaves out.
SINKS = "s_aux"
NEEDS_EAGER = {"softcap": "tanh softcap", SINKS: "attention sinks", "sinks": "attention sinks"}


def sampleattn_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Registered with transformers' AttentionInterface: out [B, Sq, Hq, Dv] and attention weights or None.

    query [B, Hq, Sq, D], key [B, Hkv, Sk, D], value [B, Hkv, Sk, Dv]. Raises ``NotImplementedError`` for a
    soft cap or sinks in a model without an eager attention of its own.
    """
    arguments = {"dropout": dropout, "scaling": scaling, **kwargs}
    eager_only = [f"{what} ({name})" for name, what in NEEDS_EAGER.items() if kwargs.get(name) is not None]
    if is_tracing(query):
        if torch.compiler.is_dynamo_compiling() and query.shape[2] > 1:
            warn_if_another_compiler()
        if eager_only:
            return _own_eager(module, query, key, value, attention_mask, is_causal, eager_only, arguments)
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, is_causal=is_causal, **arguments
        )
    site = site_of(module)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    as_given = query, key, value
    query, key, value = map(as_autocast, as_given)
    meaning = plain_causal(module, query, key, value, scale, attention_mask, is_causal, arguments)
    training = training_of(module, query, key, value, sinks_of(arguments))
    decision = decide(meaning, attention_mask, site.config, training, query, key, value)
    if eager_only and decision.form not in ("sampled", "block_sparse"):
        reasons = ", ".join(eager_only)
        reasons += "" if decision.reason in eager_only else f"; {decision.reason}"
        why = f"the model's own eager attention: {reasons}"
        decision = Decision("kept", "", why, profile_range=decision.profile_range)
    config = decision.config or site.config
    record = _record(query, key, value, decision, _mask_text(meaning), config)
    site.note(record)
    warn_of_training_mode([record], config.min_seq_len)
    if decision.form == "sampled":
        assert isinstance(meaning, CausalAttention)
        out, stats = prefill.sampled(meaning.without_unseen_keys(), config)
        if stats is not None:
            site.add_stats(record, stats)
        return out.transpose(1, 2), None
    if decision.form == "block_sparse":
        assert isinstance(meaning, CausalAttention)
        return prefill.exact(meaning.without_unseen_keys(), config).transpose(1, 2), None
    if eager_only:
        return _own_eager(module, *as_given, attention_mask, is_causal, eager_only, arguments)
    mask = attention_mask.dense() if isinstance(attention_mask, CausalMask) else attention_mask
    return sdpa_attention_forward(module, query, key, value, mask, is_causal=is_causal, **arguments)


def as_autocast(operand: Tensor) -> Tensor:
    """A floating tensor as SDPA computes with it: under ``torch.autocast`` in its dtype, but for float64."""
    device_type = operand.device.type
    if operand.dtype == torch.float64 or not torch.is_autocast_enabled(device_type):
        return operand
    return operand.to(torch.get_autocast_dtype(device_type))


def plain_causal(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    attention_mask: Tensor | None,
    is_causal: bool | None,
    arguments: dict[str, Any],
) -> CausalAttention | str:
    """The attention as causal with offset, padding and window, or why it is not known to be that."""
    if query.shape[2] == 1:
        return "decode: one query row"
    reason = obstacle(module, attention_mask, is_causal, arguments)
    if reason is not None:
        return reason
    sinks = sinks_of(arguments)
    if sinks is not None and tuple(sinks.shape) != (query.shape[1],):
        return f"attention sinks: {SINKS} {list(sinks.shape)}, expected [{query.shape[1]}], a logit a head"
    if isinstance(attention_mask, CausalMask):
        if tuple(attention_mask.shape[2:]) != (query.shape[2], key.shape[2]):
            return "mask not proven: it was made for other lengths"
        mask = attention_mask
        seen = mask.q_offset, mask.window or 0, mask.key_valid
        return CausalAttention(query, key, value, scale, *seen, sinks)
    window = arguments.get("sliding_window")
    if window is not None and min(query.shape[2], key.shape[2]) > window:
        return f"a sliding window of {window}, but no mask that says so"
    return CausalAttention(query, key, value, scale, sinks=sinks)


def sinks_of(arguments: dict[str, Any]) -> Tensor | None:
    """The sink logits of an attention, a tensor of them or None."""
    sinks = arguments.get(SINKS)
    return sinks if isinstance(sinks, Tensor) else None


def obstacle(
    module: nn.Module, attention_mask: Tensor | None, is_causal: bool | None, arguments: dict[str, Any]
) -> str | None:
    """Why an attention is more than causal, as far as its mask and its arguments tell; None if it is not."""
    if arguments.get("dropout"):
        return f"dropout in training (p = {arguments['dropout']})"
    for name, what in NEEDS_EAGER.items():
        if arguments.get(name) is not None and not (name == SINKS and sinks_of(arguments) is not None):
            return f"{what} ({name})"
    if arguments.get("position_bias") is not None:
        return "a bias is added to the scores (position_bias)"
    if isinstance(arguments.get("cache"), PagedAttentionCache):
        return "paged KV cache"
    if arguments.get("cu_seq_lens_q") is not None:
        return "packed sequences (cu_seq_lens_q)"
    if isinstance(attention_mask, CausalMask):
        if attention_mask.meaning_holds:
            return None
        return "mask not proven: the model read the mask's entries, and may have changed them"
    if attention_mask is not None:
        return "mask not proven: it came as a tensor"
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        return "bidirectional attention, nothing masked"
    return None


def decide(
    meaning: CausalAttention | str,
    attention_mask: Tensor | None,
    config: SampleAttentionConfig,
    training: Training | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
) -> Decision:
    """sampled, exact or kept, by the table of ``passes.decide``."""
    if isinstance(meaning, str):
        return Decision("kept", "", meaning)
    q_len, kv_len = query.shape[2], key.shape[2]
    found = outlook(
        config,
        sympy.Integer(q_len),
        bool,
        not_plain=f"not plain causal: {_mask_text(meaning)}" if meaning.window else None,
        training=training,
        why_blocked=lambda options: _why_not_block_sparse(options, training, query, key, value),
        fits=sympy.Le(meaning.q_offset + q_len, kv_len),
    )
    if found.sampled is not None:
        return found.sampled
    if attention_mask is None and meaning.sinks is None:
        return Decision("exact", "unchanged", f"already the cheapest exact form; {found.why}")
    outcome, form = ("exact", "block_sparse") if found.blocked is None else ("kept", "")
    return Decision(outcome, form, found.why)


def training_of(module: nn.Module, *operands: Tensor | None) -> Training | None:
    """Whether this call is part of a training step (``passes.conditions.training``)."""
    recording = torch.is_grad_enabled()
    return training_step(
        gradient=recording and any(x is not None and x.requires_grad for x in operands),
        recording=recording,
        hidden=hidden_sign,
        module_trains=lambda: module.training,
    )


def _why_not_block_sparse(
    config: SampleAttentionConfig, training: Training | None, query: Tensor, key: Tensor, value: Tensor
) -> str | None:
    if training is not None and training.gradient:
        return training.reason
    return why_not_dtypes(x.dtype for x in (query, key, value)) or why_no_kernel(
        query.device, query.dtype, query.shape[-1], value.shape[-1], config
    )


def _record(
    query: Tensor, key: Tensor, value: Tensor, decision: Decision, mask: str, config: SampleAttentionConfig
) -> SiteRecord:
    kernel = ""
    if decision.form in ("sampled", "block_sparse"):
        dims, blocks = (query.shape[-1], value.shape[-1]), (config.block_q, config.block_k)
        kernel = ops.attention_kernel(query.device, query.dtype, *dims, *blocks)
    return SiteRecord(
        "",
        "attn_implementation",
        batch=query.shape[0],
        q_heads=query.shape[1],
        kv_heads=key.shape[1],
        head_dim=query.shape[3],
        q_len=query.shape[2],
        kv_len=key.shape[2],
        dtype=str(query.dtype).removeprefix("torch."),
        mask=mask,
        outcome=decision.outcome,
        form=decision.form,
        reason=decision.reason,
        kernel=kernel,
        profile_range=decision.profile_range,
    )


def _mask_text(meaning: CausalAttention | str) -> str:
    if isinstance(meaning, str):
        return "not proven" if meaning.startswith("mask not proven") else "not looked at"
    parts = ["causal" if meaning.q_offset == 0 else "causal(offset)"]
    if meaning.window:
        parts.append(f"window({meaning.window})")
    if meaning.key_valid is not None:
        parts.append("key_valid")
    return " & ".join(parts)


def _own_eager(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    is_causal: bool | None,
    reasons: list[str],
    arguments: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """The model's eager attention, which adds its mask: bool entries become 0 and the dtype's minimum."""
    forward: Callable | None = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if forward is None:
        raise NotImplementedError(
            f"attn_implementation='sampleattn' does not compute {', '.join(reasons)}, and "
            f"{type(module).__module__} has no eager_attention_forward to leave it to; load the model with "
            "attn_implementation='eager'"
        )
    mask = attention_mask.dense() if isinstance(attention_mask, CausalMask) else attention_mask
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if mask is None and causal and query.shape[2] > 1:
        rows = torch.arange(query.shape[2], device=query.device)
        mask = (torch.arange(key.shape[2], device=query.device) <= rows[:, None])[None, None]
    if mask is not None and mask.dtype == torch.bool:
        least = torch.finfo(query.dtype).min
        mask = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill(~mask, least)
    return forward(module, query, key, value, mask, **arguments)


@torch.compiler.assume_constant_result
def warn_if_another_compiler() -> None:
    """Runs once, while a compiler traces a prefill: it gets SDPA, which only our backend rewrites."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        backend = InstructionTranslator.current_tx().output.compiler_fn
    except AttributeError:
        return  # torch.export: nothing runs here
    if getattr(backend, "compiler_name", None) == "sampleattn":
        return
    warnings.warn(
        "attn_implementation='sampleattn' samples nothing inside torch.compile, where it is plain SDPA; "
        "torch.compile(model, backend='sampleattn') samples in compiled code",
        stacklevel=2,
    )
