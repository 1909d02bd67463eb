"""Drawing slices: a function of (seed, step), shared by processes, unpaired, inside the body, never out of range."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from medcyclegan import config, factory, phantom
from medcyclegan.data import patches as patches_module
from medcyclegan.data import stored_case
from medcyclegan.data.augment import Augmentation
from medcyclegan.data.heights import profile_heights
from medcyclegan.data.matching import relative_height, with_partners
from medcyclegan.data.patches import PatchSpec, Sampling, Share, TrainingPatches, require_fitting
from medcyclegan.data.prepared import PreparedCohort
from medcyclegan.data.slices import Slices, measure_slices
from medcyclegan.data.windows import crop_or_pad, stack_of_slices
from medcyclegan.errors import InputError
from medcyclegan.factory.monitoring import _picture_batch
from medcyclegan.io.grid import Grid, on_one_grid


class Measured:
    """What is known of a case without its voxels."""

    image: np.ndarray
    body: np.ndarray

    @property
    def slices(self) -> Slices:
        return measure_slices([self.image], self.body)


def drawn(
    a: list[Any], b: list[Any], *, shape: PatchSpec, paired: bool = False, share: Share | None = None, **settings: Any
) -> TrainingPatches:
    common = {
        x.id: measure_slices([x.image, y.image], x.body & y.body)
        for x, y in zip(a, b, strict=False)
        if x.body.shape == y.body.shape
    }
    return TrainingPatches(a, b, Sampling(shape, **settings), share, common if paired else None)


@dataclass
class Volume(Measured):
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
        return np.where(self.body, values, np.float32(-1))[None]


def slices(**settings: object) -> TrainingPatches:
    arguments: dict[str, object] = {"shape": PatchSpec((16, 16)), "batch_size": 2, "steps": 50, "seed": 1} | settings
    return drawn([Volume("a1"), Volume("a2")], [Volume("b1", (30, 14, 12))], **arguments)  # type: ignore[arg-type]


def test_a_step_is_a_function_of_seed_and_step() -> None:
    assert torch.equal(slices()[7]["a"], slices()[7]["a"])
    for other in (slices(seed=2)[7], slices()[8]):
        assert not torch.equal(slices()[7]["b"], other["b"])


def test_processes_share_the_batch_of_one() -> None:
    """12 patches, 2 micro-batches, 3 processes: in every one of 6 the second process has the third and the fourth."""
    whole = slices(batch_size=12)[5]
    shares = [slices(batch_size=12, share=Share(rank, 3, 2))[5] for rank in range(3)]
    for name, patches in whole.items():
        assert torch.equal(shares[1][name], patches[[2, 3, 8, 9]]), name
        parts = [share[name].chunk(2)[half] for half in range(2) for share in shares]
        assert torch.equal(torch.cat(parts), patches), name
    with pytest.raises(ValueError, match="cannot share 12 patches"):
        slices(batch_size=12, share=Share(processes=5))


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
    assert Volume("v").slices.eligible("v", 0.05).tolist() == [2, 3, 4, 5, 6, 7]

    class Flat(Volume):
        @property
        def image(self) -> np.ndarray:
            return np.full((1, *self.shape), -1, np.float32)

    with pytest.raises(InputError, match="case flat has no slice"):
        Flat("flat").slices.eligible("case flat", 0.05)


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
    image, body = volume.image[..., 4], volume.body[None, :, :, 4]
    for _ in range(30):
        patch = crop_or_pad(image, body, size, random)[0]
        assert patch.shape == size
        inside = int((patch > -1).sum())
        assert inside == min(size[0], 12) * min(size[1], 15)


@dataclass
class Ramp(Measured):
    """Voxel value is a linear function of the place, so a patch tells where it comes from; body everywhere."""

    id: str
    shape: tuple[int, int, int] = (24, 30, 20)
    coefficients: tuple[float, float, float] = (0.001, 0.02, 0.04)

    @property
    def body(self) -> np.ndarray:
        return np.ones(self.shape, bool)

    @property
    def image(self) -> np.ndarray:
        return (np.tensordot(self.coefficients, np.indices(self.shape), axes=1) - 0.9).astype(np.float32)[None]


def patches(shape: PatchSpec, **settings: object) -> TrainingPatches:
    arguments: dict[str, object] = {"batch_size": 1, "steps": 30, "seed": 1} | settings
    return drawn([Ramp("a1")], [Ramp("b1")], shape=shape, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("plane", "across", "along"),
    [("axial", 0.04, (0.001, 0.02)), ("coronal", 0.02, (0.001, 0.04)), ("sagittal", 0.001, (0.02, 0.04))],
)
def test_slices_of_every_plane_with_neighbors(plane: str, across: float, along: tuple[float, float]) -> None:
    """Channels step across the plane, the two axes run along the remaining ones in the order right, anterior, up."""
    dataset = patches(PatchSpec((16, 17), plane, neighbors=1))
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
    volume = np.arange(5) * np.ones((1, 2, 3, 1))
    assert [stack_of_slices(volume, 2, 0, 2)[i, 0, 0] for i in range(5)] == [0, 0, 0, 1, 2]
    assert [stack_of_slices(volume, 2, 4, 1)[i, 0, 0] for i in range(3)] == [3, 4, 4]


def test_boxes_lie_inside_the_volume_and_everywhere() -> None:
    dataset = patches(PatchSpec((16, 16, 16)), steps=80)
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
        return np.where(self.body, values, np.float32(-1))[None]


def test_vertex_matching_pairs_equal_cross_sections_whatever_the_coverage() -> None:
    short, long = Cone("short", 2, 3, 1), Cone("long", 2, 20, 6)
    dataset = drawn(
        [short], [long], shape=PatchSpec((48, 48)), batch_size=1, steps=60, seed=0, minimum_body=0.0, matching="vertex"
    )
    # A cone of half width h at a slice has (2 h)^2 voxels there; the matched slices lie at most 0.05 widths, one slice
    # of 20 voxels' width, apart, and the width grows by 2 from slice to slice.
    widths = [[math.isqrt(int(dataset[i][f"body_{d}"].sum())) for d in ("a", "b")] for i in range(60)]
    assert max(abs(a - b) for a, b in widths) <= 2 and any(a != b for a, b in widths)
    assert len({a for a, _ in widths}) > 4


def test_vertex_height_does_not_depend_on_head_size_or_coverage() -> None:
    small, large = Cone("small", 1, 2, 0), Cone("large", 3, 30, 9)
    for case, scale in ((small, 1), (large, 3)):
        height = relative_height(case.slices.areas[2], "vertex")
        top = case.shape[2] - case.above - 1
        assert height[top] == 0
        # The widest slice is 10 scale voxels wide: one width below the vertex is -1.
        assert height[top - 5 * scale] == pytest.approx(-0.5)


@pytest.fixture(scope="module")
def twins(cohort: phantom.Cohort, tmp_path_factory: pytest.TempPathFactory) -> PreparedCohort:
    """One patient in both domains on one grid."""
    data = {"a": str(cohort.test_mr[0].parent), "b": str(cohort.test_ct[0].parent)}
    return factory.prepare(config.parse({"data": data}, "the test"), tmp_path_factory.mktemp("twins") / "prepared")


@pytest.mark.filterwarnings("ignore:the bodies of a and b differ")
def test_opening_patches_reads_no_voxel(twins: PreparedCohort, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored is what the arrays show; and it is all that is read."""
    (a,), (b,) = twins.cases["a"], twins.cases["b"]
    assert a.id == b.id and list(twins.common) == [a.id]
    for case in (a, b):
        assert case.slices == measure_slices([np.asarray(case.image)], case.body)
    assert twins.common[a.id] == measure_slices([np.asarray(a.image), np.asarray(b.image)], a.body & b.body)

    def refuse(*_: object) -> None:
        raise AssertionError("an array was opened")

    monkeypatch.setattr(stored_case, "_mapped", refuse)
    for matching in ("any", "extent", "vertex", "profile"):
        dataset = TrainingPatches([a], [b], Sampling(PatchSpec((16, 16)), matching=matching))  # type: ignore[arg-type]
        require_fitting(dataset)
    pairs = TrainingPatches([a], [b], Sampling(PatchSpec((16, 16))), common=twins.common)
    assert pairs.paired and pairs.describe(0).startswith(f"case {a.id} of a")
    with pytest.raises(AssertionError, match="an array was opened"):
        pairs[0]


