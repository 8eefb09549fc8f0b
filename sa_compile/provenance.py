"""Where a measurement comes from: what every result file says of its device, versions, commit and command."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("sa_compile", "torch", "transformers", "triton")


def provenance(
    device: torch.device | str = "cpu", *, revision: str | None = None, command: str | None = None
) -> dict[str, Any]:
    """``command``, ``revision``, ``device`` and ``versions`` of this process, as plain data for JSON.

    Of absolute paths in the command only the last component is kept: the folders are those of one machine.

    ``device``: where it ran. ``revision``: the code's commit where git cannot tell. ``command`` None: the
    arguments of ``python -m sa_compile``.
    """
    return {
        "command": command or " ".join(["python -m sa_compile", *map(_without_folder, sys.argv[1:])]),
        "revision": revision or git_revision(),
        "device": device_name(torch.device(device)),
        "versions": versions(),
    }


def device_name(device: torch.device) -> str:
    """The accelerator's or the processor's name as the system reports it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


def versions() -> dict[str, str]:
    """Versions of Python, of the packages that matter where installed, of CUDA and cuDNN if built in."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if torch.version.cuda is not None:
        found |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
    return found


def git_revision() -> str:
    """The commit of the code that runs, "-dirty" behind it if it was changed since; "unknown" outside git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _without_folder(argument: str) -> str:
    return Path(argument).name if Path(argument).is_absolute() else argument


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
