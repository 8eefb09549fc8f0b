"""Retrieval tasks as text: facts hidden in a document, and questions about them.

Every task writes *facts* (whole lines that go somewhere into a document), a *question* (two lines, the second
one is ``Answer:``) and an *answer* (a space and the text; greedy decoding stops at the newline after it):

========  =====================================================  ===========================================
task      facts                                                  question, answer
========  =====================================================  ===========================================
needle    The magic number of the amber harbor is 482913.        What is the magic number of the amber
          The secret word of the amber harbor is plum.           harbor? 482913 (or the secret word: plum)
kv        The entry 4819 maps to 7753.                           What does the entry 4819 map to? 7753
vt0..2    Let quartz = 4821.  Let basalt = quartz.  ...          What is the value of basalt? 4821
          (0, 1 or 2 hops between the variable and the number)
babi1     Mary went to the kitchen.  Mary moved to the park.     Where is Mary? park (the last move counts)
babi2     Mary picked up the apple.  Mary went to the park.      Where is the apple? park
========  =====================================================  ===========================================

The module needs nothing but the standard library. `build_prompt` puts one question behind a real document::

    prompt = build_prompt("needle", tokenizer, length=16384, depth=0.3, seed=7, haystack=text)
    ids = tokenizer(prompt.document + prompt.question, return_tensors="pt").input_ids
    new = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1]:]
    tokenizer.decode(new, skip_special_tokens=True).strip() == prompt.answer.strip()

The shipped tokenizer never merges across a newline, and facts and questions are whole lines, so
``tokens(document) + tokens(question)`` equals ``tokens(document + question)``.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

TASKS = ("needle", "kv", "vt0", "vt1", "vt2", "babi1", "babi2")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ADJECTIVES = _words("""
    amber silent crimson gentle hollow ancient frozen golden hidden humble ivory jagged lively lonely misty
    narrow noble pale quiet rapid rustic scarlet silver solemn steady stormy sunny tender velvet violet
    weary wild windy wooden bright broken clever copper distant early
""")
_NOUNS = _words("""
    harbor lantern meadow falcon canyon glacier orchard bridge castle comet desert dragon eagle engine
    feather forest fountain hammer island jungle kettle ladder marble mirror monkey mountain ocean palace
    parrot pebble pillow planet rabbit river rocket shadow sparrow temple thunder tiger
""")
_SECRETS = _words("""
    plum cherry mango lemon olive walnut almond ginger pepper honey butter cotton linen ribbon button
    whistle trumpet violin guitar piano drum saddle anchor barrel basket bottle candle carpet pencil needle
    scissors spoon teapot umbrella wagon wallet zipper magnet prism pulley
""")
_VARIABLES = _words("""
    quartz basalt granite topaz opal jade pearl coral onyx garnet ruby sapphire emerald cobalt nickel zinc
    tin iron bronze brass chrome argon neon helium xenon radon boron carbon sodium sulfur iodine calcium
    barium cesium indium osmium radium titan rhodium mica
""")
_PEOPLE = _words("""
    Mary John Sandra Daniel Fred Bill Julie Jeff Emma Liam Noah Olivia Lucas Mia Ethan Sophia Oscar Ruby
    Henry Alice Peter Clara Simon Laura Victor Nina Martin Helen Walter Irene Hugo Paula Felix Diana Arthur
    Sarah Bruno Elena Marco Greta
""")
_PLACES = _words("""
    kitchen bathroom bedroom hallway garden office park school cinema library museum station market bakery
    church theater stadium hospital airport hotel cellar attic balcony garage stable barn mill tower square
    beach
""")
_OBJECTS = _words("""
    apple football milk book lamp clock letter crown rope shield sword coin ring scarf hat coat glove boot
    shirt jacket camera radio phone tablet laptop ticket map flag torch brush bucket broom shovel axe saw
    plate bowl cup fork knife
