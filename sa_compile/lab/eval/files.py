"""Results as JSON files; those whose name ends in .gz are compressed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any


def read_result(path: Path) -> dict[str, Any]:
    """The content of a file that :func:`write_result` wrote, or of any JSON file."""
    content = path.read_bytes()
    return json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result as one line of JSON; the same result gives the same bytes."""
    content = (json.dumps(result) + "\n").encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
