"""``options={"trace": folder}``: each graph before and after its passes, and the report, as files."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from torch import fx

from sa_compile.passes.pass_log import PassLog
from sa_compile.report import GraphReport, Report

_numbers = itertools.count()


class GraphTrace:
    """Writes ``<pid>-<n>-before.py``, ``-after.py``, ``-passes.json`` (which ran, how often and how long),
    ``-report.txt`` and ``-report.json`` for one graph."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = f"option 'trace': cannot make the folder {folder!r}: {error.strerror}"
            raise type(error)(why) from error
        self.prefix = f"{os.getpid()}-{next(_numbers):03d}"

    def before(self, gm: fx.GraphModule) -> None:
        """Write the graph as Dynamo captured it."""
        self._write("before.py", readable(gm))

    def after(self, gm: fx.GraphModule, graph_report: GraphReport, log: PassLog) -> None:
        """Write the rewritten graph, which passes ran, and the report."""
        report = Report((graph_report,))
        self._write("after.py", readable(gm))
        self._write("passes.json", log.to_json())
        self._write("report.txt", str(report))
        self._write("report.json", report.to_json())

    def _write(self, name: str, text: str) -> None:
        (self.folder / f"{self.prefix}-{name}").write_text(text + "\n")


def readable(gm: fx.GraphModule) -> str:
    """The graph as Python source with shapes in the comments, child graphs included."""
    return gm.print_readable(print_output=False)
