"""Drawing slices: a function of (seed, step, rank), unpaired, inside the body, never out of range."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from medcyclegan.data.patches import UnpairedSlices, crop_or_pad, eligible_slices
from medcyclegan.errors import InputError


@dataclass
class Volume:
    """Voxel value encodes the slice; the body is a box."""

    id: str
    shape: tuple[int, int, int] = (20, 24, 10)
    body_slices: slice = field(default_factory=lambda: slice(2, 8))

    @property
    def body(self) -> np.ndarray:
        body = np.zeros(self.shape, bool)
        body[4:16, 5:20, self.body_slices] = True
        return body

    @property
    def image(self) -> np.ndarray:
        values = np.broadcast_to(np.linspace(-0.9, 0.9, self.shape[2], dtype=np.float32), self.shape)
        return np.where(self.body, values, np.float32(-1))


def slices(**settings: object) -> UnpairedSlices:
    arguments: dict[str, object] = {"size": (16, 16), "batch_size": 2, "steps": 50, "seed": 1} | settings
    return UnpairedSlices([Volume("a1"), Volume("a2")], [Volume("b1", (30, 14, 12))], **arguments)  # type: ignore[arg-type]


def test_a_step_is_a_function_of_seed_step_and_rank() -> None:
    assert torch.equal(slices()[7]["a"], slices()[7]["a"])
    for other in (slices(seed=2)[7], slices(rank=1)[7], slices()[8]):
        assert not torch.equal(slices()[7]["b"], other["b"])


def test_loader_goes_on_where_it_is_told_with_any_number_of_workers() -> None:
    direct = [slices()[step]["a"] for step in range(46, 50)]
    for workers in (0, 2):
        loaded = [batch["a"] for batch in slices().loader(46, workers=workers)]
        assert len(loaded) == 4
        assert all(torch.equal(x, y) for x, y in zip(loaded, direct, strict=True))


def test_batches_have_their_shape_and_range_and_show_body() -> None:
    for step in range(50):
        for batch in slices()[step].values():
            assert batch.shape == (2, 1, 16, 16) and batch.dtype == torch.float32
            assert batch.min() >= -1 and batch.max() <= 1
            assert (batch > -1).flatten(1).any(dim=1).all()


def test_domains_are_drawn_independently() -> None:
    """If slices were matched, the height of one would tell the height of the other."""
    dataset = slices(batch_size=1, steps=600)
    heights = np.array([[float(dataset[i][d].max()) for d in ("a", "b")] for i in range(600)])
    assert abs(np.corrcoef(heights.T)[0, 1]) < 0.12


def test_every_eligible_slice_is_drawn() -> None:
    dataset = slices(batch_size=1, steps=300)
    assert len({round(float(dataset[i]["a"].max()), 3) for i in range(300)}) == 6


def test_slices_without_enough_body_or_contrast_are_left_out() -> None:
    assert eligible_slices(Volume("v"), 0.05).tolist() == [2, 3, 4, 5, 6, 7]

    class Flat(Volume):
        @property
        def image(self) -> np.ndarray:
            return np.full(self.shape, -1, np.float32)

    with pytest.raises(InputError, match="case flat has no slice"):
        eligible_slices(Flat("flat"), 0.05)


def test_flip_mirrors_left_and_right_only() -> None:
    plain, flipped = slices(batch_size=1, steps=40), slices(batch_size=1, steps=40, flip=True)
    same = mirrored = 0
    for step in range(40):
        a, b = plain[step]["a"][0, 0], flipped[step]["a"][0, 0]
        same += torch.equal(a, b)
        mirrored += torch.equal(a.flip(0), b)
    assert same > 5 and mirrored > 5


@pytest.mark.parametrize("size", [(8, 8), (12, 15), (16, 20), (20, 24), (40, 30), (16, 40)])
def test_cropping_stays_on_the_body_and_padding_keeps_it_whole(size: tuple[int, int]) -> None:
    volume, random = Volume("v"), np.random.default_rng(0)
    image, body = volume.image[:, :, 4], volume.body[:, :, 4]
    for _ in range(30):
        patch = crop_or_pad(image, body, size, random)
        assert patch.shape == size
        inside = int((patch > -1).sum())
        assert inside == min(size[0], 12) * min(size[1], 15)
