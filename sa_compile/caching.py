"""What makes compiled code stale: our ops' code is not in PyTorch's cache keys, so we put it there.

The FX-graph and AOTAutograd caches are keyed on the graph, which holds the *names* of our ops, not what
they do (pytorch#160472). A graph pass that does nothing but has a ``uuid()`` of the package's version and
sources closes the hole: a changed kernel misses, an unchanged one hits.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass

SOURCE_SUFFIXES = (".py", ".so", ".h", ".hpp", ".cuh", ".cu", ".cpp")


def hash_sources(folders: Iterable[str | Path]) -> str:
    """SHA-256 over the names and contents of every source and library file below the folders."""
    digest = hashlib.sha256()
    for folder in folders:
        files = (p for p in Path(folder).rglob("*") if p.suffix in SOURCE_SUFFIXES and p.is_file())
        for path in sorted(files):
            digest.update(str(path.relative_to(folder)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _kernel_folders() -> list[str]:
    specs = map(importlib.util.find_spec, ("sa_compile.kernels", "sa_compile.late"))
    return [folder for spec in specs if spec is not None for folder in spec.submodule_search_locations or []]


@functools.cache
def kernel_fingerprint() -> str:
    """The package's version and the hash of its kernels, read once a process."""
    return f"{metadata.version('sa_compile')}-{hash_sources(_kernel_folders())}"


class KernelFingerprintPass(CustomGraphPass):
    """Leaves the graph to the pass that was set before (if any); its uuid makes the caches ours.

    ``wrapped``: what ``post_grad_custom_post_pass`` held already, run unchanged. Without a uuid of its own
    the caches are bypassed, as they would be without us. ``profile``: digest of the tuned profile in use,
    so that a changed file misses.
    """

    def __init__(self, wrapped: Callable[[fx.Graph], Any] | None = None, profile: str = "") -> None:
        self.wrapped = wrapped
        self.profile = profile

    def __call__(self, graph: fx.Graph) -> None:
        if self.wrapped is not None:
            self.wrapped(graph)

    def uuid(self) -> Any | None:
        own = f"{kernel_fingerprint()}-{self.profile}" if self.profile else kernel_fingerprint()
        if self.wrapped is None:
            return own
        if not isinstance(self.wrapped, CustomGraphPass) or not self.wrapped.uuid():
            return None
        return (own, self.wrapped.uuid())