""")
_MOVES = ("went to", "moved to", "walked to", "travelled to")


@dataclass(frozen=True)
class Item:
    """One question and the facts that answer it, in the order in which they must stand in the document."""

    task: str
    facts: tuple[str, ...]  # whole lines, newline included
    question: str  # "Question: ...?\nAnswer:"
    answer: str  # " 7753"


class ItemWriter:
    """Writes items whose subjects are unique, so that any number of them may share one document."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._used: set[str] = set()

    def write(self, task: str) -> Item:
        """A fresh item of `task` (one of `TASKS`); ValueError for another name."""
        if task not in TASKS:
            raise ValueError(f"unknown task {task!r}; known: {', '.join(TASKS)}")
        if task.startswith("vt"):
            return self._variable(int(task[2:]))
        return {"needle": self._needle, "kv": self._entry, "babi1": self._person, "babi2": self._object}[
            task
        ]()

    def _unused(self, draw: Callable[[], str]) -> str:
        """A value of `draw()` that this document has not seen."""
        while (value := draw()) in self._used:
            pass
        self._used.add(value)
        return value

    def _pick(self, words: Sequence[str]) -> str:
        return words[int(self._rng.random() * len(words))]

    def _digits(self, count: int) -> str:
        low = 10 ** (count - 1)
        return str(low + int(self._rng.random() * 9 * low))

    def _needle(self) -> Item:
        subject = self._unused(lambda: f"{self._pick(_ADJECTIVES)} {self._pick(_NOUNS)}")
        if self._rng.random() < 0.7:
            kind, value = "magic number", self._digits(6)
        else:
            kind, value = "secret word", self._pick(_SECRETS)
        return _item("needle", [f"The {kind} of the {subject} is {value}."],
                     f"What is the {kind} of the {subject}?", value)  # fmt: skip

    def _entry(self) -> Item:
        key, value = self._unused(lambda: self._digits(4)), self._digits(4)
        return _item("kv", [f"The entry {key} maps to {value}."], f"What does the entry {key} map to?", value)

    def _variable(self, hops: int) -> Item:
        name, value = self._unused(lambda: self._pick(_VARIABLES)), self._digits(4)
        facts = [f"Let {name} = {value}."]
        for _ in range(hops):
            new = self._unused(lambda: self._pick(_VARIABLES))
            facts.append(f"Let {new} = {name}.")
            name = new
        return _item(f"vt{hops}", facts, f"What is the value of {name}?", value)

    def _moves(self, person: str) -> tuple[list[str], str]:
        """One or two moves of a person, and the place where they end."""
        places = [self._pick(_PLACES)]
        if self._rng.random() < 0.5:
            places.append(self._pick([place for place in _PLACES if place != places[0]]))
        return [f"{person} {self._pick(_MOVES)} the {place}." for place in places], places[-1]

    def _person(self) -> Item:
        person = self._unused(lambda: self._pick(_PEOPLE))
        facts, place = self._moves(person)
        return _item("babi1", facts, f"Where is {person}?", place)

    def _object(self) -> Item:
        person = self._unused(lambda: self._pick(_PEOPLE))
        thing = self._unused(lambda: self._pick(_OBJECTS))
        facts, place = self._moves(person)
        # Taken before or after a move, the object ends where its bearer does.
        facts.insert(int(self._rng.random() * (len(facts) + 1)), f"{person} picked up the {thing}.")
        return _item("babi2", facts, f"Where is the {thing}?", place)


def _item(task: str, facts: list[str], question: str, answer: str) -> Item:
    return Item(task, tuple(f"{fact}\n" for fact in facts), f"Question: {question}\nAnswer:", f" {answer}")


def vocabulary() -> str:
    """One line with every word and every pair of digits that the tasks use, for training a tokenizer."""
    lists = (_ADJECTIVES, _NOUNS, _SECRETS, _VARIABLES, _PEOPLE, _PLACES, _OBJECTS)
    names = [word for words in lists for word in words]
    frames = (
        "The magic number secret word of the is entry maps to What does map value Where picked up went moved"
    )
    pairs = [f"{number:02d}" for number in range(100)]
    return (
        f" {' '.join([*names, *frames.split(), 'moved walked travelled', *pairs])}\nQuestion:\nAnswer:\nLet\n"
    )


