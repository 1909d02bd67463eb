"""Preparation and the way back: what an identity network returns is what was given, where it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from axis_orders import ORDERS, Order, affine_of, along_axes
from monai.data import MetaTensor
from scipy import ndimage

from medcyclegan.errors import InputError
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import grid_of, read_volume
from medcyclegan.transforms.body import body_mask
from medcyclegan.transforms.geometry import resample, working_grid
from medcyclegan.transforms.intensity import CT_WINDOW, Scaler, mr_scaler
from medcyclegan.transforms.pipeline import Preparation, preparation_transform, prepare, restore

DATA = Path(__file__).parents[1].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the real volumes (../shared/data) are absent")

SHAPE = (24, 20, 18)
SPACING = (2.1, 2.7, 3.3)


def grid(order: Order = ORDERS[0], degrees: float = 0.0) -> Grid:
    return Grid(SHAPE, affine_of(order, degrees, SPACING))


def head() -> np.ndarray:
    index = np.moveaxis(np.indices(SHAPE), 0, -1) - (np.array(SHAPE) - 1) / 2
    return np.asarray(((index / np.array([9, 7, 6.5])) ** 2).sum(-1) <= 1)


def ct() -> np.ndarray:
    """A head of random tissue, some of it beyond the window, in air."""
    values = np.random.default_rng(0).uniform(-200, 2500, SHAPE)
    values[12, 10, 9] = 30000
    return np.where(head(), values, -1000).astype(np.float32)


def mr() -> np.ndarray:
    values = np.random.default_rng(0).uniform(200, 900, SHAPE)
    return np.where(head(), values, 3).astype(np.float32)


def volume(array: np.ndarray, g: Grid) -> MetaTensor:
    return MetaTensor(torch.from_numpy(array)[None], affine=torch.from_numpy(g.affine.copy()))


class TestIdentity:
    @pytest.mark.parametrize("degrees", [0.0, 14.0])
    @pytest.mark.parametrize("modality", ["MR", "CT"])
    def test_equal_spacing_gives_the_values_back(self, modality: str, degrees: float) -> None:
        array = ct() if modality == "CT" else mr()
        body = body_mask(array, SPACING, modality)
        scaler = Scaler(*CT_WINDOW) if modality == "CT" else mr_scaler(array, body)
        expected = np.where(body, scaler.undo(scaler.apply(array)), scaler.low)
        for order in ORDERS:
            source = grid(order, degrees)
            case = prepare([volume(array, source)], [Preparation(modality, along_axes(order, SPACING))])
            assert case.channels[0].scaler == scaler
            back = restore(case.image[0], case.grid, case.source_grid, case.channels[0].scaler, case.body)
            assert back.dtype == np.float32
            np.testing.assert_array_equal(back, expected.astype(np.float32))
        inside = body & (array >= scaler.low) & (array <= scaler.high)
        np.testing.assert_allclose(back[inside], array[inside], atol=1e-3)

    @pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.4, 3.0, 2.0)])
    def test_another_spacing_keeps_a_smooth_volume(self, spacing: tuple[float, float, float]) -> None:
        for order in ORDERS[::7]:
            source = grid(order, 14.0)
            world = np.moveaxis(np.indices(SHAPE), 0, -1) @ source.affine[:3, :3].T + source.affine[:3, 3]
            array = (200 + 500 * np.sin(world / 25).prod(-1)).astype(np.float32)
            case = prepare([volume(array, source)], [Preparation("CT", spacing)], np.ones(SHAPE, bool))
            back = restore(case.image[0], case.grid, case.source_grid, case.channels[0].scaler, case.body)
            inner = (slice(1, -1),) * 3
            # Twice the error of linear interpolation, h^2 / 8 times the curvature 500 / 25^2 per axis, and smoothing.
            assert np.abs(back - array)[inner].max() < 12
            # Half a voxel of displacement would cost 500 / 25 * 1.4 = 28 HU.
            assert np.abs(back - array)[inner].mean() < 2.5

    def test_a_blob_stays_where_it_is(self) -> None:
        for order in ORDERS[::7]:
            source = grid(order, 14.0)
            index = np.moveaxis(np.indices(SHAPE), 0, -1)
            blob = np.exp(-(((index - (13, 9, 8)) * SPACING) ** 2).sum(-1) / (2 * 5.0**2)) * 1000
            case = prepare(
                [volume((blob - 1024).astype(np.float32), source)], [Preparation("CT", (2.0, 2.0, 2.0))], blob > -1
            )
            mass = Scaler(0, 2).undo(case.image[0])  # 0 in air
            at = np.array([(np.indices(case.grid.shape)[k] * mass).sum() / mass.sum() for k in range(3)])
            expected = source.affine @ np.array([13, 9, 8, 1.0])
            np.testing.assert_allclose((case.grid.affine @ np.array([*at, 1]))[:3], expected[:3], atol=0.05)


class TestPrepare:
    def test_what_a_case_holds(self) -> None:
        source = grid(ORDERS[19], 14.0)
        case = prepare([volume(ct(), source)], [Preparation("CT", (2.0, 2.5, 3.0))])
        assert case.grid.matches(working_grid(source, (2.0, 2.5, 3.0)))
        assert case.source_grid.matches(source)
        assert type(case.image[0]) is np.ndarray and case.image[0].dtype == np.float32
        assert type(case.body) is np.ndarray and case.body.dtype == np.bool_
        assert case.image[0].shape == case.body.shape == case.grid.shape
        assert case.image[0].min() == -1.0 and case.image[0].max() <= 1.0
        assert (case.image[0][~case.body] == -1).all()
        expected = resample(body_mask(ct(), SPACING, "CT"), source, case.grid, fill=0, mode="nearest")
        np.testing.assert_array_equal(case.body, expected)

    def test_clipping_comes_before_interpolation(self) -> None:
        source = Grid(SHAPE, np.diag([*SPACING, 1.0]))
        array = np.full(SHAPE, 50.0, np.float32)
        array[12, 10, 9] = 30000
        spacing = (SPACING[0] / 2, SPACING[1], SPACING[2])
        case = prepare([volume(array, source)], [Preparation("CT", spacing)], np.ones(SHAPE, bool))
        hounsfield = case.channels[0].scaler.undo(case.image[0])
        # A quarter of the way from 50 to 3071 HU, not to 30000.
        np.testing.assert_allclose(hounsfield[23, 10, 9], 50 + 0.25 * (3071 - 50), rtol=1e-5)

    def test_order_of_scaling_and_resampling_does_not_matter(self) -> None:
        source = grid(ORDERS[5], 9.0)
        body = np.ones(SHAPE, bool)
        array = np.random.default_rng(0).uniform(-1000, 3000, SHAPE).astype(np.float32)
        case = prepare([volume(array, source)], [Preparation("CT", (2.0, 2.0, 2.0))], body)
        expected = Scaler(*CT_WINDOW).apply(resample(array, source, case.grid, fill=-1024))
        np.testing.assert_allclose(case.image[0], expected, atol=1e-6)

    def test_the_given_body_counts(self) -> None:
        source = grid()
        body = head().copy()
        body[:12] = False
        case = prepare([volume(mr(), source)], [Preparation("MR", SPACING)], body)
        np.testing.assert_array_equal(case.body, body)
        assert case.channels[0].scaler == mr_scaler(mr(), body)
        assert (case.image[0][~body] == -1).all()

    def test_the_given_volume_is_left_alone(self) -> None:
        given = volume(ct(), grid())
        prepare([given], [Preparation("CT", (3.0, 3.0, 3.0))])
        np.testing.assert_array_equal(given[0].numpy(), ct())
        assert given.applied_operations == [] and grid_of(given).matches(grid())

    def test_a_window_and_percentiles_of_ones_own(self) -> None:
        case = prepare([volume(ct(), grid())], [Preparation("CT", SPACING, ct_window=(-200.0, 300.0))])
        assert case.channels[0].scaler == Scaler(-200.0, 300.0)
        case = prepare([volume(mr(), grid())], [Preparation("MR", SPACING, mr_percentiles=(5.0, 95.0))])
        assert case.channels[0].scaler == mr_scaler(mr(), body_mask(mr(), SPACING, "MR"), (5.0, 95.0))


class TestTransform:
    @pytest.mark.parametrize("modality", ["MR", "CT"])
    @pytest.mark.parametrize("has_body", [True, False])
    def test_the_compose_gives_the_prepared_case(self, modality: str, has_body: bool) -> None:
        array = ct() if modality == "CT" else mr()
        source = grid(ORDERS[33], 5.0)
        preparation = Preparation(modality, (2.0, 2.0, 2.0))
        data = {"image": volume(array, source)}
        if has_body:
            data["body"] = volume(head().astype(np.uint8), source)
        transform = preparation_transform(preparation, has_body)
        result = transform(data)
        case = prepare([volume(array, source)], [preparation], head() if has_body else None)
        np.testing.assert_array_equal(result["image"][0].numpy(), case.image[0])
        np.testing.assert_array_equal(result["body"][0].numpy() > 0, case.body)
        back = transform.inverse(result)
        assert grid_of(back["image"]).matches(source, 1e-9) and grid_of(back["body"]).matches(source, 1e-9)
        expected = restore(case.image[0], case.grid, case.source_grid, case.channels[0].scaler)
        np.testing.assert_allclose(back["image"][0].numpy(), expected, rtol=1e-5, atol=1e-3)


class TestRestore:
    def test_outside_the_body_and_outside_the_grid_is_low(self) -> None:
        source = Grid((12, 12, 12), np.eye(4))
        inner = Grid((6, 6, 6), np.array([[1, 0, 0, 3.0], [0, 1, 0, 3], [0, 0, 1, 3], [0, 0, 0, 1]]))
        body = np.zeros(inner.shape, bool)
        body[:3] = True
        back = restore(np.zeros(inner.shape, np.float32), inner, source, Scaler(*CT_WINDOW), body)
        expected = np.full(source.shape, -1024.0, np.float32)
        expected[3:6, 3:9, 3:9] = 1023.5
        np.testing.assert_array_equal(back, expected)

    def test_values_stay_in_the_window(self) -> None:
        source = grid(ORDERS[40], 20.0)
        target = working_grid(source, (1.3, 1.3, 1.3))
        values = np.random.default_rng(0).uniform(-1.2, 1.2, target.shape).astype(np.float32)
        back = restore(values, target, source, Scaler(*CT_WINDOW))
        assert back.min() >= -1024 and back.max() <= 3071


class TestRefusals:
    def test_a_working_grid_that_is_too_thin(self) -> None:
        with pytest.raises(
            InputError, match=r"scan\.nii: 24 x 20 x 18 voxels.*become 11 x 11 x 3 voxels of 5 x 5 x 20 mm"
        ):
            given = volume(ct(), grid())
            given.meta["filename_or_obj"] = "scan.nii"
            prepare([given], [Preparation("CT", (5.0, 5.0, 20.0))])

    def test_a_working_grid_that_is_too_large(self) -> None:
        micrometers = volume(ct(), Grid(SHAPE, np.diag([1000.0, 1000.0, 1000.0, 1.0])))
        with pytest.raises(InputError, match=r"of 1e\+03 x 1e\+03 x 1e\+03 mm become 24000 x .* voxel size"):
            prepare([micrometers], [Preparation("CT", (1.0, 1.0, 1.0))], np.ones(SHAPE, bool))

    def test_the_file_is_named_once(self) -> None:
        given = volume(np.random.default_rng(0).rayleigh(10, SHAPE).astype(np.float32), grid())
        given.meta["filename_or_obj"] = "noise.nii"
        with pytest.raises(InputError, match="no body was found") as caught:
            prepare([given], [Preparation("MR", SPACING)])
        assert str(caught.value).count("noise.nii") == 1

    def test_bodies_that_do_not_fit(self) -> None:
        with pytest.raises(InputError, match="body mask is empty"):
            prepare([volume(mr(), grid())], [Preparation("MR", SPACING)], np.zeros(SHAPE, bool))
        with pytest.raises(ValueError, match="does not fit the volume"):
            prepare([volume(mr(), grid())], [Preparation("MR", SPACING)], np.ones((2, 2, 2), bool))
        with pytest.raises(ValueError, match="does not fit values"):
            restore(np.zeros(SHAPE, np.float32), grid(), grid(), Scaler(0, 1), np.ones((2, 2, 2), bool))

    def test_modalities(self) -> None:
        with pytest.raises(InputError, match="modality 'PET': one of MR, CT"):
            Preparation("PET", SPACING)


@needs_data
def test_a_real_oblique_patient_comes_back() -> None:
    given = read_volume(DATA / "heads" / "mr_stroke_patient_t2.nii.gz")
    case = prepare([given], [Preparation("MR", (1.0, 1.0, 1.0))])
    back = restore(case.image[0], case.grid, case.source_grid, case.channels[0].scaler)
    array = given[0].numpy()
    body = body_mask(array, grid_of(given).spacing.tolist(), "MR")
    inside = body & (array >= case.channels[0].scaler.low) & (array <= case.channels[0].scaler.high)
    np.testing.assert_allclose(back[inside], array[inside], atol=1e-4)


def test_inverted_mr_has_no_bright_rim() -> None:
    """The air around the body is black, so inverted it would be as bright as bone and bleed into the skin."""
    index = np.indices((40, 40, 40), dtype=float)
    radius = np.sqrt(((index - 19.5) ** 2).sum(axis=0))
    mr = np.where(radius < 12, 100.0, 0.0) + np.where(radius < 6, 50.0, 0.0)  # bright skin, brighter middle
    volume = MetaTensor(torch.from_numpy(mr.astype(np.float32))[None], affine=torch.eye(4, dtype=torch.float64))
    case = prepare(
        [volume],
        [Preparation("MR", (1.7, 1.7, 1.7), mr_percentiles=(0, 100), mr_inverted=True, mr_floor=-0.5)],
        radius < 12,
    )
    middle = float(case.image[0][case.image[0].shape[0] // 2, case.image[0].shape[1] // 2, case.image[0].shape[2] // 2])
    assert middle == pytest.approx(-0.5, abs=1e-3)  # the brightest value is the floor, above the background
    assert case.image[0][case.body].max() <= 1.0 + 1e-6
    shell = case.body & ~ndimage.binary_erosion(case.body)
    assert case.image[0][shell].max() <= 1.0 and (case.image[0][~case.body] == -1).all()
    inner = ndimage.binary_erosion(case.body, iterations=2)
    assert case.image[0][shell].mean() < case.image[0][inner & (case.image[0] > 0)].mean()


def test_floor_leaves_a_gap_that_undo_closes() -> None:
    for inverted in (False, True):
        scaler = Scaler(0.0, 8.0, inverted, floor=-0.5)
        values = np.array([0.0, 2.0, 8.0, 9.0], np.float32)
        ends = [-0.5, -0.125, 1.0, 1.0]
        expected = [0.5 - x for x in ends] if inverted else ends
        np.testing.assert_allclose(scaler.apply(values), expected, atol=1e-6)
        np.testing.assert_allclose(scaler.undo(scaler.apply(values)), [0, 2, 8, 8], atol=1e-5)
        assert Scaler.from_dict(scaler.to_dict()) == scaler
    with pytest.raises(InputError, match="floor"):
        Scaler(0.0, 1.0, floor=1.0)
