"""Compiler launcher: runs nvcc, and fails if ptxas serialised matrix products or spilled registers."""

from __future__ import annotations

import re
import subprocess
import sys

SERIALISED = re.compile(r"\(C75\d\d\).*")
SPILL = re.compile(r"([1-9]\d*) bytes spill (stores|loads)")


def main() -> int:
    """Run the command line in ``sys.argv``; returns its status, or 1 for what would make a kernel slow."""
    run = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    found = [match.group(0) for match in (*SERIALISED.finditer(run.stdout), *SPILL.finditer(run.stdout))]
    if run.returncode or found:
        sys.stderr.write(run.stdout)
    for message in found:
        sys.stderr.write(f"check_ptxas: {message}\n")
    return run.returncode or int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
