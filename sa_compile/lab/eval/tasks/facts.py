"""Retrieval tasks as text: facts hidden in a document, and questions about them.

An item is *facts* (whole lines that go somewhere into a document, in order), perhaps *decoys* (lines that
look like them and go anywhere), a *question* (two lines, the second one is ``Answer:``) and an *answer*
(a space and the text; a newline ends it):

========  ==============================================  ================================================
task      facts                                           question, answer
========  ==============================================  ================================================
needle    The magic number of the amber harbor is 482913. What is the magic number of the amber harbor?
multikey  the same, with decoys: amber falcon, old harbor  as needle
kv        The entry 4819 maps to 7753.                    What does the entry 4819 map to? 7753
vt0..2    Let quartz = 4821.  Let basalt = quartz.        What is the value of basalt? 4821
babi1     Mary went to the kitchen.  Mary moved to ...    Where is Mary? (the last move counts)
babi2     Mary picked up the apple.  Mary went to ...     Where is the apple?
babi3     the same with two moves                         Where was the apple before the park?
babi4     The office is north of the kitchen.             What is north of the kitchen? office
babi5     Fred gave the football to Jeff.                 Who gave the football to Jeff? Fred
copy      The sequence kettle is plum oak ... (8 words)   What is the sequence kettle?
========  ==============================================  ================================================

Facts to be *recalled* are said again instead of being asked for, up to the answer; what follows it counts for
nothing:

=============  ==================================  ==================================
task           fact                                said again, answer
=============  ==================================  ==================================
recall_number  The access code of Anna is 7141.    The access code of Anna is 7141
recall_word    The password of Tom is walnut.      The password of Tom is walnut
recall_place   Kate left the lamp in the cellar.   Kate left the lamp in the cellar
=============  ==================================  ==================================

No two of them in a document begin alike, so that what follows is to be found in one place only.

needle, kv, vt and babi1-2 are the formats that the model under ``examples/model`` is trained on; the babi
tasks follow BABILong's qa1-qa5 (arXiv 2406.10149), vt and multikey RULER's (arXiv 2404.06654). Standard
library only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .words import ADJECTIVES, FRIENDS, MOVES, NOUNS, OBJECTS, PEOPLE, PLACES, SECRETS, VARIABLES

# Facts said again in plain words, which any language model completes; the others have a format of questions.
RECALLED = ("recall_number", "recall_word", "recall_place")
TASKS = (
    *("needle", "multikey", "kv", "vt0", "vt1", "vt2", "babi1", "babi2", "babi3", "babi4", "babi5", "copy"),
    *RECALLED,
)
# How many items of a task one document may hold, all tasks together, before the word lists run low.
CAPACITY = {
    "needle": 64,
    "multikey": 16,
    "kv": 64,
    "vt0": 8,
    "vt1": 6,
    "vt2": 4,
    "babi1": 10,
    "babi2": 8,
    "babi3": 6,
    "babi4": 8,
    "babi5": 6,
    "copy": 8,
    # One of each sentence below: small models mix up facts of one form.
    "recall_number": 6,
    "recall_word": 6,
    "recall_place": 6,
}
_RECALLED_NUMBERS = (
    "The access code of {friend} is",
    "The phone extension of {friend} is",
    "The locker of {friend} has the number",
    "{friend} paid for the {thing} a total of",
    "The train of {friend} leaves from track",
    "The last invoice of {friend} amounts to",
)
_RECALLED_WORDS = (
    "The password of {friend} is",
    "The favourite colour and fruit of {friend} is",
    "{friend} named the cat",
    "The secret ingredient in the soup of {friend} is",
    "The code name of agent {friend} is",
    "For a birthday present {friend} wants a",
)
_RECALLED_PLACES = (
    "{friend} left the {thing} in the",
    "The letter for {friend} lies in the",
    "Every morning {friend} meets the {noun} at the",
    "{friend} hid the {thing} behind the",
    "The statue of the {noun} and {friend} stands near the",
    "{friend} will wait with the {thing} at the",
)
_DIRECTIONS = ("north", "south", "east", "west")
_COPIED_WORDS = 8


@dataclass(frozen=True)
class Item:
    """One question and the facts that answer it, in the order in which they must stand in the document."""

    task: str
    facts: tuple[str, ...]  # whole lines, newline included
    question: str  # "Question: ...?\nAnswer:", or a fact up to its answer
    answer: str  # " 7753"
    decoys: tuple[str, ...] = ()  # whole lines that may stand anywhere
    closing: str = ""  # what ends the line of the answer and does not count; else a newline does, and counts


class ItemWriter:
    """Writes items whose subjects are unique, so that any number of them may share one document."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._used: set[str] = set()
        self._writers: dict[str, Callable[[], Item]] = {
            "needle": self._needle,
            "multikey": self._multikey,
            "kv": self._entry,
            "vt0": lambda: self._variable(0),
            "vt1": lambda: self._variable(1),
            "vt2": lambda: self._variable(2),
            "babi1": self._person,
            "babi2": self._object,
            "babi3": self._object_before,
            "babi4": self._neighbour,
            "babi5": self._gift,
            "copy": self._sequence,
            "recall_number": lambda: self._recalled("recall_number", _RECALLED_NUMBERS, self._digits(4)),
            "recall_word": lambda: self._recalled("recall_word", _RECALLED_WORDS, self._pick(SECRETS)),
            "recall_place": lambda: self._recalled("recall_place", _RECALLED_PLACES, self._pick(PLACES)),
        }

    def write(self, task: str) -> Item:
        """A fresh item of ``task`` (one of ``TASKS``); ValueError for another name."""
        if task not in self._writers:
            raise ValueError(f"unknown task {task!r}; known: {', '.join(TASKS)}")
        return self._writers[task]()

    def _unused(self, draw: Callable[[], str]) -> str:
        """A value of ``draw()`` that this document has not seen."""
        while (value := draw()) in self._used:
            pass
        self._used.add(value)
        return value

    def _pick(self, words: Sequence[str]) -> str:
        return words[int(self._rng.random() * len(words))]

    def _digits(self, count: int) -> str:
        low = 10 ** (count - 1)
        return str(low + int(self._rng.random() * 9 * low))

    def _subject(self) -> str:
        return f"{self._pick(ADJECTIVES)} {self._pick(NOUNS)}"

    def _secret(self) -> tuple[str, str]:
        if self._rng.random() < 0.7:
            return "magic number", self._digits(6)
        return "secret word", self._pick(SECRETS)

    def _needle(self) -> Item:
        subject = self._unused(self._subject)
        kind, value = self._secret()
        fact = f"The {kind} of the {subject} is {value}."
        return _item("needle", [fact], f"What is the {kind} of the {subject}?", value)

    def _multikey(self) -> Item:
        subject = self._unused(self._subject)
        adjective, noun = subject.split()
        kind, value = self._secret()
        others = [
            self._unused(lambda: f"{adjective} {self._pick(NOUNS)}"),
            self._unused(lambda: f"{self._pick(ADJECTIVES)} {noun}"),
            self._unused(lambda: f"{adjective} {self._pick(NOUNS)}"),
        ]
        decoys = [f"The {kind} of the {other} is {self._unlike(kind, value)}.\n" for other in others]
        fact = f"The {kind} of the {subject} is {value}."
        return _item("multikey", [fact], f"What is the {kind} of the {subject}?", value, decoys)

    def _unlike(self, kind: str, value: str) -> str:
        """A value of the kind other than ``value``."""
        while (other := self._digits(6) if kind == "magic number" else self._pick(SECRETS)) == value:
            pass
        return other

    def _entry(self) -> Item:
        key, value = self._unused(lambda: self._digits(4)), self._digits(4)
        return _item("kv", [f"The entry {key} maps to {value}."], f"What does the entry {key} map to?", value)

    def _variable(self, hops: int) -> Item:
        name, value = self._unused(lambda: self._pick(VARIABLES)), self._digits(4)
        facts = [f"Let {name} = {value}."]
        for _ in range(hops):
            new = self._unused(lambda: self._pick(VARIABLES))
            facts.append(f"Let {new} = {name}.")
            name = new
        return _item(f"vt{hops}", facts, f"What is the value of {name}?", value)

    def _moves(self, person: str, least: int = 1) -> tuple[list[str], list[str]]:
        """Moves of a person (one or two, at least ``least``) and the places where they lead."""
        places = [self._pick(PLACES)]
        if least > 1 or self._rng.random() < 0.5:
            places.append(self._pick([place for place in PLACES if place != places[0]]))
        return [f"{person} {self._pick(MOVES)} the {place}." for place in places], places

    def _person(self) -> Item:
        person = self._unused(lambda: self._pick(PEOPLE))
        facts, places = self._moves(person)
        return _item("babi1", facts, f"Where is {person}?", places[-1])

    def _object(self) -> Item:
        person = self._unused(lambda: self._pick(PEOPLE))
        thing = self._unused(lambda: self._pick(OBJECTS))
        facts, places = self._moves(person)
        # Taken before or after a move, the object ends where its bearer does.
        facts.insert(int(self._rng.random() * (len(facts) + 1)), f"{person} picked up the {thing}.")
        return _item("babi2", facts, f"Where is the {thing}?", places[-1])

    def _object_before(self) -> Item:
        person = self._unused(lambda: self._pick(PEOPLE))
        thing = self._unused(lambda: self._pick(OBJECTS))
        moves, places = self._moves(person, least=2)
        facts = [f"{person} picked up the {thing}.", *moves]
        return _item("babi3", facts, f"Where was the {thing} before the {places[1]}?", places[0])

    def _neighbour(self) -> Item:
        place = self._unused(lambda: self._pick(PLACES))
        other = self._pick([name for name in PLACES if name != place])
        direction = self._pick(_DIRECTIONS)
        fact = f"The {other} is {direction} of the {place}."
        return _item("babi4", [fact], f"What is {direction} of the {place}?", other)

    def _gift(self) -> Item:
        giver = self._unused(lambda: self._pick(PEOPLE))
        receiver = self._unused(lambda: self._pick(PEOPLE))
        thing = self._unused(lambda: self._pick(OBJECTS))
        fact = f"{giver} gave the {thing} to {receiver}."
        if self._rng.random() < 0.5:
            return _item("babi5", [fact], f"Who gave the {thing} to {receiver}?", giver)
        return _item("babi5", [fact], f"Who did {giver} give the {thing} to?", receiver)

    def _sequence(self) -> Item:
        name = self._unused(lambda: f"sequence {self._pick(NOUNS)}")
        words = " ".join(self._pick(SECRETS) for _ in range(_COPIED_WORDS))
        return _item("copy", [f"The {name} is {words}."], f"What is the {name}?", words)

    def _recalled(self, task: str, sentences: Sequence[str], answer: str) -> Item:
        sentence = self._unused(lambda: self._pick(sentences))
        friend = self._unused(lambda: self._pick(FRIENDS))
        said = sentence.format(friend=friend, thing=self._pick(OBJECTS), noun=self._pick(NOUNS))
        return Item(task, (f"{said} {answer}.\n",), said, f" {answer}", closing=".\n")


def _item(task: str, facts: list[str], question: str, answer: str, decoys: Sequence[str] = ()) -> Item:
    lines = tuple(f"{fact}\n" for fact in facts)
    return Item(task, lines, f"Question: {question}\nAnswer:", f" {answer}", tuple(decoys))


def write_items(
    rng: random.Random, tasks: Sequence[str], count: int, first: Sequence[str] = ()
) -> list[Item]:
    """One item of every task named in ``first``, then ``count`` more of random ``tasks``.

    A task named twice is drawn twice as often; fewer items come back once every task's capacity is used up.
    """
    writer = ItemWriter(rng)
    items = [writer.write(task) for task in first]
    made = {task: list(first).count(task) for task in tasks}
    while count > 0 and any(made[task] < CAPACITY[task] for task in tasks):
        task = tasks[int(rng.random() * len(tasks))]
        if made[task] >= CAPACITY[task]:
            continue
        made[task] += 1
        count -= 1
        items.append(writer.write(task))
    return items
