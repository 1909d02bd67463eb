"""The scrollable slices show the right place, the right values and the right side, and stay within their bytes."""

from __future__ import annotations

import io

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medcyclegan.io.grid import Grid
from medcyclegan.report.display import PLANES, RasOrder, on_screen, percentile_range
from medcyclegan.report.viewer import GAP, CaseView, PlaneView, case_view
from medcyclegan.report.volumes import CaseVolumes

WINDOW = (-1000.0, 1000.0)
AFFINE = np.diag([2.0, 1.0, 5.0, 1.0])
AFFINE[:3, 3] = (-20, -15, 100)
SHAPE = (20, 30, 10)
# In RAS: water everywhere, air in the outermost voxels, one bright block at the patient's right, anterior, superior.
HEAD = np.full(SHAPE, -1000.0, np.float32)
HEAD[1:-1, 1:-1, 1:-1] = 0
BLOCK = (slice(13, 18), slice(22, 28), slice(6, 9))
HEAD[BLOCK] = 1000
INSIDE = HEAD > -500


def view(sct: np.ndarray, ct: np.ndarray = HEAD, limit: int = 10**6, **more: np.ndarray | None) -> CaseView:
    return case_view(CaseVolumes(Grid(SHAPE, AFFINE), ct, sct, INSIDE, **more), WINDOW, limit)


def tile(seen: CaseView, plane: PlaneView, column: str, index: int | None = None) -> np.ndarray:
    """(rows, columns, RGB) of one column of the slice shown first, or of the slice number `index`."""
    chosen = [p for p in plane.pictures if p.number == index] if index is not None else [plane.pictures[plane.start]]
    image = Image.open(io.BytesIO(chosen[0].webp))
    assert image.format == "WEBP" and image.size == (plane.width, plane.height)
    whole = np.asarray(image.convert("RGB")).astype(int)
    place = [entry.name for entry in seen.columns].index(column)
    width = (plane.width + GAP) // len(seen.columns)
    return whole[:, place * (width + GAP) : place * (width + GAP) + width]


def test_right_is_left_anterior_is_up_and_superior_is_up() -> None:
    seen = view(HEAD)
    through = {"Axial": 7, "Coronal": 25, "Sagittal": 15}
    for plane in seen.planes:
        shown = tile(seen, plane, "CT", through[plane.plane.name])
        rows, columns = np.nonzero(shown.min(axis=-1) > 220)
        assert len(rows) > 50
        # the block lies at the patient's right and anterior, and superior: left and top in every plane
        assert columns.mean() < shown.shape[1] / 2 - 5 and rows.mean() < shown.shape[0] / 2 - 5, plane.plane.name
    assert [plane.plane.letters for plane in seen.planes] == [tuple("RLAP"), tuple("RLSI"), tuple("APSI")]


@pytest.mark.parametrize("codes", ["LPS", "LAS", "SRA", "PIL", "ASL"])
def test_pictures_do_not_depend_on_the_order_of_the_axes(codes: str) -> None:
    straight = nib.Nifti1Image(HEAD, AFFINE)
    start, end = nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(codes)
    turned = straight.as_reoriented(nib.orientations.ornt_transform(start, end))
    volume = np.asarray(turned.dataobj)
    grid = Grid(volume.shape, turned.affine)
    other = case_view(CaseVolumes(grid, volume, volume, volume > -500), WINDOW, 10**6)
    for mine, theirs in zip(view(HEAD).planes, other.planes, strict=True):
        assert [p.webp for p in mine.pictures] == [p.webp for p in theirs.pictures]
        assert [p.position_mm for p in mine.pictures] == pytest.approx([p.position_mm for p in theirs.pictures])
        # the slice number is that of the file: its voxels are those of the slice
        for a, b in zip(mine.pictures, theirs.pictures, strict=True):
            assert np.array_equal(
                np.sort(np.take(HEAD, a.number, "ijk".index(a.axis)), axis=None),
                np.sort(np.take(volume, b.number, "ijk".index(b.axis)), axis=None),
            )


