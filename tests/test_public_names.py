"""What others may rely on keeps its name: the package's, the ops', the options', the entry point's."""

import dataclasses
from importlib import metadata

import torch

import sa_compile
import sa_compile.hf
from sa_compile import methods
from sa_compile.distributed import ops as distributed_ops
from sa_compile.kernels import ops
from sa_compile.late import ops as late_ops

OPS = {
    "attention_mass",
    "block_mean_attention",
    "block_representatives",
    "block_rest_attention",
    "block_sparse_attention",
    "mask_blocks",
    "sample_scores",
    "select_adaptive",
    "select_blocks",
    "select_budget",
    "select_budget_rest",
    "select_peaks",
}
OPTIONS = [
    *("method", "alpha_c", "alpha_s", "chunk_n", "sample_rows"),
    *("tau", "landmarks", "peak", "budget", "budget_tau", "budget_rows", "means", "rest"),
    *("block_q", "block_k", "min_seq_len", "keep_sink", "window_blocks", "last_rows", "r_w", "r_row"),
    *("profile", "trace", "stats", "inner", "inductor"),
]


def test_the_package_has_these_names():
    names = {
        "Report",
        "SampleAttentionConfig",
        "Stats",
        "check_profile",
        "context_parallel",
        "explain",
        "reset_stats",
        "stats",
    }
    assert set(sa_compile.__all__) == names
    assert all(hasattr(sa_compile, name) for name in names)


def test_methods_are_known_by_these_names():
    assert list(methods.METHODS) == ["chunked", "stride", "adaptive"] and callable(methods.register)


def test_transformers_integration_has_these_names():
    names = {"NAME", "CausalMask", "configure", "register", "report", "reset_report"}
    assert set(sa_compile.hf.__all__) == names and sa_compile.hf.NAME == "sampleattn"


def test_the_ops_have_these_names():
    defined = {
        name.removeprefix("sampleattn::").partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("sampleattn::")
    }
    late = {"read_mask", "late_attention", "read_block_lists", "listed_attention"}
    assert {name for name in defined if not name.startswith("_")} == {*OPS, *late, "context_attention"}
    others = {"NAMESPACE", "attention_kernel", "declare_to_inductor"}
    assert set(ops.__all__) == {*OPS, *(f"{name}_op" for name in OPS), *others}
    assert set(late_ops.__all__) == {f"{name}_op" for name in late}
    assert distributed_ops.__all__ == ["context_attention_op"]


def test_the_options_have_these_names_in_this_order():
    assert [option.name for option in dataclasses.fields(sa_compile.SampleAttentionConfig)] == OPTIONS


def test_torch_finds_the_backend_by_its_name():
    (entry,) = metadata.entry_points(group="torch_dynamo_backends", name="sampleattn")
    assert entry.value == "sa_compile.backend:sampleattn"
