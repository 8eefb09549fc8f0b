"""Metrics of the published benchmarks: a prediction and its references to a score in [0, 1]."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Metric = Callable[[str, "Reference"], float]


@dataclass(frozen=True)
class Reference:
    """What a prediction is compared with."""

    answers: tuple[str, ...]
    question: str = ""
    choices: tuple[str, ...] = ()


def string_match_all(prediction: str, reference: Reference) -> float:
    """Share of the answers that occur in the prediction, whatever the case (RULER, all tasks but qa)."""
    text = prediction.lower()
    return sum(answer.lower() in text for answer in reference.answers) / len(reference.answers)


def string_match_any(prediction: str, reference: Reference) -> float:
    """1 if any answer occurs in the prediction, whatever the case (RULER, qa)."""
    text = prediction.lower()
    return float(any(answer.lower() in text for answer in reference.answers))


def exact_match(prediction: str, reference: Reference) -> float:
    """1 if the normalised prediction is one of the normalised answers."""
    return float(normalised(prediction) in map(normalised, reference.answers))


def label_match(prediction: str, reference: Reference) -> float:
    """1 if the target is the one label of the first sentence that the question lacks (BABILong).

    ``choices`` are the task's labels.
    """
    output = prediction.lower().split(".")[0].split("<context>")[0].split("<example>")[0].split("question")[0]
    labels = {label.lower() for label in reference.choices}
    said = {label for label in labels if label in output}
    asked = {label for label in labels if label in reference.question.lower()}
    return float(said - asked == {reference.answers[0].lower()})


def token_f1(prediction: str, reference: Reference) -> float:
    """Best F1 of normalised words over the answers (LongBench and InfiniteBench, question answering)."""
    return max(_word_f1(normalised(prediction).split(), normalised(a).split()) for a in reference.answers)


def _word_f1(prediction: Sequence[str], answer: Sequence[str]) -> float:
    same = sum((Counter(prediction) & Counter(answer)).values())
    return 2 * same / (len(prediction) + len(answer)) if same else 0.0


def rouge_l(prediction: str, reference: Reference) -> float:
    """Best F1 of the longest common subsequence of words over the answers (summaries).

    Words as they stand, no stemming. LongBench's own figures come from a package that joins sentences'
    subsequences, and may differ in the second decimal.
    """
    from rapidfuzz.distance import LCSseq

    def score(answer: str) -> float:
        words, expected = prediction.split(), answer.split()
        same = LCSseq.similarity(words, expected)
        return 2 * same / (len(words) + len(expected)) if same else 0.0

    return max(map(score, reference.answers))


def code_similarity(prediction: str, reference: Reference) -> float:
    """Edit similarity of the first line of code in the prediction (LongBench, code completion)."""
    from rapidfuzz import fuzz

    lines = prediction.lstrip("\n").split("\n")
    code = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return max(fuzz.ratio(code, answer) / 100 for answer in reference.answers)


def classification(prediction: str, reference: Reference) -> float:
    """One over the number of classes that the prediction names, if the right one is among them
    (LongBench, trec).

    A named class that is part of the right one's name does not count.
    """

    def score(answer: str) -> float:
        named = [name for name in reference.choices if name in prediction]
        named = [name for name in named if name == answer or name not in answer]
        return 1 / len(named) if answer in named else 0.0

    return max(map(score, reference.answers))


def number_share(prediction: str, reference: Reference) -> float:
    """Share of the prediction's numbers that are the answer's first (LongBench: counts, retrieval)."""

    def score(answer: str) -> float:
        expected = re.findall(r"\d+", answer)[0]
        found = re.findall(r"\d+", prediction)
        return found.count(expected) / len(found) if found else 0.0

    return max(map(score, reference.answers))


def first_number(prediction: str, reference: Reference) -> float:
    """1 if the prediction's first number is an answer (InfiniteBench: pass key, numbers, Math.Find)."""
    found = re.search(r"\d+\.\d+|\d+", prediction)
    return float(found is not None and any(_same_number(found.group(), a) for a in reference.answers))


def _same_number(found: str, answer: str) -> bool:
    return found == answer or ("." in found + answer and float(found) == float(answer))


def last_number(prediction: str, reference: Reference) -> float:
    """1 if the prediction's last word is the answer as a number (InfiniteBench: Code.Run)."""
    words = re.sub(r"[\n.`'\":]", " ", prediction).split()
    return float(bool(words) and words[-1] in reference.answers)


def word_match(prediction: str, reference: Reference) -> float:
    """1 if an answer is a word of the prediction (InfiniteBench: KV retrieval, dialogue)."""
    words = re.sub(r"[\n:\"'.,?!{}]", " ", prediction).upper().split()
    return float(any(answer.upper() in words for answer in reference.answers))


def choice(prediction: str, reference: Reference) -> float:
    """1 if the letter that the prediction chooses is right (InfiniteBench: multiple choice).

    The letter is the prediction's first character, or what follows "answer is", or the first lone A to D.
    """
    text = prediction.strip()
    if text[:1] in tuple("ABCD"):
        return float(text[0] in reference.answers)
    text = re.sub(r"[\n\"'.,?!{}]", " ", text)
    found = re.search(r"(?:answer is|answer|option is):?\s+([ABCD])\b", text) or re.search(
        r"\b([ABCD])\b", text
    )
    return float(found is not None and found.group(1) in reference.answers)


def leading_share(prediction: str, reference: Reference) -> float:
    """Share of a list of numbers given before the first error (InfiniteBench: Math.Calc)."""
    found = re.findall(r"\d+", prediction)
    right = 0
    for got, expected in zip(found, reference.answers, strict=False):
        if got != expected:
            break
        right += 1
    return right / len(reference.answers)


def normalised(text: str) -> str:
    """Lower case without punctuation, articles and extra spaces (SQuAD's normalisation)."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())
