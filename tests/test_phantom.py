"""The phantoms: known HU, registered MR, linear partial volume, headers that lie nowhere, and the same bytes twice."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from medcyclegan.errors import InputError
from medcyclegan.phantom import (
    CT_NOISE_HU,
    HU,
    MR_SNR,
    Cohort,
    Head,
    Phantom,
    Tissue,
    head,
    sample,
    spin_echo,
    write_cohort,
)
from medcyclegan.phantom.cohort import _grid, _with_table, _write_nifti
from medcyclegan.phantom.scan import _PROPERTIES, _points, _receive

SHAPE, SPACING = (72, 88, 40), (3.0, 3.0, 4.0)
SMALL: dict[str, Any] = {"train_mr": 2, "train_ct": 3, "test": 2, "shape": (48, 60, 28), "spacing_mm": (4.5, 4.5, 5.5)}
TINY: dict[str, Any] = {**SMALL, "shape": (12, 15, 7), "spacing_mm": (18.0, 18.0, 22.0)}


def demo_grid(subject: Head, variant: int = 0) -> tuple[tuple[int, int, int], np.ndarray]:
    return _grid(subject, SHAPE, SPACING, variant)


@pytest.fixture(scope="module")
def scan() -> Phantom:
    return sample(head(3), *demo_grid(head(3)))


@pytest.fixture(scope="module")
def pure() -> Phantom:
    """One point per voxel, so that no voxel is mixed."""
    return sample(head(3), *demo_grid(head(3)), supersample=1)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("cohort"), seed=5, **SMALL)


def load(path: Path) -> np.ndarray:
    return nib.load(path).get_fdata()


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_same_seed_same_scan_other_seed_other_head(pure: Phantom) -> None:
    shape, affine = demo_grid(head(3))
    again, *others = (sample(head(seed), shape, affine, supersample=1) for seed in (3, 4, 5))
    for name in ("ct", "mr_t1", "mr_t2", "labels", "body"):
        np.testing.assert_array_equal(getattr(pure, name), getattr(again, name))
    bodies = [head.labels > 0 for head in (pure, *others)]
    assert max(dice(a, b) for a, b in combinations(bodies, 2)) < 0.97


def test_pure_voxels_have_the_hu_of_the_table(pure: Phantom) -> None:
    for tissue in Tissue:
        values = pure.ct[pure.labels == tissue]
        if values.size < 30:
            continue
        spread = _PROPERTIES[tissue][1]
        # The texture has a correlation length of several voxels, so its mean does not shrink with their number.
        allowed = 4 * CT_NOISE_HU / np.sqrt(values.size) + 0.5 * spread + 0.7
        assert abs(values.mean() - HU[tissue]) < allowed, tissue.name
        assert np.std(values) == pytest.approx(np.hypot(spread, CT_NOISE_HU), rel=0.4), tissue.name


def test_partial_volume_mixes_hu_linearly() -> None:
    """2 points per axis in voxels of 5 mm are the points of a grid of 2.5 mm."""
    subject = head(8)
    affine = np.diag([5.0, 5, 5, 1])
    affine[:3, 3] = subject.world((0, -5, 20)) - 100
    coarse = sample(subject, (40, 40, 40), affine, supersample=2)
    half = affine @ np.array([[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 0.5, -0.25], [0, 0, 0, 1]])
    fine = sample(subject, (80, 80, 80), half, supersample=1).labels.reshape(40, 2, 40, 2, 40, 2)
    expected = np.array([HU[tissue] for tissue in Tissue])[fine].mean(axis=(1, 3, 5))
    # Only what is nearly free of bone, whose texture would hide a fault.
    mixed = (fine != fine[:, :1, :, :1, :, :1]).any(axis=(1, 3, 5)) & ~np.isin(fine, (5, 6, 11)).any(axis=(1, 3, 5))
    error = (coarse.ct - expected)[mixed]
    assert mixed.sum() > 2000 and expected[mixed].std() > 200
    assert abs(error.mean()) < 1.0 and error.std() < 1.4 * CT_NOISE_HU
    outside = (fine == Tissue.OUTSIDE).mean(axis=(1, 3, 5))
    np.testing.assert_array_equal(coarse.body, outside < 0.5)


def test_spin_echo_matches_numbers_worked_by_hand() -> None:
    t1, t2 = spin_echo("t1"), spin_echo("t2")
    # White matter: 0.77 (1 - e^(-500/500)) e^(-12/70) = 0.77 * 0.63212 * 0.84246
    assert t1[Tissue.WHITE] == pytest.approx(0.41006, abs=1e-4)
    # CSF: 1 (1 - e^(-4000/2569)) e^(-95/329) = 0.78925 * 0.74919
    assert t2[Tissue.CSF] == pytest.approx(0.59130, abs=1e-4)
    assert t1[Tissue.FAT] > t1[Tissue.WHITE] > t1[Tissue.GRAY] > t1[Tissue.CSF]
    assert t2[Tissue.CSF] > t2[Tissue.GRAY] > t2[Tissue.WHITE]
    for signal in (t1, t2):
        assert max(signal[t] for t in (Tissue.OUTSIDE, Tissue.CAVITY, Tissue.BONE, Tissue.TOOTH)) < 1e-3


@pytest.mark.parametrize("contrast", ["mr_t1", "mr_t2"])
def test_mr_and_ct_are_registered(scan: Phantom, contrast: str) -> None:
    def information(shift: tuple[int, int, int]) -> float:
        inner = (slice(2, -2),) * 3
        mr = np.roll(getattr(scan, contrast), shift, (0, 1, 2))[inner]
        joint = np.histogram2d(scan.ct[inner].ravel(), mr.ravel(), 48)[0] / mr.size
        apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
        filled = joint > 0
        return float((joint[filled] * np.log(joint[filled] / apart[filled])).sum())

    centered = information((0, 0, 0))
    for axis in range(3):
        for step in (-1, 1):
            shift = [0, 0, 0]
            shift[axis] = step
            assert information((shift[0], shift[1], shift[2])) < 0.95 * centered


def test_bone_and_air_are_equally_dark_in_mr(pure: Phantom) -> None:
    for mr in (pure.mr_t1, pure.mr_t2):
        white = mr[pure.labels == Tissue.WHITE].mean()
        outside, cavity, bone = (mr[pure.labels == t].mean() for t in (Tissue.OUTSIDE, Tissue.CAVITY, Tissue.BONE))
        assert max(outside, cavity, bone) < 0.08 * white
        assert bone == pytest.approx(cavity, rel=0.15)
        # The magnitude of pure noise is Rayleigh distributed, with mean sigma sqrt(pi / 2).
        assert white / (outside / np.sqrt(np.pi / 2)) == pytest.approx(MR_SNR, rel=0.2)


def test_receive_field_varies_and_stays_within_its_bounds() -> None:
    ones, still = np.ones((40, 48, 32), np.float32), np.zeros((40, 48, 32), np.float32)
    for seed in range(4):
        image = _receive(np.random.default_rng(seed), ones, 1e-6, still, np.diag([5.0, 5, 5, 1]))
        assert 1.1 < image.max() / image.min() <= 1.2 / 0.8


def test_heads_are_plausible_and_the_brain_is_closed_in() -> None:
    for seed in range(6):
        subject = head(seed)
        affine = np.diag([3.0, 3, 3, 1])
        affine[:3, 3] = subject.world((0, -2, 0)) - np.array([120, 135, 117])
        labels = sample(subject, (80, 90, 78), affine, supersample=1).labels
        liters = np.isin(labels, (Tissue.GRAY, Tissue.WHITE, Tissue.LESION)).sum() * 27e-6
        assert 0.9 < liters < 1.7
        assert all((labels == tissue).any() for tissue in Tissue if tissue is not Tissue.LESION)
        assert (labels == Tissue.LESION).any() == (subject.lesion is not None)
        brain = np.isin(labels, (Tissue.GRAY, Tissue.WHITE, Tissue.LESION))
        assert not np.isin(labels[ndimage.binary_dilation(brain)], (Tissue.OUTSIDE, Tissue.SKIN)).any()
        for wall in (labels[0], labels[-1], labels[:, -1], labels[:, :, -1]):
            assert not wall.any()
    lesions = np.mean([head(seed).lesion is not None for seed in range(300)])
    assert 0.18 < lesions < 0.32


def test_tissue_does_not_depend_on_the_block_it_is_computed_in() -> None:
    """Shapes far from a block are skipped there; all points at once skip nothing."""
    for seed in range(3):
        subject = head(seed)
        affine = np.diag([4.0, 4, 4, 1])
        affine[:3, 3] = subject.world((0, -5, 100)) - np.array([110, 130, 200])
        at_once = subject.tissue_at(_points((slice(0, 55), slice(0, 65), slice(0, 55)), affine, 1))
        in_blocks = sample(subject, (55, 65, 55), affine, supersample=1).labels
        np.testing.assert_array_equal(at_once.reshape(55, 65, 55), in_blocks)


def test_anatomy_predicts_hu_better_than_any_intensity_table(scan: Phantom) -> None:
    """Per-bin medians fitted on the very case are the best a table from MR intensity to HU can do."""

    def error(key: np.ndarray) -> float:
        return sum(np.abs(ct[key == k] - np.median(ct[key == k])).sum() for k in np.unique(key)) / ct.size

    ct, mr = scan.ct[scan.body], scan.mr_t1[scan.body]
    table = error(np.digitize(mr, np.linspace(mr.min(), mr.max(), 257)))
    constant = error(np.zeros_like(mr))
    assert table < 0.7 * constant
    assert table > 1.5 * error(scan.labels[scan.body])


def test_every_header_puts_a_landmark_in_the_same_place(tmp_path: Path) -> None:
    subject = head(1)
    seen, reference = set(), {}
    for variant in range(6):
        size, affine = _grid(subject, (64, 80, 64), (3.0, 3.0, 3.0), variant)
        seen.add(nib.aff2axcodes(affine))
        labels = sample(subject, size, affine, supersample=1).labels
        _write_nifti(tmp_path / "labels.nii.gz", affine, labels, np.uint8, 1.0, 0.0)
        image = nib.load(tmp_path / "labels.nii.gz")
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-3)
        # The eyes are only about 300 voxels, so that their centroid is the coarser one.
        for tissue, tolerance_mm in ((Tissue.GRAY, 0.5), (Tissue.EYE, 1.4)):
            voxels = np.argwhere(image.get_fdata() == tissue)
            place = nib.affines.apply_affine(image.affine, voxels).mean(axis=0)
            volume = len(voxels) * abs(np.linalg.det(image.affine[:3, :3]))
            if variant == 0:
                reference[tissue] = (place, volume)
            np.testing.assert_allclose(place, reference[tissue][0], atol=tolerance_mm)
            assert volume == pytest.approx(reference[tissue][1], rel=0.12)
    assert len(seen) == 6 and ("P", "I", "L") in seen


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (1.0, -1024.0), (0.5, -1024.0)])
def test_scaled_integers_read_back_as_hu(tmp_path: Path, slope: float, intercept: float) -> None:
    hu = np.array([-1024.0, -1000, -0.4, 0, 37, 1300, 3071], np.float32).reshape(7, 1, 1)
    _write_nifti(tmp_path / "ct.nii.gz", np.eye(4), hu, np.int16, slope, intercept)
    image = nib.load(tmp_path / "ct.nii.gz")
    assert image.get_data_dtype() == np.int16 and (image.dataobj.slope, image.dataobj.inter) == (slope, intercept)
    np.testing.assert_allclose(image.get_fdata(), hu, atol=slope / 2)


def test_cohort_is_complete_and_in_hu(cohort: Cohort) -> None:
    groups = (cohort.train_mr, cohort.train_ct, cohort.test_mr, cohort.test_ct, cohort.test_mask)
    assert [len(group) for group in groups] == [2, 3, 2, 2, 2]
    assert sorted(cohort.folder.rglob("*.nii.gz")) == sorted(path for group in groups for path in group)
    assert cohort.train_ct[0] == cohort.folder / "train" / "ct" / "ct_001.nii.gz"
    assert cohort.test_mask[1] == cohort.folder / "test" / "mask" / "case_002.nii.gz"
    for path in (*cohort.train_ct, *cohort.test_ct):
        hu = load(path)
        # The two commonest things in the field of view are air and brain.
        counts, edges = np.histogram(hu, np.arange(-1030, 200, 20))
        assert np.median(hu[hu < -900]) == pytest.approx(HU[Tissue.OUTSIDE], abs=2)
        assert edges[10:][counts[10:].argmax()] in (10, 30)
    scalings = {(nib.load(path).dataobj.slope, nib.load(path).dataobj.inter) for path in cohort.train_ct}
    assert scalings == {(1.0, 0.0), (1.0, -1024.0), (0.5, -1024.0)}


def test_test_cases_are_paired_and_the_mask_is_the_body(cohort: Cohort) -> None:
    for mr_path, ct_path, mask_path in zip(cohort.test_mr, cohort.test_ct, cohort.test_mask, strict=True):
        images = [nib.load(path) for path in (mr_path, ct_path, mask_path)]
        for image in images[1:]:
            np.testing.assert_array_equal(image.affine, images[0].affine)
        mr, ct, mask = (image.get_fdata() for image in images)
        assert set(np.unique(mask)) == {0, 1}
        # Closing the nostrils' and the lower cut's openings is not the business of this test, hence not exactly 1.
        assert dice(mask > 0, ndimage.binary_fill_holes(ct > -450)) > 0.985
        assert mr[mask > 0].mean() > 5 * mr[mask == 0].mean()


def test_no_head_is_drawn_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr("medcyclegan.phantom.cohort.head", lambda seed: seeds.append(seed) or head(seed))
    write_cohort(tmp_path / "cohort", seed=5, **TINY)
    assert len(seeds) == 7 and len(set(seeds)) == 7


def test_every_second_training_ct_has_a_table_that_leaves_the_head_alone(cohort: Cohort, scan: Phantom) -> None:
    for number, path in enumerate(cohort.train_ct):
        parts, _ = ndimage.label(load(path) > -880)
        sizes = np.sort(np.bincount(parts.ravel())[1:])[::-1]
        assert (sizes.size > 1 and sizes[1] > 300) == (number % 2 == 1)
    after = _with_table(head(3), scan)
    np.testing.assert_array_equal(after[scan.body], scan.ct[scan.body])
    assert (after - scan.ct).max() > 300


def test_same_call_same_bytes(tmp_path: Path) -> None:
    first, again, other = (write_cohort(tmp_path / str(n), seed=seed, **TINY) for n, seed in enumerate((5, 5, 6)))
    for path in first.folder.rglob("*.nii.gz"):
        assert path.read_bytes() == (again.folder / path.relative_to(first.folder)).read_bytes()
    assert other.train_mr[0].read_bytes() != again.train_mr[0].read_bytes()


def test_contrast_chooses_the_weighting(tmp_path: Path) -> None:
    few: dict[str, Any] = {**SMALL, "train_mr": 0, "train_ct": 0, "test": 1}
    t1, t2 = (write_cohort(tmp_path / c, seed=2, contrast=c, **few) for c in ("t1", "t2"))
    ct, mask = load(t1.test_ct[0]), load(t1.test_mask[0])
    np.testing.assert_array_equal(ct, load(t2.test_ct[0]))
    fat = (mask > 0) & (abs(ct - HU[Tissue.FAT]) < 25)
    brain = ndimage.binary_erosion((mask > 0) & (abs(ct - 30) < 40), iterations=2)
    for written, brighter in ((t1, True), (t2, False)):
        mr = load(written.test_mr[0])
        assert (np.median(mr[fat]) > 1.2 * np.median(mr[brain])) == brighter


def test_unusable_arguments_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(InputError) as caught:
        write_cohort(tmp_path, seed=-1, test=-2, spacing_mm=(0, 1, 1), shape=(0, 1, 1), contrast="t3")  # type: ignore[arg-type]
    for word in (str(tmp_path), "seed is -1", "-2", "spacing_mm", "shape is", "'t3'"):
        assert word in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]


def test_sample_refuses_what_is_no_grid() -> None:
    for shape, affine, points in (
        ((4, 4, 0), np.eye(4), 1),
        ((4, 4, 4), np.zeros((4, 4)), 1),
        ((4, 4, 4), np.eye(4), 0),
    ):
        with pytest.raises(ValueError, match="need"):
            sample(head(0), shape, affine, points)
