"""A mask that one graph makes and another reads: read when it runs, and the attention sampled."""

import os

import pytest
import torch
import transformers
from support.everyday import left_padded
from support.models import LOSSLESS, SHAPE, tiny_llama
from torch import nn

from sa_compile import report

pytestmark = pytest.mark.filterwarnings("error:sampleattn")

OPTIONS = {**LOSSLESS, "inner": "aot_eager"}
TEXT = {**SHAPE, "head_dim": 16}
IMAGE, START_OF_IMAGE, END_OF_IMAGE = 90, 91, 92


def language_sites(reports):
    return [site for graph in reports for site in graph.sites if site.q_heads == SHAPE["num_attention_heads"]]


def check(model, compiled, inputs, outcomes=("sampled", "sampled")):
    """The compiled model's logits are the model's, and this became of its language layers."""
    with torch.no_grad():
        expected = model(**inputs).logits
        with report.collect() as reports:
            actual = compiled(model)(**inputs).logits
    seen = inputs["attention_mask"].bool()
    torch.testing.assert_close(actual[seen], expected[seen], atol=1e-4, rtol=1e-4)
    sites = language_sites(reports)
    assert tuple(site.outcome for site in sites) == outcomes
    assert "late" in {site.form for site in sites}
    return sites


def whole(model):
    return torch.compile(model, backend="sampleattn", options=OPTIONS)


def each_layer(model):
    for layer in model.model.layers:
        layer.compile(backend="sampleattn", options=OPTIONS)
    return model


def broken_between_layers(model):
    for layer in model.model.layers:
        layer.forward = torch._dynamo.disable(layer.forward, recursive=False)
    return whole(model)


def offloaded(model):
    accelerate = pytest.importorskip("accelerate")
    accelerate.cpu_offload(model, torch.device("cpu"))
    return whole(model)


@pytest.fixture
def process_group():
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="0")
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("compiled", [each_layer, broken_between_layers, offloaded])
def test_layers_in_graphs_of_their_own(compiled):
    check(tiny_llama(), compiled, left_padded("cpu", [80, 61]))


def test_attention_that_is_written_out():
    model = tiny_llama()
    model.set_attn_implementation("eager")
    sites = check(model, each_layer, left_padded("cpu", [80, 61]))
    assert {(site.spelling, site.form, site.mask) for site in sites} == {
        ("eager", "late", "causal & key_valid")
    }


def test_buckets_of_ddp(process_group):
    def in_buckets(model):
        # Dynamo cuts the graph where a bucket is full: a layer fills one.
        return whole(nn.parallel.DistributedDataParallel(model, bucket_cap_mb=1))

    check(tiny_llama(intermediate_size=6144), in_buckets, left_padded("cpu", [80, 61]))


def test_fsdp(process_group):
    def sharded(model):
        from torch.distributed.fsdp import fully_shard

        for layer in model.model.layers:
            fully_shard(layer)
        return whole(fully_shard(model))

    check(tiny_llama(), sharded, left_padded("cpu", [80, 61]))


def qwen3_vl(kind):
    position = {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [4, 2, 2],
        "mrope_interleaved": True,
    }
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
    vision |= {"patch_size": 4, "temporal_patch_size": 1, "deepstack_visual_indexes": [0]}
    tokens = {"image_token_id": IMAGE, "vision_start_token_id": START_OF_IMAGE, "video_token_id": 93}
    model_class = getattr(transformers, f"{kind}ForConditionalGeneration")
    text = {**TEXT, "rope_parameters": position, **(experts if kind.endswith("Moe") else {})}
    config = model_class.config_class(text_config=text, vision_config=vision, **tokens)
    torch.manual_seed(0)
    return model_class(config).eval()


def with_image(inputs):
    inputs["input_ids"] %= IMAGE
    inputs["input_ids"][:, 30:36] = torch.tensor([START_OF_IMAGE, *[IMAGE] * 4, END_OF_IMAGE])
    return inputs, (inputs["input_ids"] == IMAGE).long()


@pytest.mark.parametrize(
    "kind, attention", [("Qwen3VL", "sdpa"), ("Qwen3VL", "eager"), ("Qwen3VLMoe", "sdpa")]
)
def test_qwen3_vl_with_an_image(kind, attention):
    inputs, types = with_image(left_padded("cpu", [80, 71]))
    image = {"pixel_values": torch.randn(32, 48), "image_grid_thw": torch.tensor([[1, 4, 4]] * 2)}
    model = qwen3_vl(kind)
    model.set_attn_implementation(attention)
    check(model, whole, {**inputs, **image, "mm_token_type_ids": types})


def gemma3():
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 4}
    text = {**TEXT, "sliding_window": 24, "layer_types": ["full_attention", "sliding_attention"]}
    tokens = {"image_token_index": IMAGE, "boi_token_index": START_OF_IMAGE, "eoi_token_index": END_OF_IMAGE}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, **tokens
    )
    torch.manual_seed(0)
    return transformers.Gemma3ForConditionalGeneration(config).eval()


@pytest.mark.parametrize("lengths", [[80, 80], [80, 71]], ids=["whole", "padded"])
def test_gemma3_with_token_types_of_text(lengths):
    inputs = left_padded("cpu", lengths)
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    # What was sampled, and under the window exact, is known when it has run, and the report says it.
    full, sliding = check(gemma3(), whole, inputs, ("sampled", "exact"))
    padding = " & key_valid" if lengths[1] < 80 else ""
    assert (full.mask, sliding.mask) == ("causal" + padding, "causal & window(24)" + padding)
    assert sliding.reason == f"not plain causal: {sliding.mask}, read when it last ran"


@pytest.mark.parametrize("attention, kernel", [("sdpa", "sdpa"), ("eager", "")])
@pytest.mark.filterwarnings("default:sampleattn")
def test_gemma3_with_an_image_says_that_its_mask_is_not_causal(attention, kernel):
    inputs, types = with_image(left_padded("cpu", [80, 80]))
    image = {"pixel_values": torch.randn(2, 3, 16, 16), "token_type_ids": types}
    model = gemma3()
    model.set_attn_implementation(attention)
    with pytest.warns(UserWarning, match="read when it ran, is not causal"):
        sites = check(model, whole, {**inputs, **image}, ("kept", "kept"))
    assert {(site.mask, site.kernel) for site in sites} == {("not causal", kernel)}


def test_a_mask_of_the_callers_own():
    inputs = left_padded("cpu", [80, 61])
    seen = inputs["attention_mask"].bool()
    mask = torch.ones(80, 80).bool().tril() & seen[:, None, None]
    model = tiny_llama()
    with torch.no_grad():
        expected = model(inputs["input_ids"], attention_mask=mask).logits
        actual = whole(model)(inputs["input_ids"], attention_mask=mask).logits
    torch.testing.assert_close(actual[seen], expected[seen], atol=1e-4, rtol=1e-4)
