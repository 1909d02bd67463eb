"""The memory of a training step, predicted before it is run.

The step runs with fake tensors, which have shapes and types but no data, and every storage is counted: about a second
for any size.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from medcyclegan.networks.cpu import accelerate
from medcyclegan.training.gradients import RoleGradients
from medcyclegan.training.objectives import Objective

# What the program itself holds once it computes: the interpreter, the libraries and their first allocations, or the
# context of a GPU (read off processes of this program on Linux; that of CUDA is the usual order of magnitude).
PROCESS_BYTES = 0.6 * 2**30
# Scratch space of convolutions and gaps between blocks of memory, in activations. On a processor, what a process took
# beyond the tensors that were alive was 20 (U-Net) to 60 % (ResNets, whose wide convolutions come and go in large
# blocks), over networks in 2D and 3D and both precisions. A GPU's convolutions should take less; not measured.
SCRATCH = {"cpu": 1.4, "cuda": 1.2}
STATES = 3  # copies of every weight: itself and two moments of Adam


@dataclass(frozen=True)
class StepMemory:
    """Bytes.

    Attributes:
        states: weights, moments of Adam and averaged copies.
        activations: peak of everything else in a step, gradients included.
        device: "cpu" or another kind.
    """

    states: int
    activations: int
    device: str

    @property
    def total(self) -> float:
        """What the device needs in all, the program itself included."""
        return PROCESS_BYTES + self.states + SCRATCH.get(self.device, SCRATCH["cuda"]) * self.activations


def predict_step_memory(
    make_objective: Callable[[], Objective],
    batch: int,
    channels: int | Mapping[str, int],
    size: Sequence[int],
    *,
    bf16: bool,
    device: str,
) -> StepMemory:
    """Predict what one training step takes.

    Args:
        make_objective: gives the objective with its networks; called where tensors are fake.
        batch: images of each domain.
        channels: of each image, or of the images of "a" and "b".
        size: spatial, voxels.
        bf16: whether convolutions run in bfloat16.
        device: "cpu", where networks are accelerated, or another.
    """
    with FakeTensorMode():
        objective = make_objective()
        if device == "cpu":
            accelerate(objective.networks)
        for pool in getattr(objective, "pools", {}).values():
            pool.size = 0  # which fakes come back is drawn at random, and fake numbers have no values
        each = {"a": channels, "b": channels} if isinstance(channels, int) else channels
        images = {domain: torch.zeros(batch, each[domain], *size) for domain in ("a", "b")}
        bodies = {f"body_{domain}": torch.ones_like(images[domain], dtype=torch.bool) for domain in ("a", "b")}
        with _LiveStorages() as live:
            shown = images | bodies
            made = {f"real_{domain}": image for domain, image in images.items()}
            for role in ("generators", "discriminators"):
                made |= RoleGradients(objective, role, torch.device("cpu"), bf16).add(shown, made)[1]
    weights = {name: _bytes(network) for name, network in objective.networks.items()}
    averaged = sum(weights[name] for name in objective.generators if name in objective.required)
    return StepMemory(states=STATES * sum(weights.values()) + averaged, activations=live.peak, device=device)


def _bytes(network: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in network.parameters())


class _LiveStorages(TorchDispatchMode):
    """Counts the bytes of all storages, and the peak of those alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: UntypedStorage) -> None:
        key = id(storage)
        if key in self.known:
            return
        size = storage.nbytes()
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size