def test_positions_are_millimeters_in_space() -> None:
    axial, coronal, sagittal = view(HEAD).planes
    assert {p.number: p.position_mm for p in axial.pictures}[7] == 100 + 7 * 5
    assert {p.number: p.position_mm for p in coronal.pictures}[25] == -15 + 25
    assert {p.number: p.position_mm for p in sagittal.pictures}[15] == -20 + 15 * 2


def test_proportions_are_those_of_the_patient() -> None:
    # in view: the mask with a margin of 6 mm, which here is the whole volume: 40 x 30 x 50 mm
    seen = view(HEAD)
    width = (seen.planes[0].width + GAP) // 3 - GAP
    assert [plane.height / width for plane in seen.planes] == pytest.approx([30 / 40, 50 / 40, 50 / 40], abs=0.02)


def test_gray_is_linear_in_the_window_and_the_error_is_signed() -> None:
    seen = view(HEAD + 250)
    axial = seen.planes[0]
    middle = np.s_[axial.height // 2 - 4 : axial.height // 2 + 4, 100:108]
    assert tile(seen, axial, "CT")[middle].mean() == pytest.approx(255 * 0.5, abs=3)
    assert tile(seen, axial, "Synthetic CT")[middle].mean() == pytest.approx(255 * 0.625, abs=3)
    red, _, blue = tile(seen, axial, "Synthetic CT − CT")[middle].mean(axis=(0, 1))
    assert red > blue + 60
    lower = view(HEAD - 250)
    red, _, blue = tile(lower, lower.planes[0], "Synthetic CT − CT")[middle].mean(axis=(0, 1))
    assert blue > red + 60
    same = view(HEAD)
    assert tile(same, same.planes[0], "Synthetic CT − CT")[middle].min() > 235
    error = next(column for column in seen.columns if column.name == "Synthetic CT − CT")
    assert error.low == -error.high == -500


def test_what_has_no_value_is_magenta() -> None:
    holed = HEAD.copy()
    holed[6:14, 11:19, 3:7] = np.nan
    seen = view(holed)
    shown = tile(seen, seen.planes[0], "Synthetic CT")
    magenta = (shown[..., 0] > 200) & (shown[..., 1] < 60) & (shown[..., 2] > 200)
    assert magenta.mean() > 0.05
    assert not ((np.ptp(tile(seen, seen.planes[0], "CT"), axis=-1)) > 40).any()


def test_errors_of_slices_are_means_in_the_mask_and_the_worst_slice_is_there() -> None:
    sct = HEAD.copy()
    sct[:, :, 3] += 100
    sct[0, :, :] += 900  # outside the mask, so it does not count
    sct[1:-1, 2, 6] += 300
    seen = view(sct, limit=30_000)
    axial = seen.planes[0]
    errors = {picture.number: picture.error_hu for picture in axial.pictures}
    assert axial.worst is not None and axial.pictures[axial.worst].number == 3
    assert errors[3] == 100
    assert errors.get(0) is None
    # 18 of the 18 x 28 voxels of the mask in slice 6 are off by 300
    full = {p.number: p.error_hu for p in view(sct).planes[0].pictures}
    assert full[6] == pytest.approx(300 / 28)
    assert full[5] == 0


def test_pictures_stay_within_their_bytes_and_show_all_that_fits() -> None:
    random = np.random.default_rng(0)
    shape = (160, 160, 120)
    noise = random.normal(0, 400, shape).astype(np.float32)
    grid, inside = Grid(shape, np.eye(4)), np.ones(shape, bool)
    counts = []
    for limit in (400_000, 1_200_000):
        seen = case_view(CaseVolumes(grid, noise[::-1], noise, inside, noise), WINDOW, limit)
        assert 0.6 * limit < seen.bytes <= limit
        counts.append([len(plane.pictures) for plane in seen.planes])
        for plane in seen.planes:
            numbers = [picture.number for picture in plane.pictures]
            assert numbers == sorted(set(numbers)) and plane.available == shape[plane.plane.cut]
            assert numbers[plane.start] == (shape[plane.plane.cut] - 1) // 2
    assert counts[0] < counts[1]
    # nothing is left out where everything fits
    assert [len(plane.pictures) for plane in view(HEAD).planes] == [10, 30, 20]


def test_companions_become_columns_with_their_own_scale() -> None:
    mr = np.where(INSIDE, 500.0, 0).astype(np.float32)
    mr[BLOCK] = 800
    seen = view(HEAD, mr=mr, uncertainty=np.where(INSIDE, 7.0, 0).astype(np.float32))
    assert [column.name for column in seen.columns] == [
        "MR",
        "Synthetic CT",
        "CT",
        "Synthetic CT − CT",
        "Uncertainty map",
    ]
    assert (seen.columns[0].low, seen.columns[0].high) == (500, 800)
    assert (seen.columns[4].low, seen.columns[4].high) == (0, 8)
    assert (seen.columns[1].low, seen.columns[1].high) == WINDOW


def test_what_is_dense_outside_the_mask_stays_in_view() -> None:
    shape = (60, 60, 20)
    ct = np.full(shape, -1000.0, np.float32)
    ct[20:30, 20:30, 5:15] = 0
    inside = ct > -500
    grid = Grid(shape, np.eye(4))
    near = case_view(CaseVolumes(grid, ct, ct, inside), WINDOW, 10**6).planes[2]
    assert near.available == 10 + 2 * 6
    invented = ct.copy()
    invented[55, 25, 10] = 300  # in the synthetic CT alone, far outside the mask
    far = case_view(CaseVolumes(grid, ct, invented, inside), WINDOW, 10**6).planes[2]
    assert far.available == 60 - (20 - 6)


def test_other_grids_and_empty_windows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"MR.*\(3, 3, 3\)"):
        view(HEAD, mr=np.zeros((3, 3, 3)))
    with pytest.raises(ValueError, match="window"):
        case_view(CaseVolumes(Grid(SHAPE, AFFINE), HEAD, HEAD, INSIDE), (5, 5), 1)


