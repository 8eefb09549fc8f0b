"""What torch, callers and saved graphs know of the ops: schemas, public names, and the keyword calls."""

import hashlib
import inspect
import re
from pathlib import Path

import pytest
import torch

from sa_compile.kernels import ops

# Digests of the schemas, without the ops' names: saved graphs and the C++ libraries rely on each of them.
SCHEMAS = {
    "sample_scores": "f51084aeeabf832f",
    "select_blocks": "553a774c923b0207",
    "mask_blocks": "ccb84f53da3eef65",
    "block_sparse_attention": "58ac12515ef3a81e",
    "block_mean_attention": "758f749cb342acc9",
    "attention_mass": "27086dcbf86d948d",
    "block_representatives": "4f675d25be0d3354",
    "select_adaptive": "63629527bbfb4a4c",
    "select_budget": "44dbc3ba256d153e",
    "select_budget_rest": "5f0d3eb1a8be62c7",
    "select_peaks": "af2b98224a336c57",
    "block_rest_attention": "0ef3e1c7a49ad21f",
}

CSRC = Path(__file__).parents[2] / "kernels" / "csrc"


def test_the_ops_are_these():
    assert set(ops.SCHEMAS) == set(SCHEMAS)
    callers = {"NAMESPACE", "attention_kernel", "declare_to_inductor"}
    assert set(ops.__all__) == callers | set(SCHEMAS) | {f"{op}_op" for op in SCHEMAS}


@pytest.mark.parametrize("op", SCHEMAS)
def test_a_schema_is_the_record_of_the_arguments(op):
    schema = str(getattr(ops, f"{op}_op")._schema)
    assert schema == f"sampleattn::{op}{ops.SCHEMAS[op]}"
    assert hashlib.sha256(ops.SCHEMAS[op].encode()).hexdigest()[:16] == SCHEMAS[op], schema


@pytest.mark.parametrize("op", SCHEMAS)
def test_the_keyword_call_knows_every_argument_of_the_schema(op):
    """But for the three tensors of block_representatives, which come as one argument."""
    names = {argument.name for argument in getattr(ops, f"{op}_op")._schema.arguments}
    if op in ("select_adaptive", "select_peaks"):
        names -= {"log_weights", "spreads"}
    parameters = inspect.signature(getattr(ops, op)).parameters.values()
    assert {parameter.name for parameter in parameters} == names
    assert all(p.default is not p.empty for p in parameters if p.name in ("scale", "key_segment", "q_offset"))
    assert isinstance(getattr(ops, f"{op}_op"), torch._ops.OpOverload)


@pytest.mark.parametrize("path", sorted(CSRC.glob("*/arguments.h")), ids=lambda path: path.parent.name)
def test_the_cpp_libraries_have_the_same_schemas(path):
    """But for symbolic sizes, which are ints there, and names of results."""
    (literals,) = re.findall(r"kSchema\[\] =(.*?);", path.read_text(), re.S)
    schema, returns = ops.SCHEMAS[path.parent.name].replace("SymInt", "int").split(" -> ")
    returns = re.sub(r"Tensor \w+", "Tensor", returns)
    assert "".join(re.findall(r'"(.*)"', literals)) == f"{schema} -> {returns}"
