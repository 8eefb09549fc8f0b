"""SampleAttention in transformers without torch.compile: ``attn_implementation="sampleattn"``.

    import sa_compile.hf  # registers the name
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sampleattn")
    sa_compile.hf.configure(model, {"alpha_c": 0.95})  # optional: the options of the backend
    model.generate(**inputs)
    print(sa_compile.hf.report(model))  # what was sampled, exact and kept, and why

The import is what registers: transformers looks for implementations in a table of this process and reads no
entry points. The options live in the model's config, as plain data, and are saved with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from sa_compile.hf.attention import sampleattn_attention
from sa_compile.hf.masks import CausalMask, mask_function_for_sampleattn
from sa_compile.hf.state import ATTRIBUTE, check_options, forget, name_modules, report_of
from sa_compile.inspection import check_profile
from sa_compile.report import Report

__all__ = ["NAME", "CausalMask", "configure", "register", "report", "reset_report"]

NAME = "sampleattn"


def register() -> None:
    """Make ``attn_implementation="sampleattn"`` known to transformers; importing this module does it."""
    AttentionInterface.register(NAME, sampleattn_attention)
    AttentionMaskInterface.register(NAME, mask_function_for_sampleattn)


def configure(model: nn.Module, options: Mapping[str, Any] | None = None) -> None:
    """Set the options of a transformers model's attention: those of ``torch.compile(options=...)``.

    None: the defaults. They are kept in ``model.config.sampleattn`` and its sub-configs, so copies of the
    model and ``save_pretrained`` keep them too. Raises ``TypeError`` and ``ValueError`` as
    :class:`SampleAttentionConfig` does, and for an option that only a compiler could follow; a ``profile`` is
    checked against the whole model (:func:`sa_compile.check_profile`).
    """
    checked = check_options(options)
    if checked.profile is not None:
        check_profile(model, checked.profile)
    configs = {id(m.config): m.config for m in model.modules() if getattr(m, "config", None) is not None}
    if not configs:
        raise TypeError(
            f"configure needs a transformers model, whose modules have a config; got {type(model)}"
        )
    for config in configs.values():
        setattr(config, ATTRIBUTE, dict(options) if options is not None else None)
    name_modules(model)


def report(model: nn.Module | None = None) -> Report:
    """What became of every attention of a model (None: of every model) that ran so far.

    A row for each way in which an attention ran, with the range of its lengths; the report of compiled graphs
    (``sa_compile.explain``) has the same columns.
    """
    return report_of(model)


def reset_report(model: nn.Module) -> None:
    """Forget the rows gathered so far for a model."""
    forget(model)


register()