def test_an_empty_mask_is_drawn_without_errors() -> None:
    seen = case_view(CaseVolumes(Grid(SHAPE, AFFINE), HEAD, HEAD, np.zeros(SHAPE, bool)), WINDOW, 10**6)
    assert all(plane.worst is None for plane in seen.planes)
    assert all(picture.error_hu is None for plane in seen.planes for picture in plane.pictures)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SRA", "PIL"])
def test_indices_follow_the_voxels(codes: str) -> None:
    straight = nib.Nifti1Image(np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE), AFFINE)
    start, end = nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(codes)
    turned = straight.as_reoriented(nib.orientations.ornt_transform(start, end))
    volume = np.asarray(turned.dataobj)
    order = RasOrder(Grid(volume.shape, turned.affine))
    assert order.shape == SHAPE and np.allclose(order.spacing, (2, 1, 5))
    ras = order.apply(volume)
    assert np.array_equal(ras, straight.dataobj)
    assert np.allclose(order.affine, AFFINE)
    for axis, index in ((0, 4), (1, 7), (2, 3)):
        name, number = order.file_index(axis, index)
        assert set(np.take(volume, number, "ijk".index(name)).ravel()) == set(np.take(ras, index, axis).ravel())


def test_a_slice_on_the_screen_by_hand() -> None:
    ras = np.arange(8).reshape(2, 2, 2)  # value = 4 x + 2 y + z
    axial, coronal, sagittal = (on_screen(ras, plane, 0) for plane in PLANES)
    # rows from the top, columns from the left: (x right, y anterior) first
    assert axial.tolist() == [[6, 2], [4, 0]]
    assert coronal.tolist() == [[5, 1], [4, 0]]
    assert sagittal.tolist() == [[3, 1], [2, 0]]


def test_ranges_without_a_unit_are_never_empty() -> None:
    none = np.zeros((2, 2, 2), bool)
    assert percentile_range(np.full((2, 2, 2), 3.0), none) == (3, 4)
    assert percentile_range(np.full((2, 2, 2), np.nan), none) == (0, 1)