# How many subjects of a task one document may hold before the word lists run low.
CAPACITY = {"needle": 64, "kv": 64, "vt0": 8, "vt1": 6, "vt2": 4, "babi1": 14, "babi2": 12}


def write_items(
    rng: random.Random, tasks: Sequence[str], facts: int, first: Sequence[str] = ()
) -> list[Item]:
    """Items of random `tasks` (a task named twice is drawn twice as often) until they hold `facts` facts.

    The items of the tasks named in `first` come first, however many facts they hold. When the word lists run
    low for every task, there are fewer.
    """
    writer = ItemWriter(rng)
    items = [writer.write(task) for task in first]
    count = sum(len(item.facts) for item in items)
    drawn = dict.fromkeys(tasks, 0)
    while count < facts and any(drawn[task] <= CAPACITY[task] for task in tasks):
        task = tasks[int(rng.random() * len(tasks))]
        drawn[task] += 1
        if drawn[task] <= CAPACITY[task]:
            items.append(writer.write(task))
            count += len(items[-1].facts)
    return items


class _Tokenizer(Protocol):
    def __call__(self, text: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]: ...


@dataclass(frozen=True)
class Prompt:
    """A document with facts in it, a question to put behind it, and the answer that a model should give."""

    document: str
    question: str
    answer: str
    facts: tuple[str, ...]  # the lines that hold the answer, in order


def build_prompt(
    task: str,
    tokenizer: _Tokenizer,
    *,
    length: int,
    depth: float,
    seed: int,
    haystack: str,
    facts: int = 0,
) -> Prompt:
    """A prompt of at most `length` tokens: lines of `haystack`, facts among them, one question behind them.

    `length` counts the beginning-of-text token, the document and the question, not the answer; the prompt is
    shorter than that by less than the first haystack line that no longer fits. `depth` (0 the start, 1 the
    end, by tokens) places the first fact of the question; its other facts follow at random places. `facts` is
    how many facts there are to be at least, the question's included; the others have other subjects and stand
    at random places. The same arguments give the same prompt. ValueError if the haystack is too short or too
    little fits.
    """
    rng = random.Random(f"{task}-{seed}")
    asked, *others = write_items(rng, TASKS, facts, first=[task])
    places = sorted([depth, *(depth + (1 - depth) * rng.random() for _ in asked.facts[1:])])
    events = list(zip(places, asked.facts, strict=True))
    for other in others:
        events += zip(sorted(rng.random() for _ in other.facts), other.facts, strict=True)
    events.sort(key=lambda event: event[0])

    used = 1 + sum(map(len, _tokens(tokenizer, [asked.question, *(fact for _, fact in events)])))
    lines, ends = _lines_that_fit(tokenizer, haystack, length - used)
    document: list[str] = []
    written = 0
    for place, fact in events:
        stop = bisect_right(ends, place * ends[-1])
        document += [*lines[written:stop], fact]
        written = stop
    return Prompt("".join([*document, *lines[written:]]), asked.question, asked.answer, asked.facts)


def _tokens(tokenizer: _Tokenizer, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def _lines_that_fit(tokenizer: _Tokenizer, text: str, budget: int) -> tuple[list[str], list[int]]:
    """The first lines of `text` that hold at most `budget` tokens, and the tokens up to the end of each."""
    lines = [line + "\n" for line in text.split("\n")]
    ends: list[int] = []
    for start in range(0, len(lines), 256):
        for ids in _tokens(tokenizer, lines[start : start + 256]):
            end = len(ids) + (ends[-1] if ends else 0)
            if end > budget:
                if not ends:
                    raise ValueError("the length leaves no room for a line of the haystack")
                return lines[: len(ends)], ends
            ends.append(end)
    raise ValueError(f"the haystack is too short: {budget - ends[-1]} tokens of the length stay empty")
