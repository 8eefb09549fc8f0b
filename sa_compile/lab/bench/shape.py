"""Models of real shapes: the configs that ship with the package, config files, or folders with weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

FOLDER = Path(__file__).parent / "shapes"
_NARROW = {"head_dim": 16, "intermediate_size": 64, "vocab_size": 128}
# Of mixtures of experts, low-rank attention and linear attention: only where the config has them.
_NARROW_PARTS = {
    **{"moe_intermediate_size": 32, "num_local_experts": 8, "num_experts": 8, "n_routed_experts": 16},
    **{
        "q_lora_rank": 32,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "v_head_dim": 16,
    },
    **{"linear_key_head_dim": 16, "linear_value_head_dim": 16, "sliding_window": 64},
}


@dataclass(frozen=True)
class Shape:
    """A causal LM to measure. ``layers`` are built of the ``all_layers`` that the model has."""

    name: str
    config: Any  # transformers' config of the model that is built
    layers: int
    all_layers: int
    weights: str  # "random", or the folder that they come from
    note: str

    @property
    def scale(self) -> float:
        """What the measured time is multiplied by to stand for all layers."""
        return self.all_layers / self.layers

    def build(self, device: str, dtype: torch.dtype) -> nn.Module:
        """The model in eval mode on ``device``; random weights are drawn there, always the same."""
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        config = copy.deepcopy(self.config)  # a model's own: what is set in it is not another's
        model: Any
        with torch.device(device):
            if self.weights != "random":
                model = AutoModelForCausalLM.from_pretrained(self.weights, config=config, dtype=dtype)
            else:
                model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        return model.to(device).eval()


def shipped() -> list[str]:
    """Names of the shapes that ship with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_shape(
    model: str, *, layers: int | None = None, narrow: bool = False, changed: Mapping[str, Any] | None = None
) -> Shape:
    """The shape that ``--model`` names: one of :func:`shipped`, a config.json, or a model folder.

    A folder that holds safetensors gives its weights, everything else random ones. ``layers``: build only so
    many. ``narrow``: keep layers and heads, but head_dim 16 and a small MLP and vocabulary, for tests and for
    compile times. ``changed``: settings of the config that the model is built with instead. Errors:
    ``OSError`` if there is no such file, ``ValueError`` for a bad number of layers.
    """
    from transformers import AutoConfig

    note, weights = "", "random"
    if model in shipped():
        shape = json.loads((FOLDER / f"{model}.json").read_text())
        note = shape["note"]
        settings = dict(shape["config"])
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    elif Path(model).exists():
        config = AutoConfig.from_pretrained(model)
        if Path(model).is_dir() and list(Path(model).glob("*.safetensors")):
            weights = model
    else:
        raise FileNotFoundError(
            f"--model: no such folder or config file: {model}; shipped shapes: {', '.join(shipped())}"
        )
    config = copy.deepcopy(config)
    if narrow:
        config, weights = _narrowed(config), "random"
    for setting, value in (changed or {}).items():
        setattr(config, setting, value)
    all_layers = config.num_hidden_layers
    layers = all_layers if layers is None else layers
    if not 1 <= layers <= all_layers:
        raise ValueError(f"--layers must be between 1 and {all_layers} for {model}, got {layers}")
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    return Shape(model, config, layers, all_layers, weights, note)


def _narrowed(config: Any) -> Any:
    settings = config.to_dict()
    settings |= {name: size for name, size in _NARROW_PARTS.items() if settings.get(name)}
    settings |= {**_NARROW, "hidden_size": _NARROW["head_dim"] * config.num_attention_heads}
    settings |= {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    if settings.pop("per_layer_config", None):  # Gemma 4: full layers have wider heads, as many again
        settings |= {"global_head_dim": 2 * _NARROW["head_dim"]}
    return type(config).from_dict(settings)
