"""What was tried of caches and of ``generate``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from trial import ALL, OPTIONS, WINDOW, Measured, build, largest_error, measure, sites, tokens, trial

from sa_compile import report


def _turns(make_cache: Any, name: str, **overrides: Any) -> Measured:
    """A prompt, and a second turn behind it in the same cache."""

    def run(model: Any) -> list[Tensor]:
        cache = make_cache(model)
        first = model(tokens(), past_key_values=cache, use_cache=True).logits
        return [first, model(tokens(seed=2), past_key_values=cache, use_cache=True).logits]

    return measure(build(name, **overrides), run)


@trial("cache", "`DynamicCache`: a prompt, then a second turn", models=ALL)
def dynamic(name: str) -> Measured:
    from transformers import DynamicCache

    return _turns(lambda model: DynamicCache(config=model.config), name)


@trial("cache", "sliding: a window shorter than the prompt, two turns", models=("Mistral",))
def sliding(name: str) -> Measured:
    from transformers import DynamicCache

    return _turns(lambda model: DynamicCache(config=model.config), name, sliding_window=WINDOW)


@trial("cache", "`StaticCache`: a prompt, then a second turn", models=ALL)
def static(name: str) -> Measured:
    from transformers import StaticCache

    return _turns(lambda model: StaticCache(config=model.config, max_cache_len=256), name)


@trial("cache", "`StaticCache`: a prompt, `reset()`, the next prompt", models=ALL)
def static_reset(name: str) -> Measured:
    from transformers import StaticCache

    def run(model: Any) -> list[Tensor]:
        cache = StaticCache(config=model.config, max_cache_len=256)
        first = model(tokens(), past_key_values=cache, use_cache=True).logits.clone()
        cache.reset()
        return [first, model(tokens(seed=2), past_key_values=cache, use_cache=True).logits]

    return measure(build(name), run)


def _generate(name: str, build_settings: dict[str, Any] | None = None, **settings: Any) -> Measured:
    """Tokens and logits of every step. Left padding only where ``padded`` asks for it."""
    padded = settings.pop("padded", False)

    def run(model: Any) -> list[Tensor]:
        torch.manual_seed(0)
        mask = torch.ones_like(tokens())
        if padded:
            mask[0, :9] = 0
        given = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, **settings}
        given |= {"return_dict_in_generate": True, "output_logits": True}
        out = model.generate(tokens(), attention_mask=mask, **given)
        return [out.sequences, *(logits for logits in out.logits or ())]

    return measure(build(name, **(build_settings or {})), run)


@trial("generate", "greedy", models=ALL)
def greedy(name: str) -> Measured:
    return _generate(name)


@trial("generate", "greedy, left padding", models=ALL)
def greedy_padded(name: str) -> Measured:
    return _generate(name, padded=True)


@trial("generate", "beams: 3", models=ALL)
def beams(name: str) -> Measured:
    return _generate(name, num_beams=3)


@trial("generate", "sampling, seeded", models=ALL)
def sampling(name: str) -> Measured:
    return _generate(name, do_sample=True, top_k=20)


@trial("generate", "assisted by a smaller model")
def assisted(name: str) -> Measured:
    assistant = build(name, seed=5, num_hidden_layers=1)

    def run(model: Any) -> list[Tensor]:
        ids = tokens(batch=1)
        settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
        mask = torch.ones_like(ids)
        return [model.generate(ids, attention_mask=mask, assistant_model=assistant, **settings)]

    return measure(build(name), run)


@trial("generate", '`cache_implementation="static"`', models=ALL)
def static_generate(name: str) -> Measured:
    return _generate(name, cache_implementation="static")


@trial("generate", '`cache_implementation="static"`, left padding', models=ALL)
def static_padded(name: str) -> Measured:
    return _generate(name, cache_implementation="static", padded=True)


@trial("generate", '`cache_implementation="quantized"` (quanto)', requires=("optimum.quanto",))
def quantized(name: str) -> Measured:
    settings = {"backend": "quanto", "nbits": 4, "q_group_size": 16, "residual_length": 64}
    return _generate(name, cache_implementation="quantized", cache_config=settings)


@trial("generate", '`cache_implementation="offloaded"`', requires=("a GPU",))
def offloaded(name: str) -> Measured:
    return _generate(name, cache_implementation="offloaded")


@trial("generate", "`prefill_chunk_size=48`", models=ALL)
def chunks(name: str) -> Measured:
    return _generate(name, prefill_chunk_size=48)


@trial("generate", '`prefill_chunk_size=48`, `cache_implementation="static"`', models=ALL)
def static_chunks(name: str) -> Measured:
    return _generate(name, prefill_chunk_size=48, cache_implementation="static")


@trial("generate", "continuous batching: `generate_batch`")
def continuous(name: str) -> Measured:
    from transformers import GenerationConfig

    config = GenerationConfig(max_new_tokens=5, do_sample=False, eos_token_id=-1, pad_token_id=0)
    prompts = [tokens(batch=1, length=n)[0].tolist() for n in (96, 40)]

    def run(model: Any) -> list[Tensor]:
        results = model.generate_batch(prompts, generation_config=config, progress_bar=False)
        ordered = sorted(results.values(), key=lambda result: -len(result.prompt_ids))
        return [torch.tensor(result.generated_tokens) for result in ordered]

    return measure(build(name), run)


@trial("generate", '`attn_implementation="sampleattn"`, without torch.compile', models=ALL)
def implementation(name: str) -> Measured:
    import sa_compile.hf as hf

    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    model, ours = build(name), build(name, "sampleattn")
    hf.configure(ours, {key: value for key, value in OPTIONS.items() if key != "inner"})
    mask = torch.ones_like(tokens())
    mask[0, :9] = 0
    with torch.no_grad():
        expected, actual = (m.generate(tokens(), attention_mask=mask, **settings) for m in (model, ours))
    return Measured(sites(hf.report(ours).compiled), largest_error([actual], [expected]))


@trial("generate", "`torch.compile(model).generate`: compiles nothing", models=("Llama",))
def wrapped_generate(name: str) -> Measured:
    model, settings = build(name), {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    mask = torch.ones_like(tokens())
    with torch.no_grad(), report.collect() as reports:
        expected = model.generate(tokens(), attention_mask=mask, **settings)
        compiled = torch.compile(model, backend="sampleattn", options=OPTIONS)
        actual = compiled.generate(tokens(), attention_mask=mask, **settings)
    return Measured(sites(reports), largest_error([actual], [expected]), "use model.compile(backend=...)")
