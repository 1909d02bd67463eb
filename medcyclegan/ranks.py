"""Distributed training and conversion: several processes, started by torchrun.

A process has a *rank*, counted from 0; the *first* is rank 0, and it alone writes what all of them share. Without
torchrun there is one process, which is the first, and every function here does nothing.

Communication inside a step uses NCCL between GPUs and gloo between CPUs. Waiting for the first process, which may
write, validate or prepare for a long time, uses gloo without a timeout: a process that dies closes its connections,
and the others notice at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from medcyclegan.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # for the first process: it may prepare a whole cohort while the others wait

_waiting: Any = None  # the process group for waiting; None: the default one


class LostProcess(ConnectionError):
    """Another process of this training has ended, so that this one cannot go on."""


def env_rank() -> tuple[int, int]:
    """Rank and number of processes, as torchrun sets them; 0 and 1 without it.

    Raises:
        InputError: if the environment variables are not those of torchrun.
    """
    try:
        rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        raise InputError("RANK and WORLD_SIZE in the environment are not numbers.", "Unset them.") from None
    if not 0 <= rank < processes:
        raise InputError(f"RANK is {rank} and WORLD_SIZE {processes}: the rank is below the size.", "Unset them.")
    return rank, processes


def own_device(device: str) -> str:
    """The GPU of this process under torchrun, for the device "auto" or "cuda"."""
    import torch

    if device in ("auto", "cuda") and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    return device


def rank_and_world() -> tuple[int, int]:
    """Rank and number of the processes that train together at this moment; 0 and 1 outside `joined`."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def is_first() -> bool:
    """Whether this is the process that writes."""
    return rank_and_world()[0] == 0


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Connect the processes of torchrun while the block runs; nothing where there is one.

    Args:
        device: where this process computes.

    Raises:
        InputError: if the devices cannot be connected or do not suffice.
        LostProcess: if another process ends while the block runs.
    """
    global _waiting
    rank, processes = env_rank()
    if processes == 1 or rank_and_world()[1] > 1:
        yield
        return
    import torch
    from torch import distributed

    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    if device.type == "cuda":
        if local > torch.cuda.device_count():
            raise InputError(
                f"{local} processes on this machine need a GPU each, and it has {torch.cuda.device_count()}.",
                f"Start torchrun with --nproc-per-node {torch.cuda.device_count()}, or give --device cpu.",
            )
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise InputError(f"several processes train on cuda or cpu, not on {device.type}.", "Give --device cpu.")
    try:
        if device.type == "cuda":
            distributed.init_process_group("nccl", device_id=device)
            _waiting = distributed.new_group(backend="gloo", timeout=PATIENCE)
        else:
            distributed.init_process_group("gloo", timeout=PATIENCE)
            _waiting = None
        yield
    except RuntimeError as error:
        if not is_connection_lost(error):
            raise
        raise LostProcess(
            f"process {rank} of {processes} lost its connection: another process of this training has ended."
        ) from error
    finally:
        _waiting = None
        if distributed.is_initialized():
            distributed.destroy_process_group()


def is_connection_lost(error: RuntimeError) -> bool:
    """Whether the error is a lost connection and no fault of this process; gloo has no exception of its own."""
    if env_rank()[1] == 1 and rank_and_world()[1] == 1:
        return False
    from torch import distributed

    texts = ("gloo/", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return isinstance(error, distributed.DistError) or any(text in str(error) for text in texts)


def from_first(value: T) -> T:
    """The first process's `value`, plain data, in every process."""
    if rank_and_world()[1] == 1:
        return value
    from torch import distributed

    held = [value]
    distributed.broadcast_object_list(held, src=0, group=_waiting)
    return held[0]


def first_then_all(first: Callable[[], T], others: Callable[[], T]) -> T:
    """Run `first` in the first process, then `others` in all other processes.

    If it fails, none continues: it raises its own error, and the others point to it.
    """
    if rank_and_world()[1] == 1:
        return first()
    if not is_first():
        if from_first(None) is not None:
            raise LostProcess("the first process could not begin; its message says why.")
        return others()
    try:
        result = first()
    except BaseException as error:
        from_first(type(error).__name__)
        raise
    from_first(None)
    return result


def maximum(number: int) -> int:
    """The maximum over the processes; the processes wait for each other, the device does not."""
    if rank_and_world()[1] == 1:
        return number
    import torch
    from torch import distributed

    numbers = torch.tensor([number])
    distributed.all_reduce(numbers, op=distributed.ReduceOp.MAX, group=_waiting)
    return int(numbers.item())


def all_gather(tensor: Tensor) -> Tensor:
    """(B, ...) of every process as one (processes * B, ...), in the order of ranks, without gradients."""
    processes = rank_and_world()[1]
    if processes == 1:
        return tensor
    import torch
    from torch import distributed

    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(processes)]
    distributed.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts)


def mean(tensor: Tensor) -> Tensor:
    """The mean over the processes, element by element."""
    processes = rank_and_world()[1]
    if processes == 1:
        return tensor
    from torch import distributed

    total = tensor.detach().clone()
    distributed.all_reduce(total)
    return total / processes