def test_heads_without_their_top_are_warned_of() -> None:
    whole, cut = Cone("whole", 2, 3, 1), Volume("cut", (20, 24, 12), slice(0, 12))
    arguments: dict[str, object] = {"shape": PatchSpec((16, 16)), "batch_size": 1, "steps": 1, "seed": 0}
    with pytest.warns(UserWarning, match="the top of the head is not in cut;"):
        drawn([whole], [cut], matching="vertex", **arguments)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn([whole], [whole], matching="vertex", **arguments)  # type: ignore[arg-type]
        drawn([whole], [cut], matching="extent", **arguments)  # type: ignore[arg-type]


class Part(Measured):
    """Slices `first` to `last` of a cone whose diameter is written into its image."""

    def __init__(self, name: str, first: int, last: int) -> None:
        whole = Cone(name, 2, 30, 4)
        self.id = name
        self.body, self.image = whole.body[:, :, first:last], whole.image[..., first:last]


def test_profile_matching_pairs_equal_cross_sections_of_cut_scans_and_leaves_the_rest_out() -> None:
    length = Cone("whole", 2, 30, 4).shape[2]
    top = length - 4
    # b lacks the uppermost slices and begins in the air otherwise; no scan of b has the tip.
    whole, cut = Part("whole", 0, length), Part("cut", 10, top - 5)
    dataset = drawn(
        [whole],
        [cut, cut],
        shape=PatchSpec((48, 48)),
        batch_size=1,
        steps=60,
        seed=0,
        minimum_body=0.0,
        matching="profile",
    )
    sizes = [[int(dataset[i][f"body_{d}"].sum()) for d in ("a", "b")] for i in range(60)]
    apart = np.abs(np.sqrt(np.array(sizes))[:, 0] - np.sqrt(np.array(sizes))[:, 1])
    assert apart.max() <= 4 and apart.mean() < 2  # a slice further up is 2 voxels narrower
    tip = int(np.sqrt(whole.body.sum(axis=(0, 1))[top - 2]))
    assert min(a for a, _ in sizes) > tip**2
    # The tip of `whole`, which no scan of b has: slices of body above the uppermost that was drawn.
    assert dataset.left_out["b"] == 0
    assert dataset.left_out["a"] == pytest.approx(1 - len(dataset.slices["a"][0]) / top)
    shown = dataset.slices["a"][0]
    assert top - 5 - 4 <= shown.max() + 1 <= top - 5 + 4 and shown.min() <= 10


