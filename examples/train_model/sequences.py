"""Token sequences for training and evaluation: real text, facts scattered in it, questions.

A sequence is the beginning-of-text token, a stretch of the corpus with facts (and some questions) between its
lines, and the other questions with their answers at the end. Beside the tokens goes what each one is as a
target: `IGNORED` (facts and the wording of questions, which nothing can predict), `TEXT`, or `ANSWER` plus
the index of the task.
"""

from __future__ import annotations

import multiprocessing as mp
import queue
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from corpus import BEGIN
from tasks import TASKS, Item, write_items
from tokenizers import Tokenizer

IGNORED, TEXT, ANSWER = 0, 1, 2
# How often each task is drawn: plain retrieval most, chains of lookups less.
MIXTURE = (
    ("needle",) * 5 + ("kv",) * 5 + ("vt0",) * 2 + ("vt1",) * 2 + ("vt2",) + ("babi1",) * 4 + ("babi2",) * 3
)
_MID_DOCUMENT = 0.2  # share of the questions that stand between lines of text rather than at the end


class LineEncoder:
    """Encodes ASCII task lines exactly as the tokenizer does, from a cache of its pre-tokens (10x faster)."""

    # The tokenizer's own split pattern, for ASCII.
    _PIECES = re.compile(r"\n| ?[A-Za-z]+|[0-9]{1,2}| ?[^\sA-Za-z0-9]+|[^\S\n]+(?!\S)|[^\S\n]+")

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in self._PIECES.findall(text):
            known = self._ids.get(piece)
            if known is None:
                known = self._ids[piece] = self._tokenizer.encode(piece, add_special_tokens=False).ids
            ids += known
        return ids


class Haystack:
    """A token stream, cut into stretches that begin at a line."""

    def __init__(self, stream: np.ndarray, newline: int) -> None:
        self.newline = newline
        self._stream = stream
        self._starts = np.flatnonzero(stream == newline) + 1

    def draw(self, rng: random.Random, length: int) -> np.ndarray:
        """`length` tokens from the start of a random line on; the last one is replaced by a newline."""
        last = np.searchsorted(self._starts, len(self._stream) - length, side="right")
        start = self._starts[int(rng.random() * last)]
        piece = np.array(self._stream[start : start + length])
        piece[-1] = self.newline
        return piece


