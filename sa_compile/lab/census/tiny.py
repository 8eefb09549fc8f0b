"""Every causal language model of the installed transformers, with random weights, in a megabyte or less."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.pytorch_utils import Conv1D

from sa_compile.lab.census.arguments import SEED
from sa_compile.lab.census.classes import CAUSAL, CLASSIFICATION, kind_of
from sa_compile.lab.census.overrides import OVERRIDES
from sa_compile.lab.census.shrink import shrink


def offers_sdpa(class_name: str) -> bool:
    """The class has an SDPA implementation beside the eager one."""
    return getattr(transformers, class_name)._supports_sdpa


def tiny_config(class_name: str, model_type: str) -> Any:
    """The model's default config, shrunk, its head dims as they are."""
    model_class = getattr(transformers, class_name)
    config_class = model_class.config_class or CONFIG_MAPPING[model_type]
    override = OVERRIDES.get(class_name, {})
    defaults = config_class(**override.get("defaults", {})).to_dict()
    fields = shrink(defaults)
    _update(fields, override.get("config", {}))
    return config_class(**fields)


def _update(fields: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(value, Mapping) and isinstance(fields.get(name), dict):
            _update(fields[name], value)
        else:
            fields[name] = value


def build(class_name: str, model_type: str, attn: str) -> nn.Module:
    """The tiny model in eval mode and fp32, the same weights for every ``attn`` (an ``attn_implementation``).

    Raises ``NotImplementedError`` when the class does not offer that implementation under its own name.
    """
    model_class = getattr(transformers, class_name)
    config = tiny_config(class_name, model_type)
    if attn == "sdpa" and not offers_sdpa(class_name):
        raise NotImplementedError("the class does not support SDPA")
    if kind_of(class_name) == CAUSAL:
        for part in (config, config.get_text_config(decoder=True)):
            if hasattr(part, "is_decoder") and not hasattr(part, "encoder_layers"):
                part.is_decoder = True
    if kind_of(class_name) == CLASSIFICATION and getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = config.get_text_config().pad_token_id = 0
    config._attn_implementation = attn
    torch.manual_seed(SEED)
    model = model_class(config).to(torch.float32).eval()
    fill(model)
    return model


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Weights large enough that attention shows in the logits: a wrong mask must not hide behind a zero.

    Linear layers get a standard deviation of ``1/sqrt(inputs)``; parameters created constant (zeros,
    ones) get noise on top.
    """
    generator = torch.Generator().manual_seed(SEED)
    for module in model.modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            inputs = module.weight.shape[1 if isinstance(module, nn.Linear) else 0]
            module.weight.normal_(0, inputs**-0.5, generator=generator)
    for parameter in model.parameters():
        if not parameter.is_floating_point() or not parameter.numel():
            continue
        if not bool(parameter.isfinite().all()) or float(parameter.max() - parameter.min()) == 0:
            constant = parameter.flatten()[0].nan_to_num(0.0, 0.0, 0.0)
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(constant + 0.1 * noise)
