"""Tables from the harness's results: accuracy relative to full attention, beside what it costs."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from sa_compile.lab.eval import divergence
from sa_compile.lab.eval.plan import FACTS, Unit
from sa_compile.lab.eval.statistics import mean_interval, paired_ratio, wilson
from sa_compile.lab.eval.tasks.documents import PLACES, Document
from sa_compile.lab.eval.tasks.facts import RECALLED
from sa_compile.lab.tokens import length_text

SOLVED = 0.9  # a task counts where full attention answers at least this share
SOLVED_BY_ANY = 0.8  # the same of the tasks that no model was trained on
NEAR_LOSSLESS = 0.99  # of full attention's answers
ROUNDING = 1e-3  # of fp32 outputs and probabilities, in units of an output row's 1-norm
THEOREM_NOTE = (
    "Per head, the largest ||O~ - O||_1 of any row (fp32) against 2 (1 - CRA) R: CRA measured over all rows, "
    f"R the largest 1-norm of a value. Above: heads that exceed it by more than {ROUNDING}."
)


class Results:
    """Questions and scores of a result, by rule, length and document."""

    def __init__(self, result: dict[str, Any]) -> None:
        self.result = result
        self.rules: list[str] = result["plan"]["rules"]
        self.lengths: list[int] = sorted(result["plan"]["lengths"])
        self._lines: dict[tuple[str, str, int], dict[int, dict[str, Any]]] = defaultdict(dict)
        for line in result["scores"]:
            self._lines[line["rule"], line["kind"], line["length"]][line["index"]] = line
        self.questions = result["questions"]
        self._solved: dict[tuple[int, str], list[str]] = {}

    def lines(self, rule: str, length: int, kind: str = FACTS) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """(the rule's line, full attention's line) of every document that both have."""
        full, own = self._lines["full", kind, length], self._lines[rule, kind, length]
        return [(own[index], full[index]) for index in sorted(own.keys() & full.keys())]

    def counts(self, rule: str, length: int, tasks: Sequence[str], place: str) -> tuple[np.ndarray, ...]:
        """Per document: questions of these tasks here, right under the rule, right under full attention."""
        rows = []
        for own, full in self.lines(rule, length):
            chosen = [
                n
                for n, (task, where, _) in enumerate(self.questions[f"{length}/{own['index']}"])
                if task in tasks and where == place
            ]
            rows.append(
                [len(chosen), *(sum(line["right"][n] == "1" for n in chosen) for line in (own, full))]
            )
        table = np.array(rows, dtype=np.int64).reshape(-1, 3)
        return table[:, 0], table[:, 1], table[:, 2]

    def answered(self, rule: str, length: int, tasks: Sequence[str], place: str) -> tuple[np.ndarray, ...]:
        """Per document: questions here that full attention answers, those of them that the rule answers."""
        rows = []
        for own, full in self.lines(rule, length):
            asked = self.questions[f"{length}/{own['index']}"]
            marks = [
                mark
                for (task, where, _), mark, known in zip(asked, own["right"], full["right"], strict=True)
                if known == "1" and task in tasks and where == place
            ]
            rows.append([len(marks), marks.count("1")])
        table = np.array(rows, dtype=np.int64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def kept(self, rule: str, length: int, tasks: Sequence[str], place: str) -> float:
        """Right answers of these tasks here as a share of full attention's; NaN if that has none."""
        _, right, full = self.counts(rule, length, tasks, place)
        return float(right.sum() / full.sum()) if full.sum() else math.nan

    def solved(self, length: int, place: str) -> list[str]:
        """Tasks of which full attention answers at least SOLVED (SOLVED_BY_ANY)."""
        if (length, place) not in self._solved:
            tasks = []
            for task in self.result["plan"]["tasks"]:
                asked, _, right = self.counts("full", length, [task], place)
                least = SOLVED_BY_ANY if task in RECALLED else SOLVED
                if asked.sum() and right.sum() >= least * asked.sum():
                    tasks.append(task)
            self._solved[length, place] = tasks
        return self._solved[length, place]

    def means(self, rule: str, length: int) -> dict[str, float]:
        """Mean density, CRA, change of text NLL, same tokens and KL over the documents with questions."""
        pairs = self.lines(rule, length)
        change = np.array([own["nll"] - full["nll"] for own, full in pairs])
        mean, half = mean_interval(change) if len(pairs) else (math.nan, math.nan)
        return {
            "density": float(np.mean([own["density"] for own, _ in pairs])) if pairs else math.nan,
            "cra": _mean_of(own["cra"] for own, _ in pairs),
            "nll": mean,
            "nll_half": half,
            "agree": _mean_of(own.get("agree") for own, _ in pairs),
            "kl": _mean_of(own.get("kl") for own, _ in pairs),
        }

    def heads(self, rule: str, length: int, what: str) -> np.ndarray:
        """Mean over documents of 'density' or 'cra', [layers, heads]; empty if none was kept."""
        kept = [own["heads"][what] for own, _ in self.lines(rule, length) if "heads" in own]
        return np.mean(kept, 0) if kept else np.empty((0, 0))

    def exact(self, rule: str, length: int, what: str) -> np.ndarray:
        """'error', 'bound' or 'sd' of every document measured, [documents, layers, heads]."""
        kept = [own["exact"][what] for own, _ in self.lines(rule, length) if what in own.get("exact", {})]
        return np.array(kept) if kept else np.empty((0, 0, 0))


