"""The CPU kernels of every instruction set that this machine has agree with the oracle."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = """
import torch
from sa_compile.kernels import ops
from sa_compile.kernels.select_adaptive.op import Arguments as Adaptive
from sa_compile.kernels.select_budget.op import Arguments
from sa_compile.kernels.select_peaks.op import Arguments as Peaks
from support.implementations import reference
from support.attention_inputs import Case, assert_as_good_as_sdpa, make_inputs
from sa_compile.kernels.select_budget_rest.op import Arguments as RestArguments
from support.budget_oracle import assert_equals_the_oracle, assert_rest_equals_the_oracle
from support.landmark_selection import assert_peaks_equal_the_oracles, assert_shares_equal_the_oracles
from support.landmark_selection import selection, unpacked
base = Case(heads=4, kv_heads=2, q_len=150, kv_len=150, batch=2)
for case in (
    base,
    base.but(block_q=128, block_k=128, head_dim=64, value_head_dim=80),
    base.but(
        block_q=16, block_k=16, head_dim=20, value_head_dim=24, dtype=torch.bfloat16, segments="left_padding"
    ),
    base.but(block_q=64, block_k=64, value_head_dim=48, dtype=torch.float16, window=30),
    base.but(block_q=32, block_k=16, q_len=400, kv_len=400),
    base.but(block_q=64, block_k=32, segments="packed"),
):
    inputs = make_inputs(case)
    out, lse = ops.block_sparse_attention_op(*inputs.attention_arguments(case))
    assert_as_good_as_sdpa(out, lse, case, inputs)
    if case.segments != "packed":
        rest = (inputs.key_segment, case.scale, 0, 2, 20, case.block_k)
        for got, exact in zip(
            ops.sample_scores_op(inputs.query, inputs.key, *rest),
            reference.sample_scores(inputs.query, inputs.key, *rest),
        ):
            torch.testing.assert_close(got.double(), exact, rtol=0, atol=3e-6)
        first = (x if x is None else x[:1] for x in (inputs.query, inputs.key, inputs.key_segment))
        budget = Arguments(*first, case.scale, 0, case.block_q, case.block_k, 0.05, 0.4, 8, True, 1)
        assert_equals_the_oracle(unpacked(ops.select_budget_op(*budget), case), budget)
        for peak in (0.1, 0.5):
            given = selection(Peaks, case, inputs, peak)
            assert_peaks_equal_the_oracles(unpacked(ops.select_peaks_op(*given), case), given)
            given = selection(Adaptive, case, inputs, peak)
            assert_shares_equal_the_oracles(unpacked(ops.select_adaptive_op(*given), case), given)
        given = RestArguments(*budget[:2], inputs.value[:1], inputs.block_mask[:1, :1], *budget[2:])
        given = given._replace(budget=0.5, tau=9.0)
        found = ops.select_budget_rest_op(*given)
        assert_rest_equals_the_oracle(found, given)
        parts = (*given[:3], *found, given.key_segment, None, case.scale, 1.0, 0, case.block_q, case.block_k)
        out, lse = ops.block_rest_attention_op(*parts)
        exact, exact_lse = reference.block_rest_attention(*parts)
        rounding = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.003}[case.dtype]
        assert (out.double() - exact).abs().max() <= rounding
        torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=1e-5)
"""
# Higher ones are what the other tests use where the machine has them.
LIMITS = ["default", "avx2"] if torch.backends.cpu.get_cpu_capability().startswith("AVX") else ["default"]


@pytest.mark.parametrize("limit", LIMITS)
def test_instruction_set_agrees_with_the_oracle(limit):
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": limit, "PYTHONPATH": str(tests)}
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, env=environment, cwd=tests)
