"""What reports say of models that transformers split over ranks."""

import torch
from support.models import SMALL_BLOCKS, tiny_llama
from support.sinks import tiny_gpt_oss

import sa_compile
import sa_compile.hf
from sa_compile.tensor_parallel import notes_on

WHOLE = (
    "tensor parallel over 2 ranks: the plan of GptOssForCausalLM splits no attention, so each rank "
    "computes all of it"
)


@torch.no_grad()
def test_a_plan_that_splits_no_attention_is_a_note_of_the_reports():
    model = tiny_gpt_oss()
    assert notes_on(model) == ()
    model._tp_size = 2
    found = sa_compile.explain(model, torch.ones(1, 64, dtype=torch.int64), options=SMALL_BLOCKS)
    assert str(found).splitlines()[-1] == WHOLE and found.to_dict()["notes"] == [WHOLE]
    assert sa_compile.hf.report(model).notes == (WHOLE,)


def test_a_plan_that_splits_attention_is_none():
    model = tiny_llama()
    model._tp_size = 2
    assert notes_on(model) == notes_on(None) == ()