def summary_rows(results: Results) -> Iterable[list[Any]]:
    """One row a rule and length: sparsity, text, and per place the accuracy relative to full attention."""
    for length in results.lengths:
        for rule in results.rules:
            if not results.lines(rule, length):
                continue
            means = results.means(rule, length)
            row = [
                length_text(length),
                rule,
                f"{means['density']:.3f}",
                f"{means['cra']:.3f}",
                _signed(means),
            ]
            for place in PLACES:
                tasks = results.solved(length, place)
                _, right, full = results.counts(rule, length, tasks, place)
                ratio, low, high = paired_ratio(right, full)
                row.append("-" if math.isnan(ratio) else f"{ratio:.3f} [{low:.3f}, {high:.3f}]")
                row.append(_worst(results, rule, length, place, tasks))
            row += ["-" if math.isnan(means[what]) else f"{means[what]:.4f}" for what in ("agree", "kl")]
            yield row


def _mean_of(values: Iterable[float | None]) -> float:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else math.nan


def _signed(means: dict[str, float]) -> str:
    half = "" if math.isnan(means["nll_half"]) else f" ± {means['nll_half']:.4f}"
    return f"{means['nll']:+.4f}{half}"


def _worst(results: Results, rule: str, length: int, place: str, tasks: Sequence[str]) -> str:
    """The task that loses most, with its accuracy relative to full attention."""
    shares = ((results.kept(rule, length, [task], place), task) for task in tasks)
    known = [(share, task) for share, task in shares if not math.isnan(share)]
    return "{1} {0:.3f}".format(*min(known)) if known else "-"


def summary_table(result: dict[str, Any]) -> str:
    """The summary as a Markdown table."""
    headers = ["length", "rule", "density", "CRA", "text NLL"]
    for place in PLACES:
        headers += [place, "worst task"]
    headers += ["same token", "KL"]
    return tabulate(list(summary_rows(Results(result))), headers, tablefmt="github", disable_numparse=True)


def answered_table(results: Results) -> str:
    """Of the questions that full attention answers, on tasks that it solves, the share that a rule answers: a
    row a length and rule, with Wilson intervals and, behind them, those from resampling documents."""
    rows = []
    for length in results.lengths:
        for rule in results.rules[1:]:
            cells = []
            for place in PLACES:
                known, right = results.answered(rule, length, results.solved(length, place), place)
                _, low, high = paired_ratio(right, known)
                by_document = "" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]"
                cells.append(_share(int(right.sum()), int(known.sum())) + by_document)
            if any(cell != "-" for cell in cells):
                rows.append([length_text(length), rule, *cells])
    headers = ["length", "rule", *PLACES]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True) if rows else ""


