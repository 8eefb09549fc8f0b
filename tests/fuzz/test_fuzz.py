"""A few random graphs of tests/fuzz/graphs.py, which runs thousands: nothing wrong, nothing that fails."""

import pytest
import torch
from fuzz import graphs
from fuzz.draw import draw

SEED, COUNT = 7, 25


@pytest.fixture(scope="module")
def outcomes():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield list(graphs.run(SEED, range(COUNT)))
    torch.set_num_threads(threads)


def test_no_result_is_wrong_and_nothing_fails_that_plain_torch_compile_does(outcomes):
    failures = [graphs.describe(o) for o in outcomes if o.status in ("wrong", "crash")]
    assert not failures, "\n".join(failures)


def test_most_graphs_can_be_compared_and_each_outcome_is_among_them(outcomes):
    summary = graphs.summary(outcomes)
    assert summary["statuses"]["right"] >= 0.8 * COUNT
    assert set(summary["outcomes"]) == {"sampled", "exact", "kept"}


def test_a_case_follows_from_its_seed_and_number():
    assert draw(3, 5) == draw(3, 5)
    assert draw(3, 5) != draw(4, 5)
