"""The ranks that share a prompt: what they gather, and how the failure of one becomes an error of all.

A rank that raises says so in the process group's store. Who waits for it looks there, and raises its error in
turn, instead of waiting until torch.distributed's timeout ends the process.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

LOOK_EVERY = 0.2  # seconds between two looks into the store
AHEAD = 16  # gathers, about three layers
_count = itertools.count()
# The name of newer torch, which warns of the older one.
_all_gather: Callable[..., Any] = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


@dataclass
class Ranks:
    """The ranks of a process group, from the view of one of them."""

    group: dist.ProcessGroup
    name: str = field(default_factory=lambda: f"sampleattn/context_parallel/{next(_count)}")
    calls: int = 0  # that the ranks began together: a failure is one call's
    _begun: deque[torch.cuda.Event] = field(default_factory=deque, init=False)

    @property
    def key(self) -> str:
        """Where the store holds what a rank raised in this call."""
        return f"{self.name}/{self.calls}/failed"

    @classmethod
    def of(cls, mesh: DeviceMesh | dist.ProcessGroup) -> Ranks:
        """Those of a mesh of one dimension, or of a group. Raises ValueError for others, or without any."""
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                "context_parallel: 'mesh' needs a process group, got none: torch.distributed is not "
                "initialized"
            )
        if isinstance(mesh, dist.ProcessGroup):
            return cls(mesh)
        if not isinstance(mesh, DeviceMesh) or mesh.ndim != 1:
            got = f"one of {mesh.ndim}" if isinstance(mesh, DeviceMesh) else type(mesh).__name__
            raise ValueError(
                "context_parallel: 'mesh' must be a DeviceMesh of one dimension, such as mesh['cp'] of one "
                f"with several, or a ProcessGroup, got {got}"
            )
        return cls(mesh.get_group())

    @property
    def size(self) -> int:
        return dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """This process's number in the group."""
        return dist.get_rank(self.group)

    def gather(self, x: Tensor) -> Callable[[], Tensor]:
        """Begin to gather every rank's ``x``, all of one shape: a call that waits for it, [ranks, ...]."""
        x = x.contiguous()
        parts = x.new_empty((self.size, *x.shape))
        work = _all_gather(parts.flatten(0, 1), x, group=self.group, async_op=True)

        def wait() -> Tensor:
            if x.is_cuda:
                work.wait()  # of the stream: the process itself goes on
                self._stay_near()
            else:
                self._wait(work.is_completed)
                try:
                    work.wait()
                except RuntimeError as lost:
                    self._wait(lambda: False, at_most=5 * LOOK_EVERY)
                    raise RuntimeError(f"context_parallel: a rank is gone and said nothing: {lost}") from lost
            return parts

        return wait

    def agree(self, numbers: list[int], what: str, device: torch.device) -> None:
        """Raise ValueError on all ranks unless all have the same numbers."""
        gathered = self.gather(torch.tensor([numbers], device=device))()
        self.synchronise(device)  # to read them is to wait, which must not be for a rank that raised
        found = gathered.flatten(0, 1).tolist()
        if any(other != found[0] for other in found):
            raise ValueError(
                f"context_parallel: all ranks must be given the same {what}, got {found} (by rank)"
            )

    def synchronise(self, device: torch.device) -> None:
        """Wait for what a GPU was given to do, or for the error of another rank."""
        if device.type == "cuda":
            done = torch.cuda.Event()
            done.record()
            self._wait(done.query)

    def fail(self, error: BaseException) -> None:
        """Tell the others that this rank raised."""
        if not isinstance(error, FailedElsewhere):
            said = f"rank {self.rank} of {self.size} raised {type(error).__name__}: {error}"
            self.group.get_group_store().set(self.key, said)

    def _stay_near(self) -> None:
        """Let the process run ahead of the GPU by a few gathers: one that waits for a full queue, as it may
        when a rank is gone, sees nothing."""
        done = torch.cuda.Event()
        done.record()
        self._begun.append(done)
        if len(self._begun) > AHEAD:
            self._wait(self._begun.popleft().query)

    def _wait(self, is_done: Callable[[], bool], at_most: float = float("inf")) -> None:
        store, begin = self.group.get_group_store(), time.monotonic()
        look = begin + LOOK_EVERY
        while not is_done():
            now = time.monotonic()
            if now > look:
                look = now + LOOK_EVERY
                if store.check([self.key]):
                    raise FailedElsewhere(f"context_parallel: {store.get(self.key).decode()}")
                if now > begin + at_most:
                    return
            time.sleep(0 if now < begin + 0.001 else 2e-4)


class FailedElsewhere(RuntimeError):
    """Another rank raised; the message says which and what."""
