"""What everyday use asks of a compiled model, as checks that run on any device."""

import copy
import pickle
import threading

import pytest
import torch
from support.models import LOSSLESS, SMALL_BLOCKS, tiny_llama
from transformers import DynamicCache

from sa_compile import SampleAttentionConfig, report

GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 4e-3}


def model_on(device, dtype=torch.float32, **overrides):
    """A tiny Llama of one layer; on a GPU with a head_dim that its kernels take."""
    hidden = 64 if device == "cpu" else 256
    return tiny_llama(hidden_size=hidden, num_hidden_layers=1, **overrides).to(device, dtype)


def options_for(device, inner, **changes):
    """Lossless options with the block sizes that the device's kernels take."""
    blocks = SMALL_BLOCKS if device == "cpu" else {"block_q": 128, "block_k": 128, "min_seq_len": 256}
    return {**LOSSLESS, **blocks, "inner": inner, **changes}


def prompt(device, length=300, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 96, (batch, length), generator=generator).to(device)


def left_padded(device, lengths):
    width = max(lengths)
    mask = torch.tensor([[0] * (width - n) + [1] * n for n in lengths], device=device)
    return {"input_ids": prompt(device, width, len(lengths)) * mask, "attention_mask": mask}


def close(actual, expected, dtype=None):
    """Equal up to the rounding of a model of ``dtype``, by default that of the tensors."""
    tolerance = TOLERANCE[dtype or expected.dtype]
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


class EverydayUse:
    """Subclasses say on which ``device`` and with which ``inner`` backend."""

    device: str
    inner: str

    def compiled(self, model, **changes):
        options = options_for(self.device, **{"inner": self.inner, **changes})
        model.compile(backend="sampleattn", options=options)
        return model

    @pytest.mark.parametrize(
        "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"]
    )
    @torch.inference_mode()
    def test_every_dtype_under_inference_mode(self, dtype):
        if self.device != "cpu" and dtype == torch.float32:
            pytest.skip("float32 on CUDA stays with PyTorch")
        model, tokens = model_on(self.device, dtype), prompt(self.device)
        expected = model(tokens, logits_to_keep=8).logits
        with report.collect() as reports:
            actual = self.compiled(model)(tokens, logits_to_keep=8).logits
        close(actual, expected)
        assert {site.outcome for graph in reports for site in graph.sites} == {"sampled"}

    @pytest.mark.parametrize("cache", ["dynamic", "static"])
    @pytest.mark.parametrize("chunk", [None, 150], ids=["whole", "chunked-prefill"])
    def test_generate_for_a_left_padded_batch(self, cache, chunk):
        dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        inputs = left_padded(self.device, [300, 180, 260])
        settings = {**GREEDY, "cache_implementation": cache, "output_logits": True}
        settings |= {"return_dict_in_generate": True} | ({"prefill_chunk_size": chunk} if chunk else {})
        model = model_on(self.device, dtype)
        expected = model.generate(**inputs, **settings).logits[0]
        actual = self.compiled(model).generate(**inputs, **settings).logits[0]
        close(actual, expected, dtype)  # generate returns logits in float32 whatever the model computes in

    @torch.no_grad()
    def test_two_models_with_different_options_in_one_process(self):
        dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        tokens = prompt(self.device, 1024)
        expected = model_on(self.device, dtype)(tokens, logits_to_keep=8).logits
        dense = self.compiled(model_on(self.device, dtype))
        selective = {"peak": 1.0, "tau": 1.0, "budget": 1.0, "window_blocks": 1, "last_rows": 0}
        sparse = self.compiled(model_on(self.device, dtype), **selective)
        for _ in range(2):
            close(dense(tokens, logits_to_keep=8).logits, expected)
            difference = sparse(tokens, logits_to_keep=8).logits - expected
            assert (
                difference.abs().max() > 10 * (dense(tokens, logits_to_keep=8).logits - expected).abs().max()
            )

    @torch.no_grad()
    def test_several_threads_call_one_compiled_model(self):
        dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        model = model_on(self.device, dtype)
        prompts = [prompt(self.device, 300, seed=seed) for seed in range(6)]
        expected = [model(tokens).logits for tokens in prompts]
        self.compiled(model, stats=True)
        model(prompts[0])
        actual, errors = {}, []

        @torch.no_grad()
        def call(number):
            try:
                for _ in range(3):
                    actual[number] = model(prompts[number]).logits
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=call, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        for number, wanted in enumerate(expected):
            close(actual[number], wanted)

    @pytest.mark.parametrize(
        "copied",
        [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))],
        ids=["deepcopy", "pickle"],
    )
    @torch.no_grad()
    def test_options_and_compiled_models_can_be_copied(self, copied):
        config = SampleAttentionConfig(alpha_c=0.5, inductor={"max_autotune": False})
        assert copied(config) == config
        model, tokens = model_on(self.device), prompt(self.device)
        expected = model(tokens).logits
        self.compiled(model)(tokens)
        close(copied(model)(tokens).logits, expected)

    @torch.no_grad()
    def test_a_call_that_runs_out_of_memory_leaves_the_next_one_working(self):
        model, tokens = model_on(self.device), prompt(self.device)
        expected = model(tokens).logits
        self.compiled(model)
        model(tokens)

        def run_out(module, args):
            raise torch.OutOfMemoryError("Tried to allocate")

        huge = prompt(self.device, 310)
        hook = model.lm_head.register_forward_pre_hook(run_out)
        with pytest.raises(Exception, match="Tried to allocate"):
            model(huge)
        hook.remove()
        close(model(tokens).logits, expected)
        close(model(huge).logits[:, :300], model(huge[:, :300]).logits)

    @torch.no_grad()
    def test_prompts_of_random_lengths_cost_at_most_three_prefill_graphs(self):
        # Sampled prompts of fewer and of more than 32 key blocks, which one word of the index would hold.
        threshold, inner = (256, "aot_eager") if self.device == "cpu" else (2048, self.inner)
        generator = torch.Generator().manual_seed(2)
        lengths = [*torch.randint(2, 4 * threshold, (49,), generator=generator).tolist(), 2 * threshold]
        dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        model = self.compiled(model_on(self.device, dtype), min_seq_len=threshold, inner=inner)
        with report.collect() as reports:
            for length in lengths:
                model(prompt(self.device, length), past_key_values=DynamicCache(), logits_to_keep=1)
        prefills = [graph for graph in reports if graph.sites]
        assert len(prefills) <= 3
        assert {site.outcome for graph in prefills for site in graph.sites} == {"sampled", "exact"}

    @torch.no_grad()
    def test_exporting_a_compiled_model_exports_the_model(self):
        model, tokens = model_on(self.device, use_cache=False), prompt(self.device, 64)
        expected = model(tokens).logits
        self.compiled(model)
        program = torch.export.export(model, (tokens,), strict=False)
        targets = {str(node.target) for node in program.graph.nodes}
        assert not any("sampleattn" in target for target in targets)
        close(program.module()(tokens).logits, expected)

    @torch.no_grad()
    def test_accelerates_hooks(self):
        accelerate = pytest.importorskip("accelerate")
        model, tokens = model_on(self.device), prompt(self.device)
        expected = model(tokens).logits
        accelerate.dispatch_model(model, {"": self.device}, force_hooks=True)
        close(self.compiled(model)(tokens).logits, expected)
