"""Drawing slices: a function of (seed, step), shared by processes, unpaired, inside the body, never out of range."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from medcyclegan.data.augment import Augmentation
from medcyclegan.data.patches import (
    Shape,
    UnpairedPatches,
    crop_or_pad,
    eligible_slices,
    relative_height,
    stack_of_slices,
)
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


def slices(**settings: object) -> UnpairedPatches:
    arguments: dict[str, object] = {"shape": Shape((16, 16)), "batch_size": 2, "steps": 50, "seed": 1} | settings
    return UnpairedPatches([Volume("a1"), Volume("a2")], [Volume("b1", (30, 14, 12))], **arguments)  # type: ignore[arg-type]


def test_a_step_is_a_function_of_seed_and_step() -> None:
    assert torch.equal(slices()[7]["a"], slices()[7]["a"])
    for other in (slices(seed=2)[7], slices()[8]):
        assert not torch.equal(slices()[7]["b"], other["b"])


def test_processes_share_the_batch_of_one() -> None:
    """12 patches, 2 pieces, 3 processes: in every piece of 6 the second process has the third and the fourth."""
    whole = slices(batch_size=12)[5]
    shares = [slices(batch_size=12, rank=rank, processes=3, pieces=2)[5] for rank in range(3)]
    for name, patches in whole.items():
        assert torch.equal(shares[1][name], patches[[2, 3, 8, 9]]), name
        pieces = [share[name].chunk(2)[piece] for piece in range(2) for share in shares]
        assert torch.equal(torch.cat(pieces), patches), name
    with pytest.raises(ValueError, match="cannot share 12 patches"):
        slices(batch_size=12, processes=5)


def test_loader_goes_on_where_it_is_told_with_any_number_of_workers() -> None:
    direct = [slices()[step]["a"] for step in range(46, 50)]
    for workers in (0, 2):
        loaded = [batch["a"] for batch in slices().loader(46, workers=workers)]
        assert len(loaded) == 4
        assert all(torch.equal(x, y) for x, y in zip(loaded, direct, strict=True))


def test_batches_have_their_shape_and_range_and_show_body() -> None:
    for step in range(50):
        item = slices()[step]
        for domain in ("a", "b"):
            batch, body = item[domain], item[f"body_{domain}"]
            assert batch.shape == (2, 1, 16, 16) and batch.dtype == torch.float32
            assert batch.min() >= -1 and batch.max() <= 1
            assert (batch > -1).flatten(1).any(dim=1).all()
            assert body.dtype == torch.bool and torch.equal(body, batch > -1)


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
        patch = crop_or_pad(image[None], body[None], size, random)[0]
        assert patch.shape == size
        inside = int((patch > -1).sum())
        assert inside == min(size[0], 12) * min(size[1], 15)


@dataclass
class Ramp:
    """Voxel value is a linear function of the place, so a patch tells where it comes from; body everywhere."""

    id: str
    shape: tuple[int, int, int] = (24, 30, 20)
    coefficients: tuple[float, float, float] = (0.001, 0.02, 0.04)

    @property
    def body(self) -> np.ndarray:
        return np.ones(self.shape, bool)

    @property
    def image(self) -> np.ndarray:
        return (np.tensordot(self.coefficients, np.indices(self.shape), axes=1) - 0.9).astype(np.float32)


def patches(shape: Shape, **settings: object) -> UnpairedPatches:
    arguments: dict[str, object] = {"batch_size": 1, "steps": 30, "seed": 1} | settings
    return UnpairedPatches([Ramp("a1")], [Ramp("b1")], shape=shape, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("plane", "across", "along"),
    [("axial", 0.04, (0.001, 0.02)), ("coronal", 0.02, (0.001, 0.04)), ("sagittal", 0.001, (0.02, 0.04))],
)
def test_slices_of_every_plane_with_neighbors(plane: str, across: float, along: tuple[float, float]) -> None:
    """Channels step across the plane, the two axes run along the remaining ones in the order right, anterior, up."""
    dataset = patches(Shape((16, 17), plane, neighbors=1))
    seen = False
    for step in range(30):
        stack = dataset[step]["a"][0]
        assert stack.shape == (3, 16, 17)
        torch.testing.assert_close(stack.diff(dim=1), torch.full((3, 15, 17), along[0]), atol=1e-5, rtol=0)
        torch.testing.assert_close(stack.diff(dim=2), torch.full((3, 16, 16), along[1]), atol=1e-5, rtol=0)
        steps = stack.diff(dim=0)
        # At the volume's ends the last slice is repeated, elsewhere neighbors are one slice apart.
        seen |= bool(torch.allclose(steps, torch.full_like(steps, across), atol=1e-5))
    assert seen


def test_stacks_repeat_the_last_slice_beyond_the_volume() -> None:
    volume = np.arange(5)[None, None, :] * np.ones((2, 3, 1))
    assert [stack_of_slices(volume, 2, 0, 2)[i, 0, 0] for i in range(5)] == [0, 0, 0, 1, 2]
    assert [stack_of_slices(volume, 2, 4, 1)[i, 0, 0] for i in range(3)] == [3, 4, 4]


def test_boxes_lie_inside_the_volume_and_everywhere() -> None:
    dataset = patches(Shape((16, 16, 16)), steps=80)
    corners = set()
    for step in range(80):
        box = dataset[step]["a"][0, 0]
        assert box.shape == (16, 16, 16) and (box > -1).all()
        torch.testing.assert_close(box.diff(dim=2), torch.full((16, 16, 15), 0.04), atol=1e-5, rtol=0)
        corners.add(round((float(box[0, 0, 0]) + 0.9) * 1000))
    heights = {corner // 40 for corner in corners}
    assert len(corners) > 40 and heights >= {0, 4}


class Cone(Volume):
    """Body wide at the bottom; `below` slices of neck and `above` slices of air differ with the coverage."""

    def __init__(self, id: str, scale: int, below: int, above: int) -> None:
        self.id, self.scale, self.below, self.above = id, scale, below, above
        self.shape = (40, 40, 10 * scale + below + above)

    @property
    def body(self) -> np.ndarray:
        body = np.zeros(self.shape, bool)
        top = self.shape[2] - self.above
        for k in range(top):
            half = min(5 * self.scale, 1 + (top - 1 - k))
            body[20 - half : 20 + half, 20 - half : 20 + half, k] = True
        return body

    @property
    def image(self) -> np.ndarray:
        values = np.linspace(-0.5, 0.9, self.shape[2], dtype=np.float32) * np.ones(self.shape, np.float32)
        values[20:] += 0.08
        return np.where(self.body, values, np.float32(-1))


def test_vertex_matching_pairs_equal_cross_sections_whatever_the_coverage() -> None:
    short, long = Cone("short", 2, 3, 1), Cone("long", 2, 20, 6)
    dataset = UnpairedPatches(
        [short], [long], shape=Shape((48, 48)), batch_size=1, steps=60, seed=0, minimum_body=0.0, matching="vertex"
    )
    areas = [[int(dataset[i][f"body_{d}"].sum()) for d in ("a", "b")] for i in range(60)]
    assert all(a == b for a, b in areas) or np.corrcoef(np.array(areas).T)[0, 1] > 0.98
    assert len({a for a, _ in areas}) > 4


def test_vertex_height_does_not_depend_on_head_size_or_coverage() -> None:
    small, large = Cone("small", 1, 2, 0), Cone("large", 3, 30, 9)
    for case, scale in ((small, 1), (large, 3)):
        height = relative_height(case, 2, "vertex")
        top = case.shape[2] - case.above - 1
        assert height[top] == 0
        # The widest slice is 10 scale voxels wide: one width below the vertex is -1.
        assert height[top - 5 * scale] == pytest.approx(-0.5)


def test_heads_without_their_top_are_warned_of() -> None:
    whole, cut = Cone("whole", 2, 3, 1), Volume("cut", (20, 24, 12), slice(0, 12))
    arguments: dict[str, object] = {"shape": Shape((16, 16)), "batch_size": 1, "steps": 1, "seed": 0}
    with pytest.warns(UserWarning, match="the top of the head is not in cut;"):
        UnpairedPatches([whole], [cut], matching="vertex", **arguments)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        UnpairedPatches([whole], [whole], matching="vertex", **arguments)  # type: ignore[arg-type]
        UnpairedPatches([whole], [cut], matching="extent", **arguments)  # type: ignore[arg-type]


class Part:
    """Slices `first` to `last` of a cone whose diameter is written into its image."""

    def __init__(self, name: str, first: int, last: int) -> None:
        whole = Cone(name, 2, 30, 4)
        self.id = name
        self.body, self.image = whole.body[:, :, first:last], whole.image[:, :, first:last]


def test_profile_matching_pairs_equal_cross_sections_of_cut_scans_and_leaves_the_rest_out() -> None:
    length = Cone("whole", 2, 30, 4).shape[2]
    top = length - 4
    # b lacks the uppermost slices and begins in the air otherwise; no scan of b has the tip.
    whole, cut = Part("whole", 0, length), Part("cut", 10, top - 5)
    dataset = UnpairedPatches(
        [whole], [cut, cut], shape=Shape((48, 48)), batch_size=1, steps=60, seed=0, minimum_body=0.0, matching="profile"
    )
    sizes = [[int(dataset[i][f"body_{d}"].sum()) for d in ("a", "b")] for i in range(60)]
    apart = np.abs(np.sqrt(np.array(sizes))[:, 0] - np.sqrt(np.array(sizes))[:, 1])
    assert apart.max() <= 4 and apart.mean() < 2  # a slice further up is 2 voxels narrower
    tip = int(np.sqrt(whole.body.sum(axis=(0, 1))[top - 2]))
    assert min(a for a, _ in sizes) > tip**2
    assert dataset.left_out["a"] > 0 and dataset.left_out["b"] == 0


def test_extent_matching_pairs_the_same_share_of_the_body() -> None:
    low, high = Volume("low", (20, 24, 12), slice(0, 12)), Volume("high", (20, 24, 40), slice(10, 34))
    assert relative_height(high, 2, "extent")[[10, 33]].tolist() == [0, 1]
    dataset = UnpairedPatches([low], [high], shape=Shape((16, 16)), batch_size=1, steps=80, seed=0, matching="extent")
    for step in range(80):
        a, b = (float(dataset[step][d].max()) for d in ("a", "b"))
        share_a = (a + 0.9) / 1.8  # value -0.9 to 0.9 over the slices 0 to 11, all of them body
        share_b = ((b + 0.9) / 1.8 * 39 - 10) / 23
        assert abs(share_a - share_b) <= 0.05 + 1e-3


def test_paired_patches_show_the_same_place_even_when_moved() -> None:
    a = [Ramp("p1"), Ramp("p2", coefficients=(0.01, 0.005, 0.02))]
    varied = {d: Augmentation(spacing=(1, 1), rotate=10, translate=3, resize_jitter=1.2) for d in ("a", "b")}
    dataset = UnpairedPatches(
        a, a, shape=Shape((16, 16)), batch_size=2, steps=20, seed=0, flip=True, paired=True, augmentation=varied
    )
    for step in range(20):
        assert torch.equal(dataset[step]["a"], dataset[step]["b"])
    plain = UnpairedPatches(a, a, shape=Shape((16, 16)), batch_size=2, steps=20, seed=0, paired=True)
    assert not torch.equal(plain[0]["a"], dataset[0]["a"])


def test_patients_without_a_partner_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="p3"):
        UnpairedPatches([Ramp("p1")], [Ramp("p3")], shape=Shape((16, 16)), batch_size=1, steps=1, seed=0, paired=True)
    with pytest.raises(InputError, match=r"p1: a is \(24, 30, 20\)"):
        UnpairedPatches(
            [Ramp("p1")], [Ramp("p1", (24, 30, 21))], shape=Shape((16, 16)), batch_size=1, steps=1, seed=0, paired=True
        )


def test_impossible_shapes_are_refused() -> None:
    for wrong in ({"size": (16,)}, {"size": (16, 16), "plane": "oblique"}, {"size": (16, 16, 16), "neighbors": 1}):
        with pytest.raises(ValueError, match=r"no such patches|no neighboring"):
            Shape(**wrong)  # type: ignore[arg-type]
