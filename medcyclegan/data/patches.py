"""Patches for training, drawn from prepared volumes: slices, stacks of neighboring slices, or 3D boxes.

A *patch* is (C s, *spatial) of a case with C channels: two axes and s = 1 for a slice, s = 2 k + 1 for a slice with k
neighbors on either side (2.5D), three axes and s = 1 for a box; all slices of the first channel come first, then all of
the second. The batch of step s is a function of (seed, s) alone: no state is
kept, so a resumed training continues as if it had not stopped, and neither the number of workers nor that of training
processes changes a batch. Of several training processes, each cuts its own part of every batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medcyclegan.data.augment import Augmentation
from medcyclegan.data.heights import profile_heights
from medcyclegan.data.matching import MATCH_TOLERANCE, reached, relative_height, warn_of_cut_heads, with_partners
from medcyclegan.data.pairs import require_pairs
from medcyclegan.data.slices import PatchSource, Slices, shows_something
from medcyclegan.data.windows import BACKGROUND, Bools, Floats, Values, choose_window, stack_of_slices
from medcyclegan.errors import InputError, few, raise_all

PLANES: dict[str, int] = {
    "sagittal": 0,
    "coronal": 1,
    "axial": 2,
}  # the axis of the working grid that a slice is cut across
TRIES = 20
LEAST_FILLED = 0.25  # of a patch, by the largest volume; below, the networks would mostly see background

Plane = Literal["axial", "coronal", "sagittal"]
Matching = Literal["any", "extent", "vertex", "profile"]


@dataclass(frozen=True)
class PatchSpec:
    """The dimensions, size and orientation of a patch.

    Args:
        size: voxels along the patch's axes: two for slices (right and anterior for axial ones, the remaining axes in
            the order right, anterior, superior for the others), three for boxes.
        plane: orientation of slices.
        neighbors: slices on either side that are shown too.
    """

    size: tuple[int, ...]
    plane: Plane = "axial"
    neighbors: int = 0

    def __post_init__(self) -> None:
        if len(self.size) not in (2, 3) or self.plane not in PLANES or self.neighbors < 0:
            raise ValueError(f"no such patches: {self}")
        if len(self.size) == 3 and self.neighbors:
            raise ValueError("boxes have no neighboring slices")

    @property
    def spatial_dims(self) -> int:
        return len(self.size)

    @property
    def slices(self) -> int:
        """How many slices of every channel a patch shows."""
        return 2 * self.neighbors + 1


@dataclass(frozen=True)
class Sampling:
    """How the patches of a training are drawn.

    Every case is equally likely, then every eligible slice of it (for boxes: every eligible height of their middle).
    The domains are drawn independently of each other, or, with `matching`, the patch of b at a height similar to a's:

    - "extent": relative height between the lowest and highest slice with body, for scans of the same anatomy;
    - "vertex": distance from the top of the body in units of the body's width, for heads, whose top is in the scan
      while their lower end depends on the coverage;
    - "profile": by aligning the profiles of cross-section area (`heights.profile_heights`), whatever part of the body
      each scan covers. Slices of a at heights that no scan of b has are left out, and b is drawn from the scans
      that have the height.

    Args:
        shape: of the patches. What is longer than the patch is cropped at random where the body is, what is shorter is
            placed at random and surrounded by background.
        batch_size: patches of each domain in a step, all processes together.
        steps: length of the training.
        seed: of the drawing, together with the step.
        minimum_body: a slice is eligible if its body area is at least this share of the largest in its volume.
        flip: mirror left and right with probability 1/2.
        matching: "any", "extent", "vertex" or "profile"; of no meaning for pairs.
        augmentation: "a", "b" -> its augmentation; for pairs, movements must be the same.
        spacing: of the working grid, mm; of meaning for `matching` "profile" only.
    """

    shape: PatchSpec
    batch_size: int = 1
    steps: int = 1
    seed: int = 0
    minimum_body: float = 0.05
    flip: bool = False
    matching: Matching = "any"
    augmentation: Mapping[str, Augmentation] = field(default_factory=dict)
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)

    @property
    def axis(self) -> int:
        """Of the working grid, across which slices are cut; of boxes, along which their middle is drawn."""
        return PLANES[self.shape.plane] if self.shape.spatial_dims == 2 else 2


@dataclass(frozen=True)
class Share:
    """The share of one training process in every batch.

    A batch is cut into micro-batches that are worked through one after another (gradient accumulation), and each of
    them into one share per process: rank r has the r-th share of every micro-batch. Together the processes see the
    batch of a single process.
    """

    rank: int = 0
    processes: int = 1
    micro_batches: int = 1

    def of_batch(self, size: int) -> set[int]:
        """Positions in a batch of `size` patches.

        Raises:
            ValueError: the batch cannot be cut like that.
        """
        parts = self.processes * self.micro_batches
        if not 0 <= self.rank < self.processes or self.micro_batches < 1 or size % parts:
            raise ValueError(
                f"rank {self.rank} of {self.processes} processes and {self.micro_batches} micro-batches cannot share "
                f"{size} patches"
            )
        share = size // parts
        return {
            (micro_batch * self.processes + self.rank) * share + i
            for micro_batch in range(self.micro_batches)
            for i in range(share)
        }


class TrainingPatches(Dataset[dict[str, Tensor]]):
    """The batches of a training: item `step` holds patches of both domains, drawn as `sampling` says.

    Opening it reads records only, no voxel.

    Args:
        a: cases of domain a.
        b: cases of domain b.
        sampling: how patches are drawn.
        share: which of them are this process's.
        common: for pairs: id -> the slices that both halves show. Then b has the same
            patients as a in the same order, on the same grids (see `data.pairs`), and the patch of b is at the same
            place as that of a: in the common body, outside which both are background, mirrored and moved alike.

    Item: {"a": (B, C, *size), "b": ...}, float32 in [-1, 1], and {"body_a": ..., "body_b": ...}, bool of that shape:
    the B patches of this process, micro-batch by micro-batch.

    Attributes:
        left_out: "a", "b" -> share of the slices with body, of all cases that were given, that are never the middle of
            a patch.

    Raises:
        InputError: if a case has no usable slice, paired cases do not fit, or no height is in both domains.
        ValueError: if the batch cannot be cut like that, or paired patches would be moved apart.
    """

    def __init__(
        self,
        a: Sequence[PatchSource],
        b: Sequence[PatchSource],
        sampling: Sampling,
        share: Share | None = None,
        common: Mapping[str, Slices] | None = None,
    ) -> None:
        self.cases = {"a": list(a), "b": list(b)}
        self.sampling = sampling
        self.shape, self.axis, self.augmentation = sampling.shape, sampling.axis, sampling.augmentation
        self.own = (share or Share()).of_batch(sampling.batch_size)
        self.paired = common is not None
        matching = "any" if self.paired else sampling.matching
        if common is not None:
            require_pairs(a, b, common)
            _require_moving_alike(self.augmentation)
            both = [common[c.id].eligible(f"pair {c.id}", sampling.minimum_body, self.axis) for c in a]
            self.slices = {"a": both, "b": both}
        else:
            self.slices = {
                d: [case.slices.eligible(f"case {case.id}", sampling.minimum_body, self.axis) for case in cases]
                for d, cases in self.cases.items()
            }
        body = {d: sum(len(case.slices.with_body(self.axis)) for case in cases) for d, cases in self.cases.items()}
        self.heights: dict[str, list[npt.NDArray[np.float64]]] = {"a": [], "b": []}
        lost: dict[str, list[str]] = {"a": [], "b": []}
        drawn = {d: sum(map(len, slices)) for d, slices in self.slices.items()}
        if matching != "any":
            if matching == "vertex":
                warn_of_cut_heads([case for cases in self.cases.values() for case in cases], self.axis)
            self.heights = self._measured()
            if matching == "profile":
                lost = self._keep_common()
                drawn = {d: sum(map(len, slices)) for d, slices in self.slices.items()}
            else:
                drawn["b"] = reached(self.heights, self.slices, matching)
        self.matching = matching
        self.left_out = {d: 1 - drawn[d] / body[d] for d in body}
        for domain, other in (("a", "b"), ("b", "a")):
            if lost[domain]:
                warnings.warn(
                    f"patches.matching profile leaves out {len(lost[domain])} of "
                    f"{len(lost[domain]) + len(self.cases[domain])} scans of {domain} as a whole, and in all "
                    f"{100 * self.left_out[domain]:.0f} % of the slices with body, because no scan of {other} has "
                    f"their heights: {few(lost[domain])}. Do they show the same part of the body? Take them out "
                    "of the data, or take another matching.",
                    stacklevel=2,
                )

    def _measured(self) -> dict[str, list[npt.NDArray[np.float64]]]:
        areas = {d: [case.slices.areas[self.axis] for case in cases] for d, cases in self.cases.items()}
        if self.sampling.matching != "profile":
            return {d: [relative_height(area, self.sampling.matching) for area in areas[d]] for d in areas}
        distance = self.sampling.spacing[self.axis]
        pixel = np.prod(self.sampling.spacing) / distance
        every = profile_heights([np.array(area) * pixel for d in ("a", "b") for area in areas[d]], distance)
        count = len(self.cases["a"])
        return {"a": every[:count], "b": every[count:]}

    def _keep_common(self) -> dict[str, list[str]]:
        """Leave out slices at heights that the other domain lacks; gives the ids of scans that are left out whole."""
        kept = with_partners(self.heights, self.slices)
        lost = {}
        for domain in ("a", "b"):
            filled = [i for i, k in enumerate(kept[domain]) if len(k)]
            if not filled:
                raise InputError(
                    "patches.matching profile finds no height that both domains have.",
                    "Do both show the same part of the body? Otherwise take matching any.",
                )
            lost[domain] = [case.id for case, k in zip(self.cases[domain], kept[domain], strict=True) if not len(k)]
            self.cases[domain] = [self.cases[domain][i] for i in filled]
            self.slices[domain] = [kept[domain][i] for i in filled]
            self.heights[domain] = [self.heights[domain][i] for i in filled]
        return lost

    def __len__(self) -> int:
        return self.sampling.steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        random = np.random.default_rng([self.sampling.seed, 0, step])
        drawn: dict[str, list[npt.NDArray[np.generic]]] = {"a": [], "body_a": [], "b": [], "body_b": []}
        for position in range(self.sampling.batch_size):
            # Every process chooses all places, which costs nothing, and cuts its own patches only.
            places = self._draw(random)
            if position not in self.own:
                continue
            # The halves of a pair are cut together, other patches one by one.
            for together in [list(places)] if self.paired else [[domain] for domain in places]:
                _, middle, seed = places[together[0]]
                cases = {domain: self.cases[domain][places[domain][0]] for domain in together}
                for domain, (image, body) in self._patches(cases, middle, seed).items():
                    drawn[domain].append(image)
                    drawn[f"body_{domain}"].append(body)
        return {name: torch.from_numpy(np.stack(patches)) for name, patches in drawn.items()}

    def describe(self, step: int) -> str:
        """The cases and positions in item `step` of all processes, in words."""
        random = np.random.default_rng([self.sampling.seed, 0, step])
        what = "box around axial slice" if self.shape.spatial_dims == 3 else f"{self.shape.plane} slice"
        shown = []
        for _ in range(self.sampling.batch_size):
            for domain, (case, middle, _) in self._draw(random).items():
                shown.append(f"case {self.cases[domain][case].id} of {domain} ({what} {middle} of the working grid)")
        return ", ".join(shown)

    def _draw(self, random: np.random.Generator) -> dict[str, tuple[int, int, int]]:
        """For a patch of each domain: its case, its middle slice, and the seed of its crop and augmentation."""
        index = int(random.integers(len(self.cases["a"])))
        k = int(random.choice(self.slices["a"][index]))
        if self.paired:
            places = {"a": (index, k), "b": (index, k)}
        else:
            other = int(random.choice(self._partners(index, k)))
            places = {"a": (index, k), "b": (other, self._matched(index, k, other, random))}
        # Paired patches go through the same random numbers, so that they stay the same place.
        seeds = dict.fromkeys(("a", "b"), int(random.integers(2**31))) if self.paired else {}
        # The default is drawn for pairs too.
        return {d: (*place, seeds.get(d, int(random.integers(2**31)))) for d, place in places.items()}

    def _partners(self, index: int, k: int) -> npt.NDArray[np.intp]:
        """Cases of b that have a partner for this slice of a."""
        if self.matching != "profile":
            return np.arange(len(self.cases["b"]))
        apart = [
            np.abs(heights[eligible] - self.heights["a"][index][k]).min()
            for heights, eligible in zip(self.heights["b"], self.slices["b"], strict=True)
        ]
        return np.flatnonzero(np.array(apart) <= MATCH_TOLERANCE)

    def _matched(self, index: int, k: int, other: int, random: np.random.Generator) -> int:
        eligible = self.slices["b"][other]
        if self.matching == "any":
            return int(random.choice(eligible))
        apart = np.abs(self.heights["b"][other][eligible] - self.heights["a"][index][k])
        near = eligible[apart <= max(MATCH_TOLERANCE, apart.min())]
        return int(random.choice(near))

    def _patches(self, cases: dict[str, PatchSource], middle: int, seed: int) -> dict[str, tuple[Floats, Bools]]:
        """Crop, mirror and augment the patch of one case, or in the same way the patches of a pair.

        The crop is drawn again while a patch shows too little.
        """
        boxes = self.shape.spatial_dims == 3
        slabs = [self._slab(case.body[None], middle) for case in cases.values()]
        body = slabs[0] if len(slabs) == 1 else np.logical_and(*slabs)
        # Of a box only what is cut is read; a slice is taken out whole.
        images = {domain: self._slab(cast("Floats", case.image), middle) for domain, case in cases.items()}
        for attempt in range(TRIES):
            random = np.random.default_rng([seed, attempt])
            source, target = choose_window(body, self.shape.size, random, {3: middle} if boxes else None)
            cut: tuple[Any, ...] = (..., *source[1:]) if boxes else source
            inside = np.zeros((self.shape.slices, *self.shape.size), dtype=bool)
            inside[target] = body[source]
            patches = {}
            for domain, image in images.items():
                patch = np.full((image.shape[0], *self.shape.size), BACKGROUND, dtype=np.float32)
                patch[target] = image[cut]
                if len(cases) > 1:
                    patch[~_of_every_channel(inside, patch)] = BACKGROUND
                patches[domain] = patch
            if all(shows_something(patch, self.shape.slices) for patch in patches.values()):
                break
        flip = self.sampling.flip and random.random() < 0.5
        mirrored = flip and not (self.shape.spatial_dims == 2 and self.axis == 0)
        made = {}
        for domain, patch in patches.items():
            shown = _of_every_channel(inside, patch)
            if mirrored:
                patch, shown = patch[:, ::-1].copy(), shown[:, ::-1].copy()
            if domain in self.augmentation:
                patch, shown = self.augmentation[domain](patch, shown, seed)
            made[domain] = patch, shown
        return made

    def _slab(self, volume: npt.NDArray[Values], middle: int) -> npt.NDArray[Values]:
        """(C s, *spatial), the part of (C, X, Y, Z) from which a patch is cut; of a box all of it."""
        if self.shape.spatial_dims == 3:
            return volume
        return stack_of_slices(volume, self.axis, middle, self.shape.neighbors)

    def loader(self, start: int = 0, *, workers: int = 0, pin_memory: bool = False) -> DataLoader[dict[str, Tensor]]:
        """The batches of the steps `start` to the end, in order."""
        return DataLoader(
            self,
            batch_size=None,
            sampler=range(start, self.sampling.steps),
            num_workers=workers,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # the loader draws a number when it starts; not from the training's
        )


def require_fitting(dataset: TrainingPatches) -> None:
    """Refuse a training whose batches or patches are too large for its volumes.

    Raises:
        InputError: if a batch holds more patches than a domain has slices to learn from, or even the largest volume
            fills less than `LEAST_FILLED` of a patch.
    """
    problems = []
    size, axis, batch = dataset.shape.size, dataset.axis, dataset.sampling.batch_size
    for domain, cases in dataset.cases.items():
        count = sum(len(slices) for slices in dataset.slices[domain])
        if batch > count:
            problems.append(
                f"a step takes {batch} patches of {domain}, but its {len(cases)} volumes have only "
                f"{count} slices with body; set training.batch_size (times accumulate and processes) to at most {count}"
            )
        shapes = [case.slices.shape for case in cases]
        if dataset.shape.spatial_dims == 2:
            shapes = [tuple(n for i, n in enumerate(shape) if i != axis) for shape in shapes]
        filled = [filled_share(shape, size) for shape in shapes]
        largest = int(np.argmax(filled))
        if filled[largest] < LEAST_FILLED:
            problems.append(
                f"patches.size is {list(size)} voxels, but the largest volume of {domain}, {cases[largest].id}, has "
                f"{list(shapes[largest])} along these axes: at least {100 * (1 - filled[largest]):.0f} % of every "
                f"patch would be empty; set patches.size to at most {[-(-n // 16) * 16 for n in shapes[largest]]}, "
                "or to null"
            )
    raise_all(problems, "the training does not fit its volumes:")


def filled_share(shape: Sequence[int], size: Sequence[int]) -> float:
    """Share of a patch of `size` voxels that a volume of `shape` voxels along the same axes can fill."""
    return float(np.prod([min(n, m) / m for n, m in zip(shape, size, strict=True)]))


def _of_every_channel(inside: Bools, patch: Floats) -> Bools:
    """The body (s, *spatial) for each channel of a patch (C s, *spatial)."""
    return np.concatenate([inside] * (len(patch) // len(inside)))


def _require_moving_alike(augmentation: Mapping[str, Augmentation]) -> None:
    """Refuse augmentations that move the halves of a pair differently."""
    movements = {
        (vary.spacing, vary.rotate, vary.scale, vary.translate, vary.resize_jitter) for vary in augmentation.values()
    }
    if augmentation and (len(movements) > 1 or len(augmentation) < 2):
        raise ValueError("paired patches need the same movements in a and b")
