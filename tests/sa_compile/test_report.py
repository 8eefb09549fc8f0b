"""Collectors of reports: which of those that are open gets the report of a graph."""

import threading

import torch
import torch.nn.functional as F
from support.models import LOSSLESS

import sa_compile
from sa_compile.report import collect

OPTIONS = {**LOSSLESS, "inner": "eager"}


def attention(x, scale):
    return F.scaled_dot_product_attention(x, x, x, is_causal=True, scale=scale)


@torch.no_grad()
def compile_one(scale=0.25):
    """Another scale is another graph."""
    torch.compile(attention, backend="sampleattn", options=OPTIONS)(torch.randn(1, 2, 64, 16), scale)


def in_a_thread(function):
    raised = []

    def run():
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not raised


def test_a_thread_without_a_collector_reports_to_the_one_that_is_open():
    with collect() as reports:
        in_a_thread(compile_one)
    assert [site.outcome for graph in reports for site in graph.sites] == ["sampled"]
    in_a_thread(lambda: compile_one(0.5))
    assert len(reports) == 1  # closed


def test_a_thread_with_a_collector_reports_to_no_other():
    inner = []

    def collecting():
        with collect() as reports:
            compile_one()
        inner.extend(reports)

    with collect() as reports:
        in_a_thread(collecting)
    assert len(inner) == 1 and reports == []


def test_explain_reports_its_own_graphs_alone():
    @torch.compiler.disable
    def meanwhile():
        in_a_thread(compile_one)

    def function(x):
        meanwhile()
        return attention(x, 0.5)

    with torch.no_grad():
        report = sa_compile.explain(function, torch.randn(1, 2, 64, 16), options=LOSSLESS)
    assert len(report.sites) == 1


def test_of_nested_collectors_the_innermost_gathers():
    with collect() as outer:
        with collect() as inner:
            compile_one()
        in_a_thread(lambda: compile_one(0.5))
    assert len(inner) == len(outer) == 1
