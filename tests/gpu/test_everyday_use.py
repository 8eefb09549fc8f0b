"""Everyday use on a GPU, through Inductor: what tests/sa_compile does on the CPU, and CUDA's own matters."""

import pytest
import torch
from support.everyday import EverydayUse, close, model_on, options_for, prompt


@pytest.fixture(autouse=True)
def fresh_dynamo(cuda):
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class TestOnCuda(EverydayUse):
    device = "cuda"
    inner = "inductor"

    @pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune-no-cudagraphs"])
    @torch.no_grad()
    def test_inductors_modes(self, mode):
        model, tokens = model_on("cuda", torch.bfloat16), prompt("cuda", 5000)
        expected = model(tokens, logits_to_keep=8).logits
        compiled = torch.compile(model, backend="sampleattn", mode=mode)
        for _ in range(3):
            actual = compiled(tokens, logits_to_keep=8).logits.clone()
        assert (actual - expected).norm() < 0.1 * expected.norm()

    @torch.no_grad()
    def test_streams_do_not_disturb_each_other(self):
        model = model_on("cuda", torch.bfloat16)
        prompts = [prompt("cuda", 600, seed=seed) for seed in range(4)]
        expected = [model(tokens).logits for tokens in prompts]
        self.compiled(model)(prompts[0])
        streams = [torch.cuda.Stream() for _ in prompts]
        torch.cuda.synchronize()
        actual = []
        for stream, tokens in zip(streams, prompts, strict=True):
            with torch.cuda.stream(stream):
                actual.append(model(tokens).logits)
        torch.cuda.synchronize()
        for found, wanted in zip(actual, expected, strict=True):
            close(found, wanted)

    @torch.no_grad()
    def test_a_real_out_of_memory_leaves_the_next_call_working(self):
        model, tokens = self.compiled(model_on("cuda", torch.bfloat16)), prompt("cuda", 600)
        expected = model(tokens).logits
        free, _ = torch.cuda.mem_get_info()
        with pytest.raises(torch.OutOfMemoryError):
            hog = torch.empty(int(0.98 * free), dtype=torch.uint8, device="cuda")
            model(prompt("cuda", 600, batch=4096))
        hog = None
        torch.cuda.empty_cache()
        assert hog is None
        close(model(tokens).logits, expected)

    @torch.no_grad()
    def test_sampling_does_not_wait_for_the_device(self):
        model, tokens = self.compiled(model_on("cuda", torch.bfloat16)), prompt("cuda", 600)
        model(tokens)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(tokens)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @torch.no_grad()
    def test_without_compiling(self):
        import sa_compile.hf

        model, tokens = model_on("cuda", torch.bfloat16), prompt("cuda", 600, batch=2)
        mask = torch.ones_like(tokens)
        mask[1, :200] = 0
        expected = model(tokens, attention_mask=mask).logits[mask.bool()]
        model.set_attn_implementation("sampleattn")
        options = {k: v for k, v in options_for("cuda", "eager").items() if k != "inner"}
        sa_compile.hf.configure(model, options)
        close(model(tokens, attention_mask=mask).logits[mask.bool()], expected)
        assert {site.outcome for site in sa_compile.hf.report(model).sites} == {"sampled"}
