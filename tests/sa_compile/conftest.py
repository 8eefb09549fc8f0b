"""Fixtures of the backend's tests."""

import pytest
import torch
from support.models import tiny_llama


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def llama():
    return tiny_llama()


@pytest.fixture
def tokens():
    return torch.randint(0, 96, (1, 64), generator=torch.Generator().manual_seed(1))
