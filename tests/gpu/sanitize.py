"""A small grid of every op on one kernel, to be run under compute-sanitizer.

    PYTHONPATH=tests PYTORCH_NO_CUDA_MEMORY_CACHING=1 \\
        compute-sanitizer --tool memcheck python tests/gpu/sanitize.py cuda_sm90

Nothing is compiled by torch. Results are compared with PyTorch's on the CPU, so that the sanitizer sees no
kernels but ours and a few of torch's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from gpu import attention_cases
from gpu.attention_cases import BASE, Case, Inputs
from support.implementations import eager

from sa_compile.kernels import ops
from sa_compile.kernels.choice import (
    CUDA_ADAPTIVE_HEAD_DIMS,
    CUDA_HEAD_DIMS,
    CUDA_REST_HEAD_DIMS,
    KERNELS,
    preferring,
)
from sa_compile.kernels.shared import blocks

SMALL = BASE.with_(q_len=200, kv_len=200, heads=2, kv_heads=1)
CASES = {
    "ragged": SMALL.with_(q_len=333, kv_len=333, layout="bshd"),
    "chunked_prefill": SMALL.with_(kv_len=500, q_offset=300),
    "window": SMALL.with_(window=70, density=1.0),
    "padding": SMALL.with_(segments="left_padding", batch=2),
    "packed": SMALL.with_(q_len=450, kv_len=450, segments="packed", density=1.0),
    "odd_rows": SMALL.with_(layout="odd_rows"),
    "no_blocks": SMALL.with_(density=0.0),
}


def grid() -> Iterator[tuple[str, Case]]:
    """Every mask at head dim 128, and one mask with every other head dim, for both widths of key blocks."""
    for block_k in (64, 128):
        for name, case in CASES.items():
            yield f"{name}, block_k {block_k}", case.with_(block_k=block_k)
        for head_dim, value_head_dim in CUDA_HEAD_DIMS:
            case = CASES["padding"].with_(head_dim=head_dim, value_head_dim=value_head_dim, block_k=block_k)
            yield f"padding, head dims {head_dim}/{value_head_dim}, block_k {block_k}", case


def on_device(inputs: Inputs, case: Case) -> list:
    """The op's arguments with every tensor on the GPU, strides kept."""
    moved = []
    for argument in inputs.arguments(case):
        if isinstance(argument, torch.Tensor):
            storage = argument.as_strided(
                (argument.untyped_storage().nbytes() // argument.itemsize,), (1,), 0
            )
            argument = storage.cuda().as_strided(argument.shape, argument.stride(), argument.storage_offset())
        moved.append(argument)
    return moved


def check_attention() -> None:
    """``block_sparse_attention`` over the grid."""
    for number, (name, case) in enumerate(grid()):
        inputs = attention_cases.random_inputs(case, "cpu", seed=number)
        out, lse = ops.block_sparse_attention_op(*on_device(inputs, case))
        expected, expected_lse = eager.block_sparse_attention(*inputs.arguments(case))
        torch.testing.assert_close(out.cpu(), expected, atol=2e-2, rtol=2e-2, msg=name)
        torch.testing.assert_close(lse.cpu(), expected_lse, atol=1e-2, rtol=1e-2)
        print(name, flush=True)


def _padding(length: int, left: tuple[int, int], right: tuple[int, int]) -> torch.Tensor:
    """Key segments of two prompts, with so many keys of padding on either side."""
    place = torch.arange(length)
    hidden = place < torch.tensor(left)[:, None], place >= length - torch.tensor(right)[:, None]
    return torch.where(hidden[0] | hidden[1], -1, 0).int()


def check_sampling() -> None:
    """``sample_scores``, ``select_blocks`` and ``mask_blocks``, with padding and without."""
    query, key = torch.randn(2, 2, 300, 64).bfloat16(), torch.randn(2, 1, 300, 64).bfloat16()
    padding = _padding(300, left=(70, 0), right=(0, 90))
    for segment in (None, padding):
        moved = None if segment is None else segment.cuda()
        scores = ops.sample_scores(query.cuda(), key.cuda(), key_segment=moved)
        expected = eager.sample_scores(query, key, segment, 64**-0.5, 0, 2, 128, 128)
        torch.testing.assert_close([x.cpu() for x in scores], list(expected), atol=1e-3, rtol=1e-2)
        ops.select_blocks(*scores, q_len=300, kv_len=300, key_segment=moved)
        ops.mask_blocks(query.cuda(), key.cuda(), key_segment=moved, window=100)
        print("sampling", "plain" if segment is None else "padded", flush=True)


def check_adaptive() -> None:
    """Both ops of method C, with padding and without: blocks of random inputs, few of which are near tau."""
    _check_landmarks("adaptive", ops.select_adaptive, 700, ((64, 7), (128, 15)))


def check_peaks() -> None:
    """``select_peaks`` likewise, at every head dim, where eight blocks come before some rows' own."""
    dims = (dim for dim, _ in CUDA_ADAPTIVE_HEAD_DIMS)
    _check_landmarks("peaks", ops.select_peaks, 1300, ((dim, 7 if dim % 128 else 15) for dim in dims))


def _check_landmarks(name: str, select: Callable, length: int, sizes: Iterable[tuple[int, int]]) -> None:
    for dim, landmarks in sizes:
        query, key = torch.randn(2, 4, length, dim).bfloat16() * 2, torch.randn(2, 2, length, dim).bfloat16()
        padding = torch.where(torch.arange(length) < torch.tensor([[200], [0]]), -1, 0).int()
        for segment in (None, padding):
            moved = None if segment is None else segment.cuda()
            sinks = None if segment is None else torch.linspace(-1.0, 4.0, 4)
            terms = ops.block_representatives(key, key_segment=segment, landmarks=landmarks)
            on_device = ops.block_representatives(key.cuda(), key_segment=moved, landmarks=landmarks)
            assert torch.equal(on_device[0][:, :, 1:].cpu(), terms[0][:, :, 1:])
            of_device = {"key_segment": moved, "sinks": None if sinks is None else sinks.cuda()}
            found = select(query.cuda(), key.cuda(), on_device, **of_device)
            expected = select(query, key, terms, key_segment=segment, sinks=sinks)
            masks = (blocks.unpack_bits(mask, -(-length // 128)) for mask in (found.cpu(), expected))
            assert torch.ne(*masks).float().mean() < 0.02
            print(name, dim, landmarks, "plain" if segment is None else "padded", flush=True)


def check_means() -> None:
    """``block_mean_attention`` at every head dim, padded and not, ragged and after a first chunk."""
    for dims in CUDA_HEAD_DIMS:
        for name in ("ragged", "chunked_prefill", "padding", "odd_rows", "no_blocks"):
            case = CASES[name].with_(head_dim=dims[0], value_head_dim=dims[1])
            inputs = attention_cases.random_inputs(case, "cpu", seed=sum(dims))
            out, lse = ops.block_mean_attention_op(*_of_means(on_device(inputs, case)))
            expected, expected_lse = ops.block_mean_attention_op(*_of_means(inputs.arguments(case)))
            torch.testing.assert_close(out.cpu(), expected, atol=2e-2, rtol=2e-2, msg=name)
            torch.testing.assert_close(lse.cpu(), expected_lse, atol=1e-2, rtol=1e-2)
        print("means", *dims, flush=True)


def _of_means(arguments: Sequence) -> tuple:
    """Those of block_sparse_attention's arguments that block_mean_attention has."""
    query, key, value, mask, _, segment, sinks, scale, _, q_offset, _, block_q, block_k = arguments
    return query, key, value, mask, segment, sinks, scale, q_offset, block_q, block_k


SINKS = {"ragged": "none", "padding": "a_head"}


def check_rest() -> None:
    """``select_budget_rest`` and ``block_rest_attention`` at every head dim of theirs, padded and ragged."""
    for dims in CUDA_REST_HEAD_DIMS:
        for name in SINKS:
            case = CASES[name].with_(head_dim=dims[0], value_head_dim=dims[1], density=0.3, sinks=SINKS[name])
            inputs = attention_cases.random_inputs(case, "cpu", seed=sum(dims))
            found, expected = _with_a_rest(on_device(inputs, case)), _with_a_rest(inputs.arguments(case))
            for tensor, wanted in zip(found, expected, strict=True):
                torch.testing.assert_close(tensor.cpu(), wanted, atol=2e-2, rtol=2e-2, msg=name)
        print("rest", *dims, flush=True)


def _with_a_rest(arguments: Sequence) -> tuple[torch.Tensor, ...]:
    """What both ops give where bounds keep nothing: no share is near one."""
    query, key, value, mask, _, segment, sinks, *_ = arguments
    of_keys = {"key_segment": segment, "sinks": sinks}
    bounds = {"budget": 10.0, "tau": 9.0, "keep_sink": False, "window_slashes": 1}
    chosen = ops.select_budget_rest(query, key, value, mask, **of_keys, **bounds)
    return *chosen, *ops.block_rest_attention(query, key, value, *chosen, **of_keys)


CHECKS = {
    "attention": check_attention,
    "sampling": check_sampling,
    "adaptive": check_adaptive,
    "peaks": check_peaks,
    "means": check_means,
    "rest": check_rest,
}


def main() -> None:
    """Run the grid; an AssertionError shows a wrong result, the sanitizer what it finds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("kernel", choices=[name for name in KERNELS if name != "pytorch"])
    parser.add_argument("--ops", nargs="+", choices=list(CHECKS), default=list(CHECKS))
    chosen = parser.parse_args()
    only = (chosen.kernel,) if chosen.kernel == "triton" else (chosen.kernel, "pytorch")
    for name in chosen.ops:
        with preferring(*(only[:1] if name == "attention" else only)):
            CHECKS[name]()
    torch.cuda.synchronize()
    print("done")


if __name__ == "__main__":
    main()