@dataclass(frozen=True)
class SequenceBuilder:
    """Builds sequences over one haystack."""

    haystack: Haystack
    encode: LineEncoder
    begin: int  # id of the beginning-of-text token

    @classmethod
    def load(cls, folder: Path, split: str) -> SequenceBuilder:
        """The builder over the 'train' or 'test' stream of a prepared corpus folder."""
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return cls.over(np.load(folder / f"{split}.npy", mmap_mode="r"), tokenizer)

    @classmethod
    def over(cls, stream: np.ndarray, tokenizer: Tokenizer) -> SequenceBuilder:
        """The builder over a stream of token ids (uint16) of a tokenizer made by corpus.py."""
        (newline,) = tokenizer.encode("\n", add_special_tokens=False).ids
        return cls(Haystack(stream, newline), LineEncoder(tokenizer), tokenizer.token_to_id(BEGIN))

    def build(
        self, rng: random.Random, length: int, items: Sequence[Item], questions: int, mid: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (uint16) and kinds (uint8), both [length].

        All items' facts go in; the first `questions` items are asked, each of them with probability `mid`
        somewhere after its last fact and else at the end. Items that no longer fit are left out.
        """
        inserted: list[tuple[float, list[int], list[int]]] = []
        tail: list[tuple[list[int], list[int]]] = []
        room = int(0.85 * length)
        for index, item in enumerate(items):
            facts = [self.encode(fact) for fact in item.facts]
            ids, kinds = self._question(item) if index < questions else ([], [])
            size = sum(map(len, facts)) + len(ids)
            if size > room:
                break
            room -= size
            places = sorted(rng.random() for _ in facts)
            inserted += [
                (place, fact, [IGNORED] * len(fact)) for place, fact in zip(places, facts, strict=True)
            ]
            if ids and rng.random() < mid:
                inserted.append((places[-1] + (1 - places[-1]) * rng.random(), ids, kinds))
            elif ids:
                tail.append((ids, kinds))
        inserted.sort(key=lambda event: event[0])
        rng.shuffle(tail)
        used = 1 + sum(len(ids) for _, ids, _ in inserted) + sum(len(ids) for ids, _ in tail)
        text = self.haystack.draw(rng, length - used)
        breaks = np.flatnonzero(text == self.haystack.newline) + 1

        tokens, targets, done = [np.array([self.begin])], [np.array([IGNORED])], 0
        for place, ids, kinds in inserted:
            stop = int(breaks[int(place * len(breaks))])
            tokens += [text[done:stop], ids]
            targets += [np.full(stop - done, TEXT), kinds]
            done = stop
        tokens.append(text[done:])
        targets.append(np.full(len(text) - done, TEXT))
        for ids, kinds in tail:
            tokens.append(ids)
            targets.append(kinds)
        return np.concatenate(tokens).astype(np.uint16), np.concatenate(targets).astype(np.uint8)

    def _question(self, item: Item) -> tuple[list[int], list[int]]:
        question, answer = self.encode(item.question), self.encode(f"{item.answer}\n")
        kind = ANSWER + TASKS.index(item.task)
        return question + answer, [IGNORED] * len(question) + [kind] * len(answer)

    def training_batch(self, rng: random.Random, length: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """A batch of `tokens` // `length` sequences of length + 1 (inputs and shifted targets)."""
        rows = []
        for _ in range(max(tokens // length, 1)):
            # Few facts in some documents, many in others: real documents hold one, tests of capacity many.
            most = min(64, length // 36)
            facts = round(4 * (most / 4) ** rng.random()) if rng.random() < 0.4 else most
            items = write_items(rng, MIXTURE, facts)
            questions = min(32, max(4, length // 80))
            rows.append(self.build(rng, length + 1, items, questions, _MID_DOCUMENT))
        return np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows])


def _work(folder: Path, seed: int, tokens: int, lengths, batches) -> None:
    """A worker's life: batches of the lengths now asked for, until it is ended."""
    builder, rng = SequenceBuilder.load(folder, "train"), random.Random(seed)
    while True:
        choices = list(lengths)
        batches.put(builder.training_batch(rng, choices[int(rng.random() * len(choices))], tokens))


class BatchSource:
    """Training batches from background processes, at most `ahead` of them waiting."""

    SLOTS = 8

    def __init__(self, folder: Path, seed: int, tokens: int, workers: int, ahead: int = 16) -> None:
        context = mp.get_context("fork")
        self._lengths = context.Array("i", self.SLOTS, lock=False)
        self._queue = context.Queue(ahead)
        arguments = [
            (folder, 1000 * seed + index, tokens, self._lengths, self._queue) for index in range(workers)
        ]
        self._workers = [context.Process(target=_work, args=row, daemon=True) for row in arguments]

    def start(self, lengths: Sequence[int]) -> None:
        self.ask(lengths)
        for worker in self._workers:
            worker.start()

    def ask(self, lengths: Sequence[int]) -> None:
        """Sequence lengths to draw from, from now on (batches already made are still handed out)."""
        slots = [lengths[index % len(lengths)] for index in range(self.SLOTS)]
        self._lengths[:] = slots

    def next(self) -> tuple[np.ndarray, np.ndarray]:
        while True:
            try:
                return self._queue.get(timeout=20)
            except queue.Empty:
                if not any(worker.is_alive() for worker in self._workers):
                    raise RuntimeError("all data workers have ended") from None

    def stop(self) -> None:
        for worker in self._workers:
            worker.terminate()
