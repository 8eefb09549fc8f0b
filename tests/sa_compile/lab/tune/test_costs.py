"""Predicted time is selection and the block-sparse op's at a density, summed over the model's attentions."""

import pytest
import torch

from sa_compile.fingerprint import AttentionKind
from sa_compile.kernels.shared.blocks import pack_bits, unpack_bits
from sa_compile.lab.tune import costs
from sa_compile.lab.tune.space import FAMILIES, candidates

TRIED = list(candidates(FAMILIES, [(32, 32), (32, 16)]))
KINDS = (AttentionKind(4, 2, 16, 16, "float32", count=3), AttentionKind(2, 2, 8, 24, "bfloat16", count=2))


def test_the_prediction_is_linear_in_the_density():
    first = TRIED[0]
    known = costs.LengthCosts(256, 9.0, {"32x32": 5.0}, {first.timed_as: 0.5}, {"32x32": 1.0})
    assert [known.predict(first, density) for density in (0.0, 0.2, 1.0)] == pytest.approx([1.5, 2.3, 5.5])


@pytest.mark.parametrize("each", [0.0, 1.0, 3.0])
def test_what_the_op_takes_at_any_density_is_found(each, monkeypatch):
    """An op that takes 2 ms and ``each`` ms times the share of the blocks that it keeps."""

    def by_density(run, device):
        if getattr(run, "func", None) is not costs.ops.block_sparse_attention:
            return 0.0
        kept, every = (unpack_bits(mask, 8).sum() for mask in (run.args[3], causal))
        return 2.0 + each * float(kept / every)

    causal = pack_bits(torch.ones(8, 8, dtype=torch.bool).tril().expand(1, 4, 8, 8))
    monkeypatch.setattr(costs, "milliseconds", by_density)
    measured = costs.measure_costs(256, KINDS[:1], TRIED[:1], torch.device("cpu"))
    assert measured.block_ms == pytest.approx({"32x32": 3 * (2.0 + each)})
    assert measured.floor_ms == pytest.approx({"32x32": 3 * 2.0})


def test_every_op_is_timed_for_every_kind_as_often_as_the_model_has_it(monkeypatch):
    shapes = []

    def one_millisecond(run, device):
        out = run()
        if not isinstance(out, costs.prefill.Kept):
            shapes.append(tuple((out[0] if isinstance(out, tuple) else out).shape))
        return 1.0

    monkeypatch.setattr(costs, "milliseconds", one_millisecond)
    measured = costs.measure_costs(256, KINDS, TRIED, torch.device("cpu"))
    assert measured.dense_ms == 3 + 2
    assert measured.block_ms == measured.floor_ms == {"32x32": 5.0, "32x16": 5.0}
    assert measured.selection_ms == dict.fromkeys((c.timed_as for c in TRIED), 5.0)
    assert (1, 4, 256, 16) in shapes and (1, 2, 256, 24) in shapes


@pytest.mark.parametrize(
    "method, means, counted", [("adaptive", 1, 1), ("adaptive", 0, 1), ("chunked", 0, 0)]
)
def test_what_is_paid_at_any_density_includes_what_all_blocks_count_for(method, means, counted, monkeypatch):
    masks = []
    real = costs.prefill.over_blocks

    def notes(attention, config, kept):
        masks.append(kept.block_mask)
        assert (kept.rest is None) == bool(means)
        return real(attention, config, kept)

    monkeypatch.setattr(costs.prefill, "over_blocks", notes)
    tried = [c for c in TRIED if c.family.method == method and c.config.means == means][:1]
    assert tried
    monkeypatch.setattr(costs, "milliseconds", lambda run, device: float(run() is not None))
    costs.measure_costs(256, KINDS[:1], tried, torch.device("cpu"))
    assert len(masks) == counted and not any(mask.any() for mask in masks)


def test_times_are_medians_after_a_call_that_does_not_count(monkeypatch):
    clock = iter([0, 5, 10, 11, 20, 22])
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(clock))
    calls = []
    assert costs.milliseconds(lambda: calls.append(1), torch.device("cpu"), repeats=3) == 2000
    assert len(calls) == 4
