"""Long documents with many questions, scored in one forward pass by teacher forcing.

Questions stand, each with its answer, in three places that are reported apart: ``end`` (in the last query
block, the paper's setting), ``tenth`` (spread over the last tenth) and ``middle`` (from one tenth of the
document to nine tenths). An answer counts if the most likely token is right at every position of the
answer (and of the newline that ends it, but for facts said again), which is when greedy decoding would write
exactly that.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .facts import CAPACITY, TASKS, Item, write_items
from .haystack import Haystack

PLACES = ("end", "tenth", "middle")
_END_ROWS = 128  # the last query block
_MOST_ITEMS = 48  # that a document holds, asked or not
_TOKENS_AN_ITEM = 96  # of document: short documents hold fewer


@dataclass(frozen=True)
class Question:
    """A question in a document: ``tokens[start:stop]`` is its answer, with the newline if that counts."""

    task: str
    place: str
    depth: float  # where its first fact stands, as a share of the document
    start: int
    stop: int


@dataclass(frozen=True)
class Document:
    """Tokens of a document, its questions, and which tokens are haystack text."""

    tokens: np.ndarray  # int64 [length]
    questions: tuple[Question, ...]
    is_text: np.ndarray  # bool [length]: the token continues haystack text


@dataclass(frozen=True)
class _Piece:
    place: float  # where it is inserted, as a share of the haystack text
    tokens: list[int]
    item: int  # index of its item
    answer: int = 0  # how many of its tokens are the answer; 0 if it is no question
    closing: int = 0  # how many tokens stand behind the answer
    decoy: bool = False


class DocumentBuilder:
    """Builds documents for one tokenizer over one haystack."""

    def __init__(self, tokenizer: Any, haystack: Haystack) -> None:
        self._tokenizer = tokenizer
        self.haystack = haystack
        bos = tokenizer.bos_token_id
        self._begin = [] if bos is None else [bos]

    def build(self, seed: str, length: int, tasks: Sequence[str], places: Sequence[str] = PLACES) -> Document:
        """A document of exactly ``length`` tokens; the same arguments give the same document.

        Every place asks the tasks in turn, starting at a random one. ValueError if ``length`` leaves no
        room for the questions.
        """
        for task in tasks:
            if task not in TASKS:
                raise ValueError(f"unknown task {task!r}; known: {', '.join(TASKS)}")
        rng = random.Random(seed)
        order = _ask(rng, tasks, _how_many(length, places))
        first = [task for place in PLACES for task in order[place]]
        more = min(_MOST_ITEMS, length // _TOKENS_AN_ITEM) - len(first)
        items = write_items(rng, tasks, max(more, 0), first=first)
        places_of_items = [place for place in PLACES for _ in order[place]]
        end = self._end_questions(items[: len(order["end"])])
        return self._join(rng, length, items, self._inserted(rng, items, places_of_items), end)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _question(self, item: Item, place: float, index: int) -> _Piece:
        answer = self._encode(item.answer if item.closing else f"{item.answer}\n")
        closing = self._encode(item.closing)
        tokens = self._encode(item.question) + answer + closing
        return _Piece(place, tokens, index, answer=len(answer), closing=len(closing))

    def _end_questions(self, items: Sequence[Item]) -> list[_Piece]:
        """The questions that fit into the last query block."""
        pieces: list[_Piece] = []
        room = _END_ROWS
        for index, item in enumerate(items):
            piece = self._question(item, 1.0, index)
            if len(piece.tokens) <= room:
                pieces.append(piece)
                room -= len(piece.tokens)
        return pieces

    def _inserted(self, rng: random.Random, items: Sequence[Item], places: Sequence[str]) -> list[_Piece]:
        """Facts, decoys, and the questions that stand between lines of text, in order.

        ``places`` names where the first items are asked.
        """
        pieces = []
        for index, item in enumerate(items):
            place = places[index] if index < len(places) else "end"
            asked_at = {"end": 1.0, "tenth": 0.9 + 0.1 * rng.random(), "middle": 0.1 + 0.8 * rng.random()}[
                place
            ]
            shares = sorted(asked_at * rng.random() for _ in item.facts)
            pieces += [
                _Piece(s, self._encode(fact), index) for s, fact in zip(shares, item.facts, strict=True)
            ]
            pieces += [_Piece(rng.random(), self._encode(decoy), index, decoy=True) for decoy in item.decoys]
            if place != "end":
                pieces.append(self._question(item, asked_at, index))
        return sorted(pieces, key=lambda piece: piece.place)

    def _join(
        self,
        rng: random.Random,
        length: int,
        items: Sequence[Item],
        inserted: Sequence[_Piece],
        end: Sequence[_Piece],
    ) -> Document:
        used = len(self._begin) + sum(len(piece.tokens) for piece in (*inserted, *end))
        if length - used < length // 8:
            raise ValueError(
                f"{length} tokens leave no room for text beside {used} tokens of facts and questions"
            )
        text, starts = self.haystack.draw(rng, length - used)
        tokens: list[int] = list(self._begin)
        is_text = [False] * len(tokens)
        first_fact: dict[int, int] = {}
        questions: list[Question] = []
        done = 0
        for piece in (*inserted, *end):
            stop = len(text) if piece.place >= 1 else int(starts[int(piece.place * len(starts))])
            tokens += text[done:stop].tolist()
            is_text += [True] * (stop - done)
            done = max(done, stop)
            if piece.answer:
                start = len(tokens) + len(piece.tokens) - piece.answer - piece.closing
                place = "end" if piece.place >= 1 else "tenth" if piece.place >= 0.9 else "middle"
                depth = first_fact[piece.item] / length
                questions.append(Question(items[piece.item].task, place, depth, start, start + piece.answer))
            elif not piece.decoy:
                first_fact.setdefault(piece.item, len(tokens))
            tokens += piece.tokens
            is_text += [False] * len(piece.tokens)
        if done < len(text):
            tokens += text[done:].tolist()
            is_text += [True] * (len(text) - done)
        return Document(np.array(tokens, dtype=np.int64), tuple(questions), np.array(is_text))

    def text(self, seed: str, length: int) -> Document:
        """A document of ``length`` tokens of haystack alone, for perplexity."""
        piece, _ = self.haystack.draw(random.Random(seed), length - len(self._begin))
        tokens = np.concatenate((np.array(self._begin, dtype=np.int64), piece))
        return Document(tokens, (), np.arange(length) >= len(self._begin))


def _how_many(length: int, places: Sequence[str]) -> dict[str, int]:
    """Questions to write per place; of those at the end, seven or eight fit into the last block."""
    for place in places:
        if place not in PLACES:
            raise ValueError(f"unknown place {place!r}; known: {', '.join(PLACES)}")
    spread = min(16, max(length // 512, 1))
    usual = {"end": 9, "tenth": spread, "middle": spread}
    return {place: usual[place] if place in places else 0 for place in PLACES}


def _ask(rng: random.Random, tasks: Sequence[str], counts: Mapping[str, int]) -> dict[str, list[str]]:
    """The tasks asked in each place: in turn from a random one, as long as their capacity lasts."""
    left = {task: CAPACITY[task] for task in tasks}
    turn = {place: int(rng.random() * len(tasks)) for place in PLACES}
    order: dict[str, list[str]] = {place: [] for place in PLACES}
    for _ in range(max(counts.values())):
        for place in PLACES:
            if len(order[place]) == counts[place] or not any(left.values()):
                continue
            while not left[tasks[turn[place] % len(tasks)]]:
                turn[place] += 1
            task = tasks[turn[place] % len(tasks)]
            order[place].append(task)
            left[task] -= 1
            turn[place] += 1
    return order


def document_seed(split: str, seed: int, kind: str, length: int, index: int) -> str:
    """The seed of a document; development and test documents never share one."""
    name = f"{split}/{seed}/{kind}/{length}/{index}"
    return hashlib.sha256(name.encode()).hexdigest()
