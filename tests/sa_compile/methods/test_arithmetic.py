"""From options to the arguments of ops: shares are rounded up, windows counted in key blocks."""

import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from sa_compile.config import SampleAttentionConfig
from sa_compile.methods import Forced
from sa_compile.methods.stride import share_of, window_slashes


@settings(deadline=None)
@given(length=st.integers(1, 10**6), share=st.integers(1, 100))
def test_stride_samples_the_share_of_rows_rounded_up(length, share):
    config = SampleAttentionConfig(method="stride", r_row=share / 100, r_w=share / 100)
    slashes = window_slashes(config.r_w, sympy.Integer(length), config.block_k)
    rows = -(-length * share // 100)
    assert share_of(config.r_row, sympy.Integer(length)) == rows
    assert (slashes - 1) * config.block_k >= rows - 1 > (slashes - 2) * config.block_k


@settings(deadline=None)
@given(q=st.sampled_from([16, 32, 64, 128]), k=st.sampled_from([16, 32, 64, 128]), window=st.integers(1, 8))
def test_a_window_is_counted_in_query_blocks(q, k, window):
    if k > q:
        return
    config = SampleAttentionConfig(method="chunked", block_q=q, block_k=k, window_blocks=window)
    assert Forced.of(config).window_slashes * k == window * q
