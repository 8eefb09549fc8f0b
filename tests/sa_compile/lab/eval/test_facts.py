"""Facts answer their questions, and items of one document do not mix."""

import random
import re

import pytest

from sa_compile.lab.eval.tasks.facts import CAPACITY, RECALLED, TASKS, ItemWriter, write_items
from sa_compile.lab.eval.tasks.words import FRIENDS


def lookup(item):
    """The answer, found by reading the facts: written apart from the generator, task by task."""
    facts = [fact.rstrip(".\n") for fact in item.facts]
    if item.task in ("needle", "multikey", "copy"):
        subject = re.search(r"What is (.*)\?", item.question).group(1)
        return next(f.split(" is ", 1)[1] for f in facts if f.lower().startswith(f"{subject.lower()} is"))
    if item.task == "kv":
        return facts[0].split(" maps to ")[1]
    if item.task.startswith("vt"):
        values = {}
        for fact in facts:
            name, value = re.fullmatch(r"Let (\w+) = (\w+)", fact).groups()
            values[name] = values.get(value, value)
        return values[re.search(r"value of (\w+)\?", item.question).group(1)]
    moves = [f.split(" the ")[1] for f in facts if " to the " in f and "picked up" not in f]
    if item.task in ("babi1", "babi2"):
        return moves[-1]
    if item.task == "babi3":
        return moves[moves.index(re.search(r"before the (\w+)\?", item.question).group(1)) - 1]
    if item.task == "babi4":
        direction, place = re.search(r"What is (\w+) of the (\w+)\?", item.question).groups()
        return re.fullmatch(rf"The (\w+) is {direction} of the {place}", facts[0]).group(1)
    giver, receiver = re.fullmatch(r"(\w+) gave the \w+ to (\w+)", facts[0]).groups()
    return giver if "Who gave" in item.question else receiver


@pytest.mark.parametrize("task", [task for task in TASKS if task not in RECALLED])
def test_the_facts_hold_the_answer(task):
    for seed in range(30):
        item = ItemWriter(random.Random(seed)).write(task)
        assert item.answer == f" {lookup(item)}"
        assert item.question.startswith("Question: ") and item.question.endswith("?\nAnswer:")
        assert all(line.endswith(".\n") for line in (*item.facts, *item.decoys))


@pytest.mark.parametrize("task", RECALLED)
def test_a_recalled_fact_is_said_again_word_by_word(task):
    answers = set()
    for seed in range(30):
        item = ItemWriter(random.Random(seed)).write(task)
        assert item.facts == (f"{item.question}{item.answer}{item.closing}",)
        assert len(item.answer.split()) == 1 and item.answer.startswith(" ") and item.closing == ".\n"
        answers.add(item.answer)
    assert len(answers) > 10


def test_no_two_recalled_facts_of_a_document_begin_alike():
    """Not even where they name other people: small models take one for the other."""
    first = [task for task in RECALLED for _ in range(CAPACITY[task])]
    items = write_items(random.Random(0), RECALLED, 0, first=first)
    names = {word for item in items for word in item.question.split() if word in FRIENDS}
    assert len(items) == len(names) == 18
    others = {" ".join("X" if w in names else w for w in item.question.split()[:4]) for item in items}
    assert len(others) == 18


def test_a_decoy_shares_a_word_with_the_key_and_gives_another_value():
    for seed in range(20):
        item = ItemWriter(random.Random(seed)).write("multikey")
        assert len(item.decoys) == 3
        for decoy in item.decoys:
            assert not decoy.endswith(f"{item.answer}.\n")
            assert decoy.split(" is ")[0] != item.facts[0].split(" is ")[0]


@pytest.mark.parametrize("seed", range(5))
def test_one_document_holds_every_tasks_capacity(seed):
    """All capacities at once leave enough words, and no two questions are alike."""
    first = [task for task in TASKS for _ in range(CAPACITY[task])]
    random.Random(seed).shuffle(first)
    items = write_items(random.Random(seed), TASKS, 50, first=first)
    assert len(items) == len(first), "capacity is used up"
    assert len({item.question for item in items}) == len(items)


def test_the_same_seed_writes_the_same_items():
    assert write_items(random.Random(3), TASKS, 20) == write_items(random.Random(3), TASKS, 20)


def test_an_unknown_task_is_an_error():
    with pytest.raises(ValueError, match="unknown task 'needles'; known: needle"):
        ItemWriter(random.Random(0)).write("needles")
