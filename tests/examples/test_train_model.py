"""The example model: its tasks, its training data, the committed folder."""

import importlib
import json
import random
import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2] / "examples"
MODEL = ROOT / "model"
LIMIT = 16 * 2**20  # bytes that the weights file may have


@pytest.fixture(scope="module", autouse=True)
def modules():
    """The example's modules, importable by the plain names under which its scripts import each other."""
    before = set(sys.modules)
    sys.path.insert(0, str(ROOT / "train_model"))
    names = ("tasks", "corpus", "sequences", "model", "card")
    yield {name: importlib.import_module(name) for name in names}
    sys.path.remove(str(ROOT / "train_model"))
    for name in (*names, "evaluate"):
        if name not in before:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def weights():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def haystack(modules):
    """Held-out text of the standard library."""
    texts = (source.text for source in modules["corpus"].collect(["python"], split="test", limit=2_000_000))
    return "\n".join(texts)


TASKS = ("needle", "kv", "vt0", "vt1", "vt2", "babi1", "babi2")


@pytest.mark.parametrize("task", TASKS)
def test_items_repeat_and_hold_their_answer(modules, task):
    tasks = modules["tasks"]
    assert task in tasks.TASKS
    for seed in range(50):
        item = tasks.ItemWriter(random.Random(seed)).write(task)
        assert item == tasks.ItemWriter(random.Random(seed)).write(task)
        assert any(re.search(rf"\b{item.answer.strip()}\b", fact) for fact in item.facts)
        assert all(fact.endswith("\n") for fact in item.facts) and item.question.endswith("\nAnswer:")


def test_an_unknown_task_is_an_error(modules):
    with pytest.raises(ValueError, match="known: needle, kv"):
        modules["tasks"].ItemWriter(random.Random(0)).write("poetry")


def test_subjects_in_a_document_are_unique(modules):
    tasks = modules["tasks"]
    for seed in range(20):
        items = tasks.write_items(random.Random(seed), tasks.TASKS, 64)
        questions = [item.question for item in items]
        assert len(set(questions)) == len(questions)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("facts", [0, 12])
def test_prompt(modules, tokenizer, haystack, task, facts):
    build = modules["tasks"].build_prompt
    arguments = {"length": 1500, "depth": 0.4, "seed": 3, "haystack": haystack, "facts": facts}
    prompt = build(task, tokenizer, **arguments)
    assert prompt == build(task, tokenizer, **arguments)
    assert prompt != build(task, tokenizer, **{**arguments, "seed": 4})
    places = [prompt.document.index(fact) for fact in prompt.facts]
    assert places == sorted(places)
    before = len(tokenizer(prompt.document[: places[0]]).input_ids)
    ids = tokenizer(prompt.document + prompt.question).input_ids
    assert 1350 < len(ids) <= 1500
    assert 0.3 < before / len(ids) < 0.5
    # Document and question may be tokenized apart.
    apart = (
        tokenizer(prompt.document).input_ids + tokenizer(prompt.question, add_special_tokens=False).input_ids
    )
    assert apart == ids


def test_prompt_says_what_does_not_fit(modules, tokenizer, haystack):
    build = modules["tasks"].build_prompt
    with pytest.raises(ValueError, match="too short"):
        build("kv", tokenizer, length=4096, depth=0.5, seed=0, haystack=haystack[:500])
    with pytest.raises(ValueError, match="no room"):
        build("kv", tokenizer, length=30, depth=0.5, seed=0, haystack=haystack)


def test_held_out_files_are_few_and_fixed(modules):
    corpus = modules["corpus"]
    splits = [corpus.split_of(f"python/file{number}.py") for number in range(2000)]
    assert 0.03 < splits.count("test") / len(splits) < 0.07
    assert corpus.split_of("python/argparse.py") == corpus.split_of("python/argparse.py") == "train"
    held_out = list(corpus.collect(["jinja2"], split="test"))
    everything = list(corpus.collect(["jinja2"]))
    assert {s.name for s in held_out} == {s.name for s in everything if corpus.split_of(s.name) == "test"}


def test_training_sequences(modules, tokenizer, haystack):
    sequences, tasks = modules["sequences"], modules["tasks"]
    backend = tokenizer.backend_tokenizer
    stream = modules["corpus"].encode_stream(backend, [haystack[:200_000]])
    builder = sequences.SequenceBuilder.over(stream, backend)
    encode = builder.encode

    items = tasks.write_items(random.Random(0), tasks.TASKS, 30)
    for text in [line for item in items for line in (*item.facts, item.question, f"{item.answer}\n")]:
        assert encode(text) == backend.encode(text, add_special_tokens=False).ids

    tokens, kinds = builder.build(random.Random(1), 2048, items, questions=6)
    assert tokens.shape == kinds.shape == (2048,)
    assert tokens[0] == tokenizer.bos_token_id
    document = tokenizer.decode(tokens[1:].tolist())
    for item in items[:6]:
        assert f"{item.question}{item.answer}\n" in document
    answers = sum(len(encode(f"{item.answer}\n")) for item in items[:6])
    assert (kinds >= sequences.ANSWER).sum() == answers
    again, _ = builder.build(random.Random(1), 2048, items, questions=6)
    assert (again == tokens).all()

    batch, batch_kinds = builder.training_batch(random.Random(2), 512, 2048)
    assert batch.shape == batch_kinds.shape == (4, 513)


def test_the_folder_holds_what_it_should():
    assert (MODEL / "model.safetensors").stat().st_size <= LIMIT
    record = json.loads((MODEL / "training.json").read_text())
    results = record["evaluation"]["results"]["many"]
    for task, length, least in (("needle", 16384, 0.97), ("kv", 16384, 0.95), ("needle", 32768, 0.90)):
        assert results[task][str(length)]["accuracy"] >= least
        assert results[task][str(length)]["questions"] >= 200


def test_the_card_is_generated_from_the_record(modules):
    record = json.loads((MODEL / "training.json").read_text())
    text = modules["card"].card(record, (MODEL / "model.safetensors").stat().st_size)
    assert (MODEL / "README.md").read_text() == text


def test_the_tokenizer_adds_the_beginning_of_text(tokenizer):
    assert tokenizer("a line\n").input_ids[0] == tokenizer.bos_token_id == 0
    text = "def f(x):\n    return 'ünï' + x  \n\n\n"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


@pytest.mark.parametrize(("task", "seed"), [("needle", 1), ("needle", 2), ("kv", 1), ("babi1", 1)])
def test_the_model_answers(modules, tokenizer, weights, haystack, task, seed):
    prompt = modules["tasks"].build_prompt(
        task, tokenizer, length=2048, depth=0.3, seed=seed, haystack=haystack, facts=8
    )
    ids = tokenizer(prompt.document + prompt.question, return_tensors="pt").input_ids
    new = weights.generate(ids, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(new, skip_special_tokens=True) == f"{prompt.answer}\n"


@torch.no_grad()
def test_the_training_model_computes_the_same(modules, weights):
    from safetensors.torch import load_file

    module = modules["model"]
    ours = module.Llama(module.Shape(), classes=9, dtype=torch.float32, compiled=False)
    ours.load_state_dict(load_file(MODEL / "model.safetensors"))
    ids = torch.randint(2, 4096, (2, 300), generator=torch.Generator().manual_seed(0))
    logits = ours.model["norm"](ours.hidden(ids)) @ ours.model["embed_tokens"].weight.T
    torch.testing.assert_close(logits.view(2, 300, -1), weights(input_ids=ids).logits, atol=1e-3, rtol=1e-3)
