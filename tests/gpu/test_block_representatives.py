"""The CUDA kernel of ``block_representatives`` against the oracle."""

from __future__ import annotations

import pytest
import torch
from support.implementations import reference
from torch import Tensor

from sa_compile.kernels import choice, ops
from sa_compile.kernels.choice import Call, preferring

ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@pytest.fixture
def kernel(cuda: str):
    """The device, with the kernel preferred; skips where it cannot run."""
    call = Call("block_representatives", torch.device(cuda), torch.bfloat16, (128, 128), representatives=8)
    if not choice.fits("cuda_sm90", call):
        pytest.skip("needs the CUDA library and a GPU that it is for")
    with preferring("cuda_sm90"):
        yield cuda


def keys(kv_len: int, dim: int, dtype: torch.dtype, layout: str, device: str) -> Tensor:
    """[3, 2, kv_len, dim] with blocks that share a direction, which landmarks leave after the first."""
    generator = torch.Generator(device).manual_seed(kv_len + dim)
    shape = (3, kv_len, 2, dim) if layout == "bshd" else (3, 2, kv_len, dim)
    key = torch.randn(shape, generator=generator, device=device)
    key[..., 0] += 6.0
    return (key.transpose(1, 2) if layout == "bshd" else key).to(dtype)


@pytest.mark.parametrize("landmarks", [7, 15])
@pytest.mark.parametrize("dim", [64, 96, 128, 192, 256])
@pytest.mark.parametrize("dtype", ROUNDING, ids=["bf16", "fp16"])
@pytest.mark.parametrize(
    "kv_len, layout, padding",
    [
        pytest.param(640, "bhsd", "none", id="whole blocks"),
        pytest.param(1029, "bshd", "none", id="five keys in the last block"),
        pytest.param(700, "bshd", "left", id="left padding"),
        pytest.param(700, "bhsd", "right", id="right padding"),
        pytest.param(3, "bhsd", "none", id="three keys"),
    ],
)
def test_equals_the_oracle(
    kv_len: int, layout: str, padding: str, dtype: torch.dtype, dim: int, landmarks: int, kernel: str
) -> None:
    key, segment = keys(kv_len, dim, dtype, layout, kernel), None
    if padding != "none":
        count = torch.tensor([[0], [300], [129]], device=kernel)
        place = torch.arange(kv_len, device=kernel)
        hidden = place < count if padding == "left" else place >= kv_len - count
        key = key.masked_fill(hidden[:, None, :, None], float("nan"))
        segment = torch.where(hidden, -1, 0).int()
    found = ops.block_representatives_op(key, segment, 128, landmarks)
    on_cpu = None if segment is None else segment.cpu()
    expected = reference.block_representatives(key.cpu(), on_cpu, 128, landmarks)
    assert torch.equal(found[0][:, :, 1:].cpu().double(), expected[0][:, :, 1:])
    rounding = {"rtol": 1.01 * ROUNDING[dtype], "atol": 1e-5}
    torch.testing.assert_close(found[0][:, :, 0].cpu().double(), expected[0][:, :, 0], **rounding)
    for terms, exact in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(terms.cpu().double(), exact, rtol=1e-4, atol=1e-5)


def test_no_keys_is_no_error(kernel: str) -> None:
    empty = torch.empty(1, 2, 0, 64, dtype=torch.bfloat16, device=kernel)
    assert [x.shape[3] for x in ops.block_representatives(empty, landmarks=7)] == [0, 0, 0]
