"""A process that ``torchrun`` started: how it joins the others, and how it ends."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import torch
import torch.distributed as dist


def join() -> torch.device:
    """Join the other ranks, by NCCL where there are GPUs, else gloo; the device of this one."""
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    return device


def leave() -> NoReturn:
    """Part from the other ranks and end the process, when all of them are done."""
    dist.barrier()
    dist.destroy_process_group()
    end()


def end() -> NoReturn:
    """End the process at once: the others are not waited for.

    Now and then a thread below torch outlives the interpreter, which then ends with an abort ("terminate
    called without an active exception") after all is done.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
