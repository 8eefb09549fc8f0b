"""A tokenizer, a haystack and a model that the harness's tests share."""

import pytest
from support.text_model import long_text, small_model, small_tokenizer

from sa_compile.lab.eval.tasks.documents import DocumentBuilder
from sa_compile.lab.eval.tasks.haystack import Haystack, Source


@pytest.fixture(scope="session")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="session")
def haystack(tokenizer):
    return Haystack(tokenizer, [Source("words", "prose", long_text(2000))])


@pytest.fixture(scope="session")
def builder(tokenizer, haystack):
    return DocumentBuilder(tokenizer, haystack)


@pytest.fixture(scope="session")
def model(tokenizer):
    return small_model(len(tokenizer))
