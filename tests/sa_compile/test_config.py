"""The options: every bad value is an error that names the option, what came and what is allowed."""

import dataclasses
import re
import warnings

import pytest

from sa_compile import SampleAttentionConfig
from sa_compile.kernels.defaults import ADAPTIVE_LANDMARKS, ADAPTIVE_PEAK


def test_the_defaults_are_the_measured_ones():
    config = SampleAttentionConfig()
    assert (config.method, config.tau) == ("adaptive", 0.2)
    assert (config.peak, config.landmarks) == (ADAPTIVE_PEAK, ADAPTIVE_LANDMARKS)
    assert (config.chunk_n, config.alpha_c, config.alpha_s) == (2, 0.95, 0.95)
    assert (config.window_blocks, config.keep_sink, config.block_q, config.block_k) == (2, True, 128, 128)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"alpha_c": 0.9}, "alpha_c=0.9 has no effect with method='adaptive': .* 'chunked' and 'stride'"),
        ({"method": "chunked", "tau": 0.3}, "tau=0.3 has no effect with method='chunked': .* 'adaptive'"),
        ({"method": "stride", "window_blocks": 3}, "window_blocks=3 has no effect with method='stride'"),
        ({"chunk_n": 3}, "chunk_n=3 has no effect with method='adaptive'"),
        ({"chunk_n": 3, "stats": True}, None),
        ({"method": "chunked", "alpha_s": 0.9, "chunk_n": 3, "window_blocks": 3, "keep_sink": False}, None),
        ({"peak": 1.0, "tau": 0.3, "landmarks": 3, "window_blocks": 3}, None),
        ({"peak": 0.2, "landmarks": 3}, None),
        ({"peak": 0.2, "tau": 0.2}, "tau=0.2 has no effect with peak=0.2: method 'adaptive' does not look"),
        ({"method": "stride", "peak": 0.2}, "peak=0.2 has no effect with method='stride': .* 'adaptive'"),
    ],
    ids=str,
)
def test_an_option_that_the_method_does_not_read_is_a_warning(options, said):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        SampleAttentionConfig.from_options(options)
    assert bool(caught) == (said is not None)
    if said:
        assert re.search(said, str(caught[0].message))


def test_every_option_says_what_it_is_for():
    assert all(field.metadata["help"].endswith(".") for field in dataclasses.fields(SampleAttentionConfig))


def test_options_with_equal_values_are_equal_and_hashable():
    options = {"alpha_c": 0.5, "inductor": {"max_autotune": True}}
    first, second = (
        SampleAttentionConfig.from_options(options),
        SampleAttentionConfig.from_options(dict(options)),
    )
    assert first == second
    assert hash(first) == hash(second)


def test_whole_numbers_are_shares_too():
    assert SampleAttentionConfig(alpha_c=1).alpha_c == 1.0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        pytest.param(
            {"alpha": 0.9}, ValueError, "unknown option 'alpha'.*known options: method, alpha_c", id="unknown"
        ),
        pytest.param(
            {"alpha_c": 0.0}, ValueError, r"'alpha_c' must be in \(0, 1\], got 0.0", id="alpha-zero"
        ),
        pytest.param(
            {"alpha_s": 1.5}, ValueError, r"'alpha_s' must be in \(0, 1\], got 1.5", id="alpha-above-one"
        ),
        pytest.param({"alpha_c": float("nan")}, ValueError, "'alpha_c'.*got nan", id="alpha-nan"),
        pytest.param({"alpha_c": "0.9"}, TypeError, "'alpha_c' must be a number.*got '0.9'", id="alpha-text"),
        pytest.param({"alpha_c": True}, TypeError, "'alpha_c' must be a number.*got True", id="alpha-bool"),
        pytest.param(
            {"method": "magic"}, ValueError, "'method' must be one of 'chunked', 'stride'", id="method"
        ),
        pytest.param({"method": 3}, TypeError, "'method' must be one of", id="method-number"),
        pytest.param({"chunk_n": 0}, ValueError, "'chunk_n' must be >= 1, got 0", id="no-chunk"),
        pytest.param({"sample_rows": -1}, ValueError, "'sample_rows' must be >= 0, got -1", id="rows"),
        pytest.param({"chunk_n": 2.0}, TypeError, "'chunk_n' must be an int >= 1, got 2.0", id="chunk-float"),
        pytest.param(
            {"block_q": 100}, ValueError, "'block_q' must be one of 16, 32, 64, 128, got 100", id="block"
        ),
        pytest.param(
            {"block_q": 64, "block_k": 128}, ValueError, "'block_k' must be at most block_q", id="wide-keys"
        ),
        pytest.param({"tau": -0.1}, ValueError, r"'tau' must be in \[0, 1\], got -0.1", id="tau-negative"),
        pytest.param({"tau": float("nan")}, ValueError, "'tau'.*got nan", id="tau-nan"),
        pytest.param({"tau": "0.2"}, TypeError, "'tau' must be a number in .0, 1., got '0.2'", id="tau-text"),
        pytest.param({"landmarks": -1}, ValueError, r"'landmarks' must be in \[0, 128\]", id="no-landmarks"),
        pytest.param(
            {"landmarks": 17, "block_k": 16},
            ValueError,
            r"'landmarks' must be in \[0, 16\], got 17",
            id="more-landmarks-than-keys",
        ),
        pytest.param({"landmarks": 4.0}, TypeError, "'landmarks' must be an int in", id="landmarks-float"),
        pytest.param({"peak": 1.5}, ValueError, r"'peak' must be in \[0, 1\], got 1.5", id="peak-above-one"),
        pytest.param({"peak": True}, TypeError, "'peak' must be a number in .*got True", id="peak-bool"),
        pytest.param(
            {"peak": 0.2, "landmarks": 0},
            ValueError,
            "option 'peak' below 1 looks at landmarks, .* got peak=0.2 with landmarks=0",
            id="peak-without-landmarks",
        ),
        pytest.param({"keep_sink": 1}, TypeError, "'keep_sink' must be a bool, got 1", id="flag-number"),
        pytest.param({"trace": 1}, TypeError, "'trace' must be a folder's path", id="trace-number"),
        pytest.param(
            {"inner": "nope"}, ValueError, "'inner' must be one of 'inductor', 'aot_eager'", id="inner"
        ),
        pytest.param({"inductor": 3}, TypeError, "'inductor' must be a dict", id="inductor-number"),
    ],
)
def test_bad_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        SampleAttentionConfig.from_options(options)


def test_options_must_be_a_dict():
    with pytest.raises(TypeError, match="options must be a dict, got list"):
        SampleAttentionConfig.from_options([("alpha_c", 0.9)])
