"""Unpaired axial slices for training, drawn from prepared volumes.

What step s sees is a function of (seed, s, rank) alone: no state is kept, so a resumed training goes on as if it had
not stopped, and the number of reading processes changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medcyclegan.errors import InputError

BACKGROUND = -1.0


class PatchSource(Protocol):
    """A prepared case as far as patches are concerned."""

    @property
    def id(self) -> str: ...

    @property
    def image(self) -> npt.NDArray[np.float32]: ...

    @property
    def body(self) -> npt.NDArray[np.bool_]: ...


class UnpairedSlices(Dataset[dict[str, Tensor]]):
    """The batches of a training: item `step` holds slices of both domains, drawn independently of each other.

    Args:
        a: cases of domain a; every case is equally likely, then every eligible slice of it.
        b: cases of domain b.
        size: voxels along right and anterior, (X, Y). A larger slice is cropped at random where the body is, a smaller
            one is placed at random and surrounded by background.
        batch_size: slices of each domain.
        steps: length of the training.
        seed, rank: what the drawing depends on besides the step.
        minimum_body: a slice is eligible if its body area is at least this share of the largest in its volume.
        flip: mirror left and right with probability 1/2.

    Item: {"a": (B, 1, X, Y), "b": (B, 1, X, Y)}, float32 in [-1, 1].
    """

    def __init__(
        self,
        a: Sequence[PatchSource],
        b: Sequence[PatchSource],
        *,
        size: tuple[int, int],
        batch_size: int,
        steps: int,
        seed: int,
        rank: int = 0,
        minimum_body: float = 0.05,
        flip: bool = False,
    ) -> None:
        self.cases = {"a": list(a), "b": list(b)}
        self.size = size
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed
        self.rank = rank
        self.flip = flip
        self.slices = {d: [eligible_slices(case, minimum_body) for case in cases] for d, cases in self.cases.items()}

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        random = np.random.default_rng([self.seed, self.rank, step])
        return {
            domain: torch.from_numpy(np.stack([self._draw(domain, random) for _ in range(self.batch_size)])[:, None])
            for domain in ("a", "b")
        }

    def _draw(self, domain: str, random: np.random.Generator) -> npt.NDArray[np.float32]:
        index = int(random.integers(len(self.cases[domain])))
        case = self.cases[domain][index]
        k = int(random.choice(self.slices[domain][index]))
        patch = crop_or_pad(case.image[:, :, k], case.body[:, :, k], self.size, random)
        return patch[::-1].copy() if self.flip and random.random() < 0.5 else patch

    def loader(self, start: int = 0, *, workers: int = 0, pin_memory: bool = False) -> DataLoader[dict[str, Tensor]]:
        """The batches of the steps `start` to the end, in order."""
        return DataLoader(
            self,
            batch_size=None,
            sampler=range(start, self.steps),
            num_workers=workers,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # the loader draws a number when it starts; not from the training's
        )


def eligible_slices(case: PatchSource, minimum_body: float) -> npt.NDArray[np.intp]:
    """Axial slices with enough body; nearly constant ones are left out, because instance norm blows them up.

    Raises:
        InputError: if the case has no such slice.
    """
    area = case.body.sum(axis=(0, 1))
    enough = np.flatnonzero(area >= max(1, minimum_body * area.max()))
    image = case.image
    chosen = [k for k in enough if np.ptp(image[:, :, k]) > 0.05]
    if not chosen:
        raise InputError(
            f"case {case.id} has no slice with body and contrast to learn from.",
            "Look at the volume, and leave it out or give a body mask.",
        )
    return np.array(chosen)


def crop_or_pad(
    image: npt.NDArray[np.float32], body: npt.NDArray[np.bool_], size: Sequence[int], random: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Bring a slice to `size`: crop around the body where it is larger, place it in background where it is smaller.

    Args:
        image: any number of axes, [-1, 1].
        body: the same shape.
        size: voxels per axis.
        random: decides the offsets.
    """
    patch = np.full(tuple(size), BACKGROUND, dtype=np.float32)
    source, target = [], []
    for axis, (length, wanted) in enumerate(zip(image.shape, size, strict=True)):
        if length > wanted:
            occupied = np.flatnonzero(body.any(axis=tuple(i for i in range(body.ndim) if i != axis)))
            first, last = (int(occupied[0]), int(occupied[-1])) if len(occupied) else (0, length - 1)
            # The window lies over the body, or the body in the window, whichever is longer; never beyond the image.
            ends = sorted((first, last + 1 - wanted))
            start = int(random.integers(max(0, ends[0]), min(length - wanted, max(0, ends[1])) + 1))
            source.append(slice(start, start + wanted))
            target.append(slice(0, wanted))
        else:
            start = int(random.integers(wanted - length + 1))
            source.append(slice(0, length))
            target.append(slice(start, start + length))
    patch[tuple(target)] = image[tuple(source)]
    return patch
