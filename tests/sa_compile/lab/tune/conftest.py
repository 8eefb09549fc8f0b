"""A small model on disk with text to calibrate on."""

import pytest
import torch
from support.text_model import long_text, small_model, small_tokenizer


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A saved model and a text file beside it."""
    path = tmp_path_factory.mktemp("model")
    tokenizer = small_tokenizer()
    small_model(len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "words.txt").write_text(long_text(1500))
    return path