def task_table(results: Results, place: str) -> str:
    """Accuracy of every task in one place, with Wilson intervals: rows are length and rule."""
    tasks = results.result["plan"]["tasks"]
    rows = []
    for length in results.lengths:
        for rule in results.rules:
            row = [length_text(length), rule]
            for task in tasks:
                asked, right, _ = results.counts(rule, length, [task], place)
                row.append(_share(int(right.sum()), int(asked.sum())))
            if any(cell != "-" for cell in row[2:]):
                rows.append(row)
    return tabulate(rows, ["length", "rule", *tasks], tablefmt="github", disable_numparse=True)


def cells_table(results: Results) -> str:
    """Of the tasks that full attention solves, at every length: how many keep NEAR_LOSSLESS of it, a row a
    rule."""
    rows = []
    for rule in results.rules[1:]:
        counts = [_cells(results, rule, place) for place in PLACES]
        counts.append((sum(kept for kept, _ in counts), sum(all_ for _, all_ in counts)))
        if counts[-1][1]:
            rows.append([rule, *(f"{kept} of {all_}" for kept, all_ in counts)])
    return tabulate(rows, ["rule", *PLACES, "all"], tablefmt="github", disable_numparse=True) if rows else ""


def _cells(results: Results, rule: str, place: str) -> tuple[int, int]:
    shares = [
        results.kept(rule, length, [task], place)
        for length in results.lengths
        for task in results.solved(length, place)
    ]
    return sum(share >= NEAR_LOSSLESS for share in shares), sum(not math.isnan(share) for share in shares)


def _share(right: int, count: int) -> str:
    if not count:
        return "-"
    low, high = wilson(right, count)
    return f"{right / count:.3f} [{low:.3f}, {high:.3f}] of {count}"


def text_table(results: Results) -> str:
    """Change of NLL against full attention on plain text, per domain; empty without such documents."""
    domains = results.result["plan"]["domains"]
    rows = []
    for length in results.lengths:
        for rule in results.rules:
            cells = []
            for domain in domains:
                pairs = results.lines(rule, length, domain)
                change = np.array([own["nll"] - full["nll"] for own, full in pairs])
                cells.append("{:+.4f} ± {:.4f}".format(*mean_interval(change)) if pairs else "-")
            if any(cell != "-" for cell in cells):
                rows.append([length_text(length), rule, *cells])
    headers = ["length", "rule", *domains]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True) if rows else ""


def questions_table(documents: Mapping[Unit, Document]) -> str:
    """Documents with questions, and their questions by task and place, a row a length."""
    asked = Counter(
        (length, question.task, question.place)
        for (_, length, _), document in documents.items()
        for question in document.questions
    )
    lengths = sorted({unit[1] for unit in documents})
    cells = sorted({cell[1:] for cell in asked}, key=lambda cell: (PLACES.index(cell[1]), cell[0]))
    rows = []
    for length in lengths:
        count = sum(unit[:2] == (FACTS, length) for unit in documents)
        rows.append([length_text(length), count, *(asked[(length, *cell)] for cell in cells)])
    headers = ["length", "documents", *(f"{task}, {place}" for task, place in cells)]
    return tabulate(rows, headers, tablefmt="github")


def greedy_table(results: Results) -> str:
    """How often greedy decoding behind a sparse prefill gives the answer; empty if none was decoded."""
    rows = []
    for length in results.lengths:
        for rule in results.rules:
            marks = [own.get("greedy", "") for own, _ in results.lines(rule, length)]
            count = sum(map(len, marks))
            if count:
                rows.append([length_text(length), rule, _share(marks.count("1"), count)])
    return tabulate(rows, ["length", "rule", "decoded right"], tablefmt="github") if rows else ""


def theorem_table(results: Results) -> str:
    """The largest error of a row against its bound, per length and rule; empty if none was measured."""
    rows = []
    for length in results.lengths:
        for rule in results.rules:
            if cells := theorem_cells(results, rule, length):
                rows.append([length_text(length), rule, *cells])
    headers = ["length", "rule", "heads", "largest error", "its bound", "largest error / bound", "above"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True) if rows else ""


