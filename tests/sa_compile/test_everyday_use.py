"""Everyday use on the CPU; tests/gpu has the same on a GPU, through Inductor."""

from support.everyday import EverydayUse


class TestOnTheCpu(EverydayUse):
    device = "cpu"
    inner = "eager"
