"""Documents have the length asked for, facts before their questions, and questions in their places."""

import numpy as np
import pytest

from sa_compile.lab.eval.tasks.documents import PLACES, document_seed
from sa_compile.lab.eval.tasks.facts import TASKS
from sa_compile.lab.eval.tasks.haystack import (
    Haystack,
    Source,
    files_sources,
    held_out,
    installed_sources,
    split_of,
)

SOME_TASKS = ("needle", "kv", "vt1", "babi2", "multikey")


@pytest.mark.parametrize("length", [1536, 4096])
def test_a_document_has_its_length_and_its_questions_in_place(builder, length):
    document = builder.build("seed", length, SOME_TASKS)
    assert len(document.tokens) == len(document.is_text) == length
    by_place = {place: [q for q in document.questions if q.place == place] for place in PLACES}
    assert all(by_place.values())
    assert all(q.start >= length - 128 for q in by_place["end"]), "within the last query block"
    assert by_place["end"][-1].stop == length
    assert all(q.stop > 0.8 * length for q in by_place["tenth"])
    assert all(q.stop < length - 128 for q in by_place["middle"])


@pytest.mark.parametrize("seed", ["a", "b", "c"])
def test_every_question_is_answered_by_facts_before_it(builder, tokenizer, seed):
    document = builder.build(seed, 2048, ("needle", "kv", "vt0"))
    for question in document.questions:
        answer = tokenizer.decode(document.tokens[question.start : question.stop]).strip()
        before = tokenizer.decode(document.tokens[: question.start])
        asked = before.rsplit("Question:", 1)[1]
        subject = asked.replace(" map to?", "?").split("?")[0].split(" ")[-1]
        facts = before.rsplit("Question:", 1)[0]
        assert any(subject in line and answer in line for line in facts.split("\n"))
        assert before.endswith("Answer:") and 0 <= question.depth <= question.start / 2048


def test_text_positions_hold_haystack_lines_only(builder, haystack, tokenizer):
    document = builder.build("seed", 1536, SOME_TASKS)
    text = tokenizer.decode(document.tokens[document.is_text])
    assert "Question" not in text and "maps to" not in text and "magic number" not in text


def test_places_can_be_asked_for_one_at_a_time(builder):
    document = builder.build("seed", 1536, SOME_TASKS, places=("middle",))
    assert {q.place for q in document.questions} == {"middle"}


def test_the_same_seed_gives_the_same_document_and_another_seed_another(builder):
    first, again, other = (builder.build(seed, 1536, SOME_TASKS) for seed in ("a", "a", "b"))
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert first.questions == again.questions
    assert not np.array_equal(first.tokens, other.tokens)


def test_development_and_test_documents_share_no_seed():
    seeds = {
        document_seed(split, seed, kind, length, index)
        for split in ("dev", "test")
        for seed in range(3)
        for kind in ("facts", "code")
        for length in (1024, 2048)
        for index in range(10)
    }
    assert len(seeds) == 2 * 3 * 2 * 2 * 10


@pytest.mark.parametrize("task", TASKS)
def test_a_document_of_one_task_asks_no_more_than_its_words_allow(builder, task):
    document = builder.build("seed", 4096, (task,))
    assert {q.task for q in document.questions} == {task}


@pytest.mark.parametrize(
    "arguments, message",
    [
        pytest.param((1536, ("quiz",), PLACES), "unknown task 'quiz'", id="task"),
        pytest.param(
            (1536, ("kv",), ("start",)), "unknown place 'start'; known: end, tenth, middle", id="place"
        ),
        pytest.param((256, ("kv",), PLACES), "256 tokens leave no room", id="length"),
    ],
)
def test_what_cannot_be_built_is_an_error(builder, arguments, message):
    with pytest.raises(ValueError, match=message):
        builder.build("seed", *arguments)


def test_a_stretch_of_haystack_begins_and_ends_at_lines(haystack, tokenizer):
    import random

    for seed in range(5):
        tokens, starts = haystack.draw(random.Random(seed), 500)
        assert len(tokens) == 500 and starts[0] == 0
        assert tokenizer.decode(tokens).endswith("\n")
        newline = tokenizer("\n", add_special_tokens=False)["input_ids"][0]
        assert all(tokens[start - 1] == newline for start in starts[1:])


def test_too_little_haystack_is_an_error(tokenizer):
    import random

    small = Haystack(tokenizer, [Source("one", "prose", "plum\ncherry\n")])
    with pytest.raises(ValueError, match="tokens, 500 are needed"):
        small.draw(random.Random(0), 500)
    with pytest.raises(ValueError, match="the haystack is empty"):
        Haystack(tokenizer, [])


def test_splits_of_installed_text_share_nothing_and_were_held_out_of_training():
    names = [f"torch/file{n}.py" for n in range(4000)]
    assert 0.03 < sum(map(held_out, names)) / len(names) < 0.07
    assert 0.4 < sum(split_of(name) == "dev" for name in names) / len(names) < 0.6
    dev, test = (installed_sources(split, ("legal",)) for split in ("dev", "test"))
    assert dev and test
    assert not {source.name for source in dev} & {source.name for source in test}


def test_a_users_file_is_halved(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("".join(f"line {n}\n" for n in range(100)))
    (dev,), (test,) = (files_sources([path], split) for split in ("dev", "test"))
    assert not set(dev.text.split("\n")) & set(test.text.split("\n")) - {""}