def theorem_cells(results: Results, rule: str, length: int) -> list[str]:
    """Heads measured, the largest error, its bound, the largest share of a bound, heads above theirs."""
    error, bound = (results.exact(rule, length, what) for what in ("error", "bound"))
    if not error.size:
        return []
    worst = np.unravel_index(error.argmax(), error.shape)
    # Where everything is kept both are rounding errors, and their ratio says nothing.
    counted = bound > ROUNDING
    ratio = f"{(error[counted] / bound[counted]).max():.3f}" if counted.any() else "-"
    above = int((error > bound + ROUNDING).sum())
    return [str(error.size), f"{error[worst]:.4f}", f"{bound[worst]:.4f}", ratio, str(above)]


def write_report(
    result: dict[str, Any],
    folder: Path,
    more: Sequence[tuple[str, str, str]] = (),
    times: divergence.Times | None = None,
) -> list[Path]:
    """Write report.md and its plots into ``folder``; returns the files. ``more``: titles, notes and tables of
    sections behind the summary; ``times``: what rules cost, where it is known."""
    from sa_compile.lab.eval import plots

    folder.mkdir(parents=True, exist_ok=True)
    results = Results(result)
    drawn = plots.draw_all(results, folder, times)
    note = (
        "Accuracy of questions that full attention answers, relative to it, on tasks that it solves "
        f"(at least {SOLVED:.0%}, of facts said again in plain words {SOLVED_BY_ANY:.0%}); 95 % intervals "
        "by resampling documents. Same token: share of the text's positions where the most likely token is "
        "full attention's. KL: see Predictions."
    )
    at = f"KL {divergence.BOUND:g}"
    sections = [
        ("Summary", note, summary_table(result)),
        (
            "Near-lossless",
            f"Tasks, at all lengths, of which a rule keeps {NEAR_LOSSLESS:.0%} of full attention's answers.",
            cells_table(results),
        ),
        (
            "Answered questions",
            "Of the questions that full attention answers, the share that a rule answers: Wilson intervals, "
            "and behind the count intervals from resampling documents.",
            answered_table(results),
        ),
        ("Predictions", divergence.NOTE, divergence.divergence_table(results)),
        (
            f"Kept share at {at}",
            "Between the settings of a rule, log KL interpolated; <= or > where all or none keep within it.",
            divergence.cost_table(results),
        ),
        *more,
        (
            f"Time at {at}",
            "Milliseconds of a forward pass's attentions, likewise.",
            divergence.cost_table(results, times) if times else "",
        ),
        ("Tasks, questions at the end", "", task_table(results, "end")),
        ("Tasks, questions in the last tenth", "", task_table(results, "tenth")),
        ("Tasks, questions in mid-document", "", task_table(results, "middle")),
        ("Plain text", "Change of negative log-likelihood, nats a token.", text_table(results)),
        ("Greedy decoding", "First question at the end, decoded.", greedy_table(results)),
        ("Error and its bound", THEOREM_NOTE, theorem_table(results)),
    ]
    text = ["# Accuracy under selection rules", "", *provenance_lines(result)]
    text += ["Tables name rules by their settings and the present defaults, commands as they were typed.", ""]
    for title, note, table in sections:
        if table:
            text += [f"## {title}", "", *([note, ""] if note else []), table, ""]
    text += ["## Plots", "", *(f"![{path.stem}]({path.name})" for path in drawn), ""]
    path = folder / "report.md"
    path.write_text("\n".join(text))
    return [path, *drawn]


def provenance_lines(result: dict[str, Any]) -> list[str]:
    """Markdown lines that say which documents, and which runs on which machine and code."""
    plan = result["plan"]
    lines = [
        f"Split {plan['split']}, seed {plan['seed']}, model `{plan['model']}`, "
        f"blocks of {plan['block_q']} x {plan['block_k']}.",
        "",
    ]
    for run in result.get("runs", [result["provenance"]]):
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        lines.append(
            f"* `{run['command']}`: {run['device']}, {run['dtype']}, {versions}, `{run['revision']}`"
        )
    return [*lines, ""]
