"""Several runs of run.py in one file: a section is that of the last run which measured it.

    python benchmarks/serving/merge.py --json FILE RUN ...

A RUN is a file of run.py, or of this script. Each of ``sections`` names the revision that it was measured at,
``runs`` holds the command and the engines of each revision, ``missing`` the sections that no run has reached.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import run

PARTS = ("command", "device", "note", "engines", "errors")


def merged(files: list[dict[str, Any]]) -> dict[str, Any]:
    """What the files hold; raises ValueError for two runs of one revision and of different commands."""
    runs: dict[str, dict[str, Any]] = {}
    sections: dict[str, dict[str, Any]] = {}
    for file in files:
        revision = file.get("revision")
        these = file.get("runs") or {revision: {part: file[part] for part in PARTS if part in file}}
        for name, one in these.items():
            before = runs.get(name, one)
            if before["command"] != one["command"]:
                raise ValueError(f"two runs of revision {name!r}: {before['command']}, {one['command']}")
            again = {
                n for n, s in file["sections"].items() if s.get("revision", revision) == name and _measured(s)
            }
            errors = {section: text for section, text in _errors(before).items() if section not in again}
            runs[name] = {**one, "errors": {**errors, **_errors(one)}}
        for name, found in file["sections"].items():
            if _measured(found):
                sections[name] = {"revision": revision, **found}
    used = {found["revision"] for found in sections.values()}
    return {
        "benchmark": "vllm_engines",
        "sections": {name: sections[name] for name in run.SECTIONS if name in sections},
        "missing": [name for name in run.SECTIONS if name not in sections],
        "runs": {name: one for name, one in runs.items() if name in used},
    }


def _measured(found: dict[str, Any]) -> bool:
    """Whether a section holds more than its sizes and how long it took."""
    return any(found["seconds"].values()) if "seconds" in found else bool(set(found) - {"took_s", "revision"})


def _errors(one: dict[str, Any]) -> dict[str, str]:
    """Those of a run, without what it says of sections that it has not reached, and its engines' logs."""
    return {
        name: text.split("\n")[0].split(": INFO ")[0][:300]
        for name, text in one["errors"].items()
        if "no time was left" not in text
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, help="where it goes")
    parser.add_argument("files", nargs="+", type=Path, metavar="RUN", help="the oldest first")
    arguments = parser.parse_args()
    found = merged([json.loads(path.read_text()) for path in arguments.files])
    arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
