"""A Llama for training: tokens flat, attention per sequence, weights under Hugging Face's names.

Everything but attention works on [tokens, channels] with a constant number of tokens a step, so the compiled
functions are compiled once, whatever the sequence length; only the attention call sees [batch, length].
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of the model, under the names of Hugging Face's LlamaConfig."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    head_dim: int = 64
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 32768


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of [tokens, heads, d]; cos and sin are [tokens, 1, d]."""
    first, second = x.float().chunk(2, -1)
    return (x * cos + torch.cat((-second, first), -1) * sin).to(x.dtype)


def _project(x, norm, wq, wk, wv, cos, sin, head_dim: int, eps: float, dtype: torch.dtype):
    """Residual stream [tokens, hidden] -> rotated q, rotated k, v, each [tokens, heads, head_dim]."""
    weight = torch.cat((wq, wk, wv)).to(dtype)
    joined = F.linear(_norm(x, norm, eps).to(dtype), weight)
    q, k, v = joined.split((wq.shape[0], wk.shape[0], wv.shape[0]), -1)
    q, k, v = (part.unflatten(-1, (-1, head_dim)) for part in (q, k, v))
    return _rotate(q, cos, sin), _rotate(k, cos, sin), v.contiguous()


def _combine(x, attended, wo, norm, w_gate, w_up, w_down, eps: float):
    """Add attention's output projection and then the MLP to the residual stream."""
    dtype = attended.dtype
    x = x + F.linear(attended, wo.to(dtype))
    gate, up = F.linear(_norm(x, norm, eps).to(dtype), torch.cat((w_gate, w_up)).to(dtype)).chunk(2, -1)
    return x + F.linear(F.silu(gate) * up, w_down.to(dtype))


def _losses(x, norm, embedding, targets, kinds, eps: float, dtype: torch.dtype, classes: int):
    """The loss to train on, and per kind of target [classes]: summed cross-entropy, number right, count."""
    logits = F.linear(_norm(x, norm, eps).to(dtype), embedding.to(dtype)).float()
    loss = F.cross_entropy(logits, targets, reduction="none")
    one_hot = (kinds[:, None] == torch.arange(classes, device=kinds.device)).float()
    count = one_hot.sum(0)
    total = (one_hot * loss[:, None]).sum(0)
    right = (one_hot * (logits.argmax(-1) == targets)[:, None]).sum(0)
    # The few answers weigh as much as all the text: mean over text + mean over answers.
    objective = total[1] / count[1].clamp(min=1) + total[2:].sum() / count[2:].sum().clamp(min=1)
    return objective, total.detach(), right, count


class Block(nn.Module):
    """One layer's weights; `Llama.forward` uses them."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        hidden, inner = shape.hidden_size, shape.intermediate_size
        width = shape.num_attention_heads * shape.head_dim
        kv_width = shape.num_key_value_heads * shape.head_dim
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(hidden, width, bias=False),
                "k_proj": nn.Linear(hidden, kv_width, bias=False),
                "v_proj": nn.Linear(hidden, kv_width, bias=False),
                "o_proj": nn.Linear(width, hidden, bias=False),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(hidden, inner, bias=False),
                "up_proj": nn.Linear(hidden, inner, bias=False),
                "down_proj": nn.Linear(inner, hidden, bias=False),
            }
        )
        self.input_layernorm = nn.RMSNorm(hidden, shape.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(hidden, shape.rms_norm_eps)


class Llama(nn.Module):
    """The training model. `compiled` turns torch.compile on for everything but attention."""

    def __init__(self, shape: Shape, *, classes: int, dtype: torch.dtype, compiled: bool) -> None:
        super().__init__()
        self.shape, self.dtype, self.classes = shape, dtype, classes
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(shape.vocab_size, shape.hidden_size),
                "layers": nn.ModuleList(Block(shape) for _ in range(shape.num_hidden_layers)),
                "norm": nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps),
            }
        )
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                # Output projections start small, so that the residual stream starts as the embedding.
                last = name.endswith(("o_proj.weight", "down_proj.weight"))
                deviation = 0.02 if "embed" in name else parameter.shape[1] ** -0.5 * (0.2 if last else 0.7)
                nn.init.normal_(parameter, std=deviation)
        wrap = torch.compile if compiled else lambda function: function
        self._project, self._combine, self._losses = wrap(_project), wrap(_combine), wrap(_losses)

    def _rotary(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        half = torch.arange(0, self.shape.head_dim, 2, device=device, dtype=torch.float32)
        frequencies = self.shape.rope_theta ** (-half / self.shape.head_dim)
        angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequencies)
        angles = torch.cat((angles, angles), -1)[:, None]
        return angles.cos(), angles.sin()

    def hidden(self, tokens: Tensor) -> Tensor:
        """Token ids [batch, length] -> residual stream after the last layer [batch * length, hidden]."""
        batch, length = tokens.shape
        cos, sin = (part.repeat(batch, 1, 1) for part in self._rotary(length, tokens.device))
        shape, eps = self.shape, self.shape.rms_norm_eps
        groups = shape.num_attention_heads // shape.num_key_value_heads
        x = self.model["embed_tokens"](tokens.flatten())
        for layer in self.model["layers"]:
            attn, mlp = layer.self_attn, layer.mlp
            weights = (attn[name].weight for name in ("q_proj", "k_proj", "v_proj"))
            q, k, v = self._project(
                x, layer.input_layernorm.weight, *weights, cos, sin, shape.head_dim, eps, self.dtype
            )
            k, v = (part[:, :, None].expand(-1, -1, groups, -1).flatten(1, 2) for part in (k, v))
            q, k, v = (part.unflatten(0, (batch, length)).transpose(1, 2) for part in (q, k, v))
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            attended = attended.transpose(1, 2).reshape(batch * length, -1)
            weights = (mlp[name].weight for name in ("gate_proj", "up_proj", "down_proj"))
            x = self._combine(
                x, attended, attn["o_proj"].weight, layer.post_attention_layernorm.weight, *weights, eps
            )
        return x

    def forward(self, tokens: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens and kinds [batch, length + 1] -> loss, and per kind: summed cross-entropy, right, count."""
        x = self.hidden(tokens[:, :-1].contiguous())
        norm, embedding = self.model["norm"].weight, self.model["embed_tokens"].weight
        targets, kinds = tokens[:, 1:].flatten(), kinds[:, 1:].flatten()
        eps = self.shape.rms_norm_eps
        return self._losses(x, norm, embedding, targets, kinds, eps, self.dtype, self.classes)

    def export(self, folder: Path) -> None:
        """Write model.safetensors (bfloat16) and config.json for Hugging Face's LlamaForCausalLM."""
        weights = {
            name: value.detach().to(torch.bfloat16).cpu().contiguous()
            for name, value in self.state_dict().items()
        }
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **asdict(self.shape),
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
            "use_cache": True,
            "dtype": "bfloat16",
            "torch_dtype": "bfloat16",
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
