"""Lengths on command lines and in tables."""

import argparse

import pytest

from sa_compile.lab.tokens import length_from, length_text, lengths_from


@pytest.mark.parametrize(
    "text, length", [("1", 1), ("4096", 4096), ("8K", 8192), ("3k", 3072), ("2M", 2 << 20)]
)
def test_a_length_is_a_number_or_one_with_k_or_m(text, length):
    assert length_from(text) == length


@pytest.mark.parametrize("text", ["", "0", "K", "-8K", "8.5K", "8G", "8 K", "²"])
def test_anything_else_is_an_error_that_says_what_came(text):
    with pytest.raises(argparse.ArgumentTypeError, match="a length must be a number"):
        length_from(text)


def test_several_lengths_are_separated_by_commas():
    assert lengths_from("512,8K,1M") == [512, 8192, 1 << 20]


@pytest.mark.parametrize(
    "length, text",
    [(512, "512"), (1024, "1K"), (1500, "1500"), (131072, "128K"), (1 << 20, "1M"), (1536 << 10, "1536K")],
)
def test_a_length_is_shown_exactly(length, text):
    assert length_text(length) == text
    assert length_from(text) == length
