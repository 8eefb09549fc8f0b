"""Context and tensor parallel on gloo: every case of ``support`` on two ranks, and some on four."""

import pytest
from support.ranks import launched

CONTEXT_ON_TWO = (
    *("lengths", "peaks", "compiled", "left_padding", "right_padding", "windows", "sinks"),
    *("generate", "generate_compiled", "static_cache", "second_turn", "stats", "refusals", "soft_caps"),
    *("other_prompts", "local_order", "forgotten"),
    "failure",  # at the end: the ranks are out of step then
)
CONTEXT_ON_FOUR = ("lengths", "left_padding", "generate", "stats", "tensor_parallel_inside")
TENSOR = ("llama", "qwen3", "sinks", "checkpointed", "nested_regions")
ON_TWO = [f"tensor_ranks.{case}" for case in TENSOR] + [f"context_ranks.{case}" for case in CONTEXT_ON_TWO]
ON_FOUR = [f"context_ranks.{case}" for case in CONTEXT_ON_FOUR]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return launched(2, ON_TWO, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return launched(4, ON_FOUR, tmp_path_factory.mktemp("four"))


def error_of(case, ranks):
    """What the first rank that failed says."""
    return next(filter(None, (found[case] for found in ranks)), "")


@pytest.mark.parametrize("case", ON_TWO)
def test_on_two_ranks(case, two):
    assert error_of(case, two) == ""


@pytest.mark.parametrize("case", ON_FOUR)
def test_on_four_ranks(case, four):
    assert error_of(case, four) == ""