def at_heights(monkeypatch: pytest.MonkeyPatch, *heights: float) -> None:
    """Profile matching that lays the scans at these heights, in this order; slices are 0.1 apart."""

    def laid(areas: list[np.ndarray], distance: float) -> list[np.ndarray]:
        return [start + 0.1 * np.arange(len(area)) for start, area in zip(heights, areas, strict=True)]

    monkeypatch.setattr(patches_module, "profile_heights", laid)


@pytest.mark.parametrize("domain", ["a", "b"])
def test_scans_that_profile_matching_drops_are_named_and_counted(domain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five hips among heads: no head has their heights. 6 slices of each scan show body."""
    heads, hips = [Volume("head1"), Volume("head2")], [Volume(f"hip{n}") for n in range(5)]
    given = {"a": heads, "b": heads[:1]} | {domain: [*heads, *hips]}
    starts = {"a": [0.0] * 2, "b": [0.0] * len(given["b"])} | {domain: [0.0, 0.0, *[50.0] * 5]}
    at_heights(monkeypatch, *starts["a"], *starts["b"])
    arguments: dict[str, Any] = {"shape": PatchSpec((16, 16)), "batch_size": 1, "steps": 30, "seed": 0}
    with pytest.warns(UserWarning) as caught:
        dataset = drawn(given["a"], given["b"], matching="profile", **arguments)
    (line,) = [str(w.message) for w in caught if "leaves out" in str(w.message)]
    assert f"5 of 7 scans of {domain} as a whole, and in all 71 % of the slices" in line
    assert "hip0, hip1, hip2 and 2 more" in line
    assert dataset.left_out == pytest.approx({"a": 0.0, "b": 0.0} | {domain: 5 / 7})
    assert {dataset.describe(step).count("hip") for step in range(30)} == {0}


def test_a_scan_that_fits_the_common_profile_nowhere_has_no_heights_and_is_named() -> None:
    """150 slices of air above 3 of body: shifted by 1.2 widths of 20, at most 27 lie in a scan of 100 slices."""
    whole = np.clip(20 - np.abs(np.arange(100) - 80), 5, 20) ** 2
    airy = np.concatenate([whole[:3], np.zeros(150, int)])
    airy[0] = 400  # its width
    fitted, lost = profile_heights([whole, airy])
    assert np.isfinite(fitted).all() and np.isnan(lost).all()
    heights = {"a": [fitted, lost], "b": [fitted]}
    slices = {"a": [np.arange(100), np.arange(3)], "b": [np.arange(100)]}
    kept = with_partners(heights, slices)
    assert [len(k) for k in kept["a"]] == [100, 0] and [len(k) for k in kept["b"]] == [100]


def test_profile_matching_without_a_common_height_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    at_heights(monkeypatch, 0.0, 50.0)
    with pytest.raises(InputError, match="profile finds no height that both domains have"):
        drawn(
            [Volume("a")], [Volume("b")], shape=PatchSpec((16, 16)), batch_size=1, steps=1, seed=0, matching="profile"
        )


@pytest.mark.parametrize("matching", ["any", "extent", "vertex", "profile"])
def test_the_share_left_out_is_that_which_is_never_drawn(matching: Any) -> None:
    """Whatever the way to choose a partner, all slices of body that come up, counted one by one."""
    a, b = [Cone("a1", 2, 3, 1), Cone("a2", 2, 8, 2)], [Cone("b1", 2, 25, 6), Cone("b2", 2, 4, 0)]
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        dataset = drawn(
            a, b, shape=PatchSpec((48, 48)), batch_size=4, steps=400, seed=0, matching=matching, minimum_body=0.0
        )
    random, seen = np.random.default_rng(0), {"a": set(), "b": set()}
    for _ in range(6000):
        for domain, (case, middle, _) in dataset._draw(random).items():
            seen[domain].add((dataset.cases[domain][case].id, middle))
    for domain, cases in (("a", a), ("b", b)):
        bodies = sum(int(case.body.any(axis=(0, 1)).sum()) for case in cases)
        assert dataset.left_out[domain] == pytest.approx(1 - len(seen[domain]) / bodies), domain
    assert (dataset.left_out["b"] > 0.2) == (matching in ("vertex", "profile"))


def test_matched_slices_that_lie_far_apart_are_told() -> None:
    """The neck of a, which no scan of b has, is shown beside the lowest slice of b."""
    arguments: dict[str, Any] = {
        "shape": PatchSpec((48, 48)),
        "batch_size": 1,
        "steps": 1,
        "seed": 0,
        "minimum_body": 0.0,
    }
    with pytest.warns(UserWarning, match=r"vertex: for \d\d % of the patches of a, the scan of b has nothing at a sim"):
        drawn([Cone("a", 2, 30, 1)], [Cone("b", 2, 3, 1)], matching="vertex", **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn([Cone("a", 2, 3, 1)], [Cone("b", 2, 30, 1)], matching="vertex", **arguments)


def test_extent_matching_pairs_the_same_share_of_the_body() -> None:
    low, high = Volume("low", (20, 24, 12), slice(0, 12)), Volume("high", (20, 24, 40), slice(10, 34))
    assert relative_height(high.slices.areas[2], "extent")[[10, 33]].tolist() == [0, 1]
    dataset = drawn([low], [high], shape=PatchSpec((16, 16)), batch_size=1, steps=80, seed=0, matching="extent")
    for step in range(80):
        a, b = (float(dataset[step][d].max()) for d in ("a", "b"))
        share_a = (a + 0.9) / 1.8  # value -0.9 to 0.9 over the slices 0 to 11, all of them body
        share_b = ((b + 0.9) / 1.8 * 39 - 10) / 23
        assert abs(share_a - share_b) <= 0.05 + 1e-3


@dataclass
class Half(Measured):
    """One half of a pair: its own body, its own contrast, and the same numbers where both show the same place.

    The value of a voxel is unique along both axes of every plane: 0.02 along x, 0.001 along y, 0.015 along z.
    """

    id: str
    low: tuple[int, int, int]
    high: tuple[int, int, int]
    brightness: float = 0.0
    shift: float = 0.0  # of the grid, mm
    shape: tuple[int, int, int] = (40, 36, 24)

    @property
    def grid(self) -> Grid:
        affine = np.eye(4)
        affine[0, 3] = self.shift
        return Grid(self.shape, affine)

    @property
    def body(self) -> np.ndarray:
        body = np.zeros(self.shape, bool)
        body[tuple(slice(start, stop) for start, stop in zip(self.low, self.high, strict=True))] = True
        return body

    @property
    def image(self) -> np.ndarray:
        values = np.tensordot((0.02, 0.001, 0.015), np.indices(self.shape), axes=1) - 0.7 + self.brightness
        return np.where(self.body, values, -1).astype(np.float32)[None]


def halves(**of_b: object) -> tuple[Half, Half]:
    """The body of b begins 10 slices higher, is wider to the right, narrower in front, and brighter by 0.1."""
    a = Half("p1", (6, 5, 2), (34, 31, 22))
    return a, Half(**{"id": "p1", "low": (4, 5, 12), "high": (38, 24, 24), "brightness": 0.1, **of_b})  # type: ignore[arg-type]


WHATEVER_IS_CUT = [
    PatchSpec((16, 16)),
    PatchSpec((48, 48)),
    PatchSpec((20, 64), "axial", neighbors=1),
    PatchSpec((24, 20), "coronal", neighbors=2),
    PatchSpec((16, 32), "sagittal"),
    PatchSpec((16, 16, 16)),
    PatchSpec((48, 16, 32)),
]


@pytest.mark.filterwarnings("ignore:the bodies of a and b differ")
@pytest.mark.parametrize("shape", WHATEVER_IS_CUT, ids=str)
def test_a_pair_is_cut_mirrored_and_blanked_alike_whatever_its_masks(shape: PatchSpec) -> None:
    a, b = halves()
    dataset = drawn([a], [b], shape=shape, batch_size=1, steps=40, seed=0, flip=True, paired=True)
    common = a.body & b.body
    mirrored, places = set(), set()
    for step in range(40):
        item = {name: tensor.numpy() for name, tensor in dataset[step].items()}
        inside = item["body_a"]
        assert np.array_equal(inside, item["body_b"]) and inside.any()
        assert (item["a"][~inside] == -1).all() and (item["b"][~inside] == -1).all()
        np.testing.assert_allclose(item["b"][inside] - item["a"][inside], 0.1, atol=1e-6)
        rises = np.diff(item["a"], axis=2)[inside[:, :, 1:] & inside[:, :, :-1]]
        mirrored.add(bool(rises[0] < 0))
        places.add(float(item["a"][inside].min()))
        # Only what is in both bodies is shown, and all of it where the patch is larger than the volume.
        assert np.isin(item["a"][inside].round(4), a.image[0][common].round(4)).all()
        if shape.size == (48, 48):
            assert inside.sum() == common[:, :, 12].sum()
    assert mirrored == ({False} if shape.plane == "sagittal" else {False, True})
    assert len(places) > 3
    # Slices 2 to 11 are in the body of a alone, 22 and 23 in that of b alone.
    assert (
        dataset.slices["a"][0].tolist()
        == dataset.slices["b"][0].tolist()
        == np.flatnonzero(common.any(axis=tuple(i for i in range(3) if i != dataset.axis))).tolist()
    )
    if dataset.axis == 2:
        assert dataset.left_out == pytest.approx({"a": 10 / 20, "b": 2 / 12})


@pytest.mark.filterwarnings("ignore:the bodies of a and b differ")
@pytest.mark.parametrize("size", [(16, 16), (16, 16, 16)], ids=str)
def test_a_pair_is_varied_alike_whatever_its_masks(size: tuple[int, ...]) -> None:
    """Space varies together; the difference of the halves, which is constant in the common body, tells."""
    vary = Augmentation(spacing=(1,) * len(size), rotate=20, scale=0.1, translate=3, resize_jitter=1.2)
    arguments: dict[str, Any] = {"shape": PatchSpec(size), "batch_size": 2, "steps": 10, "seed": 0, "paired": True}
    a, b = halves()
    dataset = drawn([a], [b], flip=True, augmentation={"a": vary, "b": vary}, **arguments)
    for step in range(10):
        item = dataset[step]
        assert torch.equal(item["body_a"], item["body_b"])
        whole = (item["a"] > -0.75) & item["body_a"]  # not mixed with the background by interpolation
        # What lies at the border is mixed alike in both: 0.1 times the share of body.
        difference = (item["b"] - item["a"])[whole]
        assert difference.min() > -1e-5 and difference.max() < 0.1 + 1e-5
        assert (difference > 0.0999).float().mean() > 0.6
    for other in ({"a": vary}, {"a": vary, "b": replace(vary, rotate=5)}):
        with pytest.raises(ValueError, match="same movements in a and b"):
            drawn([a], [b], augmentation=other, **arguments)
    recolored = {"a": replace(vary, gamma=0.3, noise=0.05), "b": vary}
    assert drawn([a], [b], augmentation=recolored, **arguments)[0]["a"].shape == (2, 1, *size)


def test_pairs_whose_bodies_differ_are_told_and_those_without_a_common_slice_refused() -> None:
    arguments: dict[str, Any] = {"shape": PatchSpec((16, 16)), "batch_size": 1, "steps": 1, "seed": 0, "paired": True}
    # 28 x 26 x 20 and 34 x 19 x 12 voxels, 28 x 19 x 10 of them common.
    with pytest.warns(UserWarning, match=r"differ in 1 of 1 pairs.*p1 \(63 % of a's, 31 % of b's\)"):
        drawn(*([half] for half in halves()), **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a, _ = halves()
        drawn([a], [replace(a, brightness=0.1, high=(33, 31, 22))], **arguments)
    with pytest.raises(InputError, match="p1: the bodies of a and b have no voxel in common"):
        drawn(*([half] for half in halves(low=(4, 5, 22))), **arguments)


@pytest.mark.parametrize(("shift", "fits"), [(0.09, True), (0.11, False), (500.0, False)])
def test_paired_volumes_lie_on_one_grid_and_not_only_in_one_shape(shift: float, fits: bool) -> None:
    a, _ = halves()
    b = replace(a, brightness=0.1, shift=shift)
    arguments: dict[str, Any] = {"shape": PatchSpec((16, 16)), "batch_size": 1, "steps": 1, "seed": 0, "paired": True}
    if fits:
        drawn([a], [b], **arguments)
        return
    with pytest.raises(InputError, match=rf"p1: .* up to {shift:.4g} mm apart \(at most 0.1 mm and 0.1 of a voxel"):
        drawn([a], [b], **arguments)


@pytest.mark.parametrize(
    "shape", [PatchSpec((48, 48)), PatchSpec((16, 16), "coronal", 1), PatchSpec((16, 16, 16))], ids=str
)
def test_the_pictures_of_a_pair_show_one_place(shape: PatchSpec) -> None:
    a, b = halves()
    pairs = SimpleNamespace(cases={"pairs_a": (a,), "pairs_b": (b,), "a": (), "b": ()})
    batch = _picture_batch(pairs, shape)  # type: ignore[arg-type]
    both = (batch["a"] > -1) & (batch["b"] > -1)
    assert both.flatten(1).any(dim=1).all()
    torch.testing.assert_close((batch["b"] - batch["a"])[both], torch.full((int(both.sum()),), 0.1), atol=1e-5, rtol=0)
    # Of two patients each is shown by its own body: the slices at 40 and 65 % of 20 and of 12 slices.
    others = SimpleNamespace(cases={"pairs_a": (), "pairs_b": (), "a": (a,), "b": (replace(b, id="p2"),)})
    apart = _picture_batch(others, PatchSpec((48, 48)))  # type: ignore[arg-type]
    lowest = [float(apart[d][n][apart[d][n] > -1].min()) for d in ("a", "b") for n in (0, 1)]
    expected = [0.02 * 6 + 0.001 * 5 + 0.015 * k - 0.7 for k in (9, 14)]
    expected += [0.02 * 4 + 0.001 * 5 + 0.015 * k - 0.6 for k in (16, 19)]
    assert lowest == pytest.approx(expected, abs=1e-5)


def test_one_grid_is_meant_in_voxels_where_they_are_small() -> None:
    """Voxels of 0.01 mm may lie 0.001 mm apart, not 0.1 mm."""
    small, moved = np.diag([0.01, 0.01, 0.02, 1.0]), np.diag([0.01, 0.01, 0.02, 1.0])
    moved[1, 3] = 0.0009
    assert on_one_grid(Grid((9, 9, 9), small), Grid((9, 9, 9), moved))
    moved[1, 3] = 0.0011
    assert not on_one_grid(Grid((9, 9, 9), small), Grid((9, 9, 9), moved))
    assert not on_one_grid(Grid((9, 9, 9), np.eye(4)), Grid((9, 9, 8), np.eye(4)))


def test_patients_without_a_partner_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="p3"):
        drawn([Ramp("p1")], [Ramp("p3")], shape=PatchSpec((16, 16)), batch_size=1, steps=1, seed=0, paired=True)
    with pytest.raises(InputError, match=r"p1: a is \(24, 30, 20\)"):
        drawn(
            [Ramp("p1")],
            [Ramp("p1", (24, 30, 21))],
            shape=PatchSpec((16, 16)),
            batch_size=1,
            steps=1,
            seed=0,
            paired=True,
        )


def test_impossible_shapes_are_refused() -> None:
    for wrong in ({"size": (16,)}, {"size": (16, 16), "plane": "oblique"}, {"size": (16, 16, 16), "neighbors": 1}):
        with pytest.raises(ValueError, match=r"no such patches|no neighboring"):
            PatchSpec(**wrong)  # type: ignore[arg-type]
