"""In-place writes that no name tells: functions of someone else's, custom ops, regions."""

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from support.attention import allowed, full
from support.graphs import compile_with_passes
from torch import Tensor


@torch._dynamo.allow_in_graph
def let_all_through(mask):
    """Writes, though its name does not say so."""
    mask.fill_(True)
    return mask.sum()


@torch._dynamo.allow_in_graph
def count(mask):
    """Only reads."""
    return mask.sum()


@torch.library.custom_op("mylib::open_mask", mutates_args=("mask",))
def open_mask(mask: Tensor) -> None:
    """Writes, as its schema says."""
    mask.fill_(True)


def open_and_count(mask):
    mask.fill_(True)
    return mask.sum()


def open_when_checkpointed(mask):
    """Writes into the region's operand."""
    return torch.utils.checkpoint.checkpoint(open_and_count, mask, use_reentrant=False)


def open_in_branch(mask):
    """Writes into the operand of one branch."""
    return torch.cond(mask.sum() > 0, open_and_count, lambda mask: mask.sum(), (mask,))


@torch.compiler.nested_compile_region
def count_in_region(mask):
    """Writes into a tensor of its own."""
    copy = mask.clone()
    copy.fill_(True)
    return copy.sum() + mask.sum()


def attention_after(step):
    def attention(q, k, v):
        mask = allowed()
        seen = step(mask)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out if seen is None else out + seen

    return attention


@pytest.mark.parametrize(
    "step", [let_all_through, open_mask, torch.ops.mylib.open_mask, torch.ops.mylib.open_mask.default]
)
def test_a_write_into_the_mask_is_seen(step):
    (record,) = compile_with_passes(attention_after(step), *full()).records
    assert record.outcome == "kept" and "in-place" in record.reason


NOT_WRITTEN_BY_BRANCHES = pytest.mark.skipif(
    torch.torch_version.TorchVersion(torch.__version__) < "2.13", reason="Dynamo refuses branches that write"
)


@pytest.mark.parametrize(
    "step", [open_when_checkpointed, pytest.param(open_in_branch, marks=NOT_WRITTEN_BY_BRANCHES)]
)
def test_a_region_that_writes_into_the_mask_is_seen(step):
    (record,) = compile_with_passes(attention_after(step), *full()).records
    assert record.outcome == "kept" and "in-place" in record.reason


@pytest.mark.parametrize("step", [count, count_in_region])
def test_what_only_reads_the_mask_stands_in_no_way(step):
    (record,) = compile_with_passes(attention_after(step), *full()).records
    assert record.outcome == "sampled"


def test_a_vmapped_write_into_the_mask_is_seen():
    def attention(q, k, v):
        mask = allowed()
        torch.func.vmap(lambda row: row.fill_(True))(mask)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    (record,) = compile_with_passes(attention, *full()).records
    assert record.outcome == "kept"


@torch._dynamo.allow_in_graph
def places(mask):
    """How many there are is known from the data only."""
    return mask.nonzero()


def test_a_function_whose_sizes_depend_on_data_compiles():
    def attention(q, k, v, mask):
        found = places(mask)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True), found

    tensors = (*full(), torch.rand(8) > 0.5)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(attention, backend="sampleattn", options={"inner": "aot_eager"})
        with torch.no_grad():
            for one, other in zip(compiled(*tensors), attention(*tensors), strict=True):
                torch.testing.assert_close(one, other)
