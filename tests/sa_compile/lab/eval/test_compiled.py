"""The harness's rules are what compiled models run: same blocks, same stats, same outputs."""

import pytest
import torch
from support import compiled_stats


@pytest.mark.parametrize("spec, options, where", compiled_stats.CASES)
def test_compiled_stats_and_logits_equal_the_harness(model, spec, options, where):
    tokens = torch.randint(2, 300, (1, 208), generator=torch.Generator().manual_seed(0))
    harness, compiled = compiled_stats.measure(model, tokens, spec, options, where, 16, "eager")
    torch.testing.assert_close(compiled[0], harness[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(compiled[1], harness[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(compiled[2], harness[2], rtol=0, atol=1e-4)
    assert harness[1].shape == (2, 4) and (harness[1] > 0).all() and (harness[1] < 1).all()
