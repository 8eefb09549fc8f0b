"""Look at what the backend does to a model's graph: the report, the ops before and after, and a mask it kept.

``python examples/inspect_rewrite.py`` needs no weights: the models are small and random.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import fx
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

import sa_compile

TOKENS = 8192


def main() -> None:
    torch.manual_seed(0)
    llama = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=256,
        )
    ).eval()
    tokens = torch.randint(0, 256, (1, TOKENS))
    padded = torch.ones_like(tokens)
    padded[:, :100] = 0

    with torch.no_grad():
        show("A long prompt is sampled", llama, tokens, logits_to_keep=1)
        show("Padding is proven, and sampled too", llama, tokens, attention_mask=padded, logits_to_keep=1)
        show("A short prompt stays exact, without a mask tensor", llama, tokens[:, :512], use_cache=False)
        bert = BertModel(BertConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=1)).eval()
        show("What is not causal is kept as it was", bert, tokens[:, :512], attention_mask=padded[:, :512])


def show(title: str, model: torch.nn.Module, *args: torch.Tensor, **kwargs: object) -> None:
    """Print the report, and the ops of ours in the rewritten graph."""
    report = sa_compile.explain(model, *args, **kwargs)
    print(f"== {title} ==\n{report}")
    ops = Counter(name for graph in report.graphs for name in our_ops(graph))
    print(
        "ops in the graph:", ", ".join(f"{count} x {name}" for name, count in ops.items()) or "none of ours"
    )
    print()


def our_ops(graph: fx.GraphModule) -> list[str]:
    """Names of the sampleattn ops that a graph calls, in order."""
    return [str(node.target) for node in graph.graph.nodes if str(node.target).startswith("sampleattn.")]


if __name__ == "__main__":
    main()
