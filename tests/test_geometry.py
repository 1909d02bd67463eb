"""Geometry: nothing moves in the world, voxels that coincide are copied, and a linear function is resampled exactly."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from axis_orders import ORDERS, Order, affine_of, along_axes, rotation
from monai.data import MetaTensor
from monai.transforms import Compose
from scipy.ndimage import gaussian_filter1d

from medcyclegan.errors import InputError
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import grid_of
from medcyclegan.transforms.geometry import CropToBodyd, ToWorkingGridd, resample, working_grid

SHAPE = (9, 7, 6)


def grid(
    order: Order = ORDERS[0], degrees: float = 0.0, spacing: tuple = (1.0, 1.7, 2.6), shape: tuple = SHAPE
) -> Grid:
    return Grid(shape, affine_of(order, degrees, spacing))


def sheared() -> Grid:
    source = grid()
    affine = source.affine.copy()
    affine[1, 2] += 0.8
    return Grid(SHAPE, affine)


def world(g: Grid) -> np.ndarray:
    """(X, Y, Z, 3) world positions of voxel centers."""
    return np.moveaxis(np.indices(g.shape), 0, -1) @ g.affine[:3, :3].T + g.affine[:3, 3]


def linear(g: Grid) -> np.ndarray:
    return (world(g) @ np.array([0.31, -0.72, 1.13]) + 5.0).astype(np.float32)


class TestWorkingGrid:
    @pytest.mark.parametrize("degrees", [0.0, 12.0])
    def test_equal_spacing_means_the_same_voxels(self, degrees: float) -> None:
        for order in ORDERS:
            source = grid(order, degrees)
            target = working_grid(source, along_axes(order, (1.0, 1.7, 2.6)))
            assert nib.aff2axcodes(target.affine) == ("R", "A", "S")
            assert sorted(map(tuple, world(source).reshape(-1, 3).round(6))) == sorted(
                map(tuple, world(target).reshape(-1, 3).round(6))
            )

    @pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 0.9, 3.3), (4.0, 4.0, 4.0)])
    def test_field_of_view_center_and_directions(self, spacing: tuple[float, float, float]) -> None:
        for order in ORDERS:
            source = grid(order, 20.0)
            target = working_grid(source, spacing)
            np.testing.assert_allclose(target.spacing, spacing, rtol=1e-12)
            np.testing.assert_allclose(grid_center(target), grid_center(source), atol=1e-9)
            extent = np.array(along_axes(order, tuple(np.array(SHAPE) * source.spacing)))
            covered = np.array(target.shape) * spacing
            assert (covered >= extent - 1e-3 * np.array(spacing)).all() and (covered < extent + spacing).all()
            # Directions are those of the source, up to order and sign: nothing is rotated.
            cosines = (source.affine[:3, :3] / source.spacing).T @ (target.affine[:3, :3] / target.spacing)
            np.testing.assert_allclose(np.sort(np.abs(cosines), axis=0)[-1], 1, atol=1e-12)

    def test_rounding_of_a_float32_header_is_no_new_spacing(self) -> None:
        source = grid(spacing=tuple(float(np.float32(v)) for v in (0.9, 1.7, 2.6)))
        target = working_grid(source, (0.9, 1.7, 2.6))
        assert target.shape == source.shape and target.matches(source, 1e-12)

    def test_shear_stays(self) -> None:
        target = working_grid(sheared(), (1.0, 1.0, 1.0))
        np.testing.assert_allclose(target.affine[:3, :3], sheared().affine[:3, :3] / sheared().spacing, atol=1e-12)

    @pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 0.0, 1.0), (1.0, np.nan, 1.0)])
    def test_bad_spacings(self, spacing: tuple[float, ...]) -> None:
        with pytest.raises(InputError, match="three positive numbers"):
            working_grid(grid(), spacing)


def grid_center(g: Grid) -> np.ndarray:
    return np.asarray(g.affine @ np.array([*(np.array(g.shape) - 1) / 2, 1]))


class TestResample:
    @pytest.mark.parametrize("degrees", [0.0, 12.0])
    def test_permutations_and_flips_are_bit_exact(self, degrees: float) -> None:
        values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
        target = grid(ORDERS[0], degrees)
        for order in ORDERS:
            # The same voxels, stored in another order.
            permutation, signs = order
            stored = values.transpose(permutation)[tuple(slice(None, None, int(s)) for s in signs)]
            to_target = np.zeros((4, 4))
            to_target[list(permutation), range(3)] = signs
            to_target[:3, 3] = [SHAPE[axis] - 1 if signs[permutation.index(axis)] < 0 else 0 for axis in range(3)]
            to_target[3, 3] = 1
            source = Grid(stored.shape, target.affine @ to_target)
            for mode in ("linear", "nearest"):
                back = resample(stored, source, target, fill=-1.0, mode=mode)  # type: ignore[arg-type]
                np.testing.assert_array_equal(back, values)

    @pytest.mark.parametrize("order", [ORDERS[0], ORDERS[19], ORDERS[46]])
    def test_every_shift_of_every_flip_copies_what_there_is(self, order: Order) -> None:
        """Voxel by voxel: target index t along an axis is source index start + sign t of the axis it runs along."""
        (permutation, signs), shape = order, (4, 3, 5)
        values = np.arange(1.0, 61.0, dtype=np.float32).reshape(shape)
        values[1, 1, 1] = np.nan  # spoils its neighbors wherever anything is computed instead of copied
        for start in itertools.product((-2, 0, 3, 50), (0, 2, -3), (-1, 1, 3, 4)):
            index_map = np.zeros((4, 4))
            index_map[permutation, range(3)] = signs
            index_map[:, 3] = (*start, 1)
            source = grid(shape=shape)
            found = resample(values, source, Grid((5, 4, 3), source.affine @ index_map), fill=-9.0)
            expected = np.full((5, 4, 3), -9.0, np.float32)
            for t in np.ndindex(expected.shape):
                s = np.rint(index_map[:3, :3] @ t + start).astype(int)
                if (s >= 0).all() and (s < shape).all():
                    expected[t] = values[tuple(s)]
            np.testing.assert_array_equal(found, expected)

    def test_the_rounding_of_a_header_copies_and_a_thousandth_of_a_voxel_does_not(self) -> None:
        values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
        source = grid()
        for axis, (off, copied) in itertools.product(range(3), ((5e-5, True), (1e-3, False))):
            shift = np.eye(4)
            shift[axis, 3] = off
            moved = resample(values, source, Grid(SHAPE, source.affine @ shift), fill=0.0)
            assert np.array_equal(moved, values) is copied
            # A voxel that is too large by as much at its far end.
            stretch = np.eye(4)
            stretch[axis, axis] += off / SHAPE[axis]
            moved = resample(values, source, Grid(SHAPE, source.affine @ stretch), fill=0.0)
            assert np.array_equal(moved, values) is copied

    @pytest.mark.parametrize("source", [grid(ORDERS[k], 15.0) for k in (0, 13, 30, 47)] + [sheared()])
    def test_a_linear_function_is_exact_inside(self, source: Grid) -> None:
        affine = source.affine @ np.diag([0.61, 0.43, 0.83, 1.0])
        affine[:3, :3] = rotation(3.0) @ affine[:3, :3]
        affine[:3, 3] = source.affine[:3, 3] + source.affine[:3, :3] @ (1.2, 1.1, 1.3)
        target = Grid((8, 8, 4), affine)
        index = np.linalg.inv(source.affine) @ np.vstack([world(target).reshape(-1, 3).T, np.ones(256)])
        assert (index[:3].min(1) >= 0).all() and (index[:3].max(1) <= np.array(SHAPE) - 1).all()
        np.testing.assert_allclose(resample(linear(source), source, target, fill=1e6), linear(target), atol=1e-4)

    def test_a_shift_of_a_hundredth_of_a_voxel_is_not_dropped(self) -> None:
        source = grid()
        shift = np.eye(4)
        shift[0, 3] = 0.01
        target = Grid((7, 6, 5), source.affine @ shift)
        np.testing.assert_allclose(resample(linear(source), source, target, fill=0.0), linear(target), atol=1e-5)

    def test_half_a_voxel_of_edge_and_then_fill(self) -> None:
        source = Grid((3, 2, 2), np.eye(4))
        values = np.array([1.0, 2.0, 4.0], np.float32)[:, None, None] * np.ones((3, 2, 2), np.float32)
        affine = np.diag([0.25, 1.0, 1.0, 1.0])
        affine[0, 3] = -0.9
        line = resample(values, source, Grid((17, 2, 2), affine), fill=-7.0)[:, 0, 0]
        x = -0.9 + 0.25 * np.arange(17)
        inside = np.interp(x, [0, 1, 2], [1, 2, 4])
        np.testing.assert_allclose(line, np.where((x < -0.5) | (x > 2.5), -7.0, inside), atol=1e-6)

    def test_smoothing_has_the_stated_width(self) -> None:
        # A wave of 4 voxels, sampled at every third voxel: a Gaussian of width sigma leaves exp(-2 (pi sigma / 4)^2).
        n = 240
        wave = np.cos(2 * np.pi * np.arange(n) / 4).astype(np.float32)[:, None, None] * np.ones((n, 2, 2), np.float32)
        affine = np.diag([3.0, 1.0, 1.0, 1.0])
        source, target = Grid((n, 2, 2), np.eye(4)), Grid((n // 3, 2, 2), affine)
        sigma = np.sqrt((3**2 - 1) / (8 * np.log(2)))
        expected = np.exp(-2 * (np.pi * sigma / 4) ** 2) * wave[::3, 0, 0]
        smoothed = resample(wave, source, target, fill=0.0)[:, 0, 0]
        np.testing.assert_allclose(smoothed[5:-5], expected[5:-5], atol=2e-3)
        sampled = resample(wave, source, target, fill=0.0, antialias=False)[:, 0, 0]
        np.testing.assert_allclose(sampled, wave[::3, 0, 0], atol=1e-6)

    def test_only_the_coarser_axis_is_smoothed(self) -> None:
        values = np.random.default_rng(0).normal(size=(12, 12, 12)).astype(np.float32)
        source = Grid((12, 12, 12), np.eye(4))
        permuted = np.eye(4)[[1, 0, 2, 3]] @ np.diag([1, 2.0, 1, 1])  # target axis 1 runs along source axis 0
        result = resample(values, source, Grid((12, 6, 12), permuted), fill=0.0)
        expected = gaussian_filter1d(values, np.sqrt(3 / (8 * np.log(2))), axis=0, mode="nearest")[::2].transpose(
            1, 0, 2
        )
        np.testing.assert_allclose(result, expected, atol=1e-6)

    def test_a_constant_stays_constant(self) -> None:
        values = np.full(SHAPE, 37.25, np.float32)
        for spacing in ((0.7, 0.7, 0.7), (3.0, 2.0, 4.0)):
            target = working_grid(grid(ORDERS[9], 25.0), spacing)
            result = resample(values, grid(ORDERS[9], 25.0), target, fill=-1000.0)
            np.testing.assert_allclose(result, 37.25, rtol=1e-6)

    @pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int16])
    def test_nearest_keeps_type_and_labels(self, dtype: type) -> None:
        labels = (np.random.default_rng(0).integers(0, 4, SHAPE)).astype(dtype)
        source = grid()
        target = working_grid(source, (0.5, 0.85, 1.3))
        fine = resample(labels, source, target, fill=0, mode="nearest")
        assert fine.dtype == dtype
        np.testing.assert_array_equal(fine, labels.repeat(2, 0).repeat(2, 1).repeat(2, 2))

    def test_the_input_is_left_alone(self) -> None:
        values = linear(grid())
        before = values.copy()
        resample(values, grid(), working_grid(grid(), (3.0, 3.0, 3.0)), fill=0.0)
        np.testing.assert_array_equal(values, before)

    def test_shape_and_mode_are_checked(self) -> None:
        with pytest.raises(ValueError, match="does not fit the grid"):
            resample(np.zeros((2, 2, 2)), grid(), grid(), fill=0.0)
        with pytest.raises(ValueError, match="'linear' or 'nearest'"):
            resample(np.zeros(SHAPE), grid(), grid(), fill=0.0, mode="cubic")  # type: ignore[arg-type]


class TestToWorkingGridd:
    def volume(self, source: Grid, values: np.ndarray) -> MetaTensor:
        return MetaTensor(torch.from_numpy(values)[None], affine=torch.from_numpy(source.affine.copy()))

    def test_there_and_back(self) -> None:
        for order in ORDERS:
            source = grid(order, 18.0)
            data = {"image": self.volume(source, linear(source)), "body": self.volume(source, linear(source) > 5)}
            spacing = along_axes(order, (1.0, 1.7, 2.6))
            transform = Compose([ToWorkingGridd(["image", "body"], spacing, (-1.0, 0.0), ("linear", "nearest"))])
            moved = transform(data)
            assert grid_of(moved["image"]).matches(working_grid(source, spacing), 1e-9)
            np.testing.assert_allclose(moved["image"][0].numpy(), linear(grid_of(moved["image"])), atol=1e-4)
            back = transform.inverse(moved)
            for key in data:
                np.testing.assert_array_equal(back[key].numpy(), data[key].numpy())
                assert grid_of(back[key]).matches(source, 1e-9)
                assert back[key].applied_operations == []

    def test_the_inverse_of_a_coarse_grid_is_one_linear_resampling(self) -> None:
        source = grid(ORDERS[22], 7.0)
        values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
        transform = ToWorkingGridd("image", (2.2, 2.2, 2.2), -1.0)
        moved = transform({"image": self.volume(source, values)})
        back = transform.inverse(moved)["image"]
        target = working_grid(source, (2.2, 2.2, 2.2))
        expected = resample(moved["image"][0].numpy(), target, source, fill=-1.0, antialias=False)
        np.testing.assert_array_equal(back[0].numpy(), expected)

    @pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 2.0, 2.0)])
    def test_the_centroid_of_a_blob_stays_where_it_is(self, spacing: tuple[float, float, float]) -> None:
        for order in ORDERS[::5]:
            source = grid(order, 18.0, shape=(30, 20, 14))
            center = grid_center(source)[:3] + np.array([1.3, -0.7, 2.1])
            blob = np.exp(-((world(source) - center) ** 2).sum(-1) / (2 * 3.5**2)).astype(np.float32)
            moved = ToWorkingGridd("image", spacing, 0.0)({"image": self.volume(source, blob)})["image"]
            mass = moved[0].numpy()
            where = (world(grid_of(moved)) * mass[..., None]).sum((0, 1, 2)) / mass.sum()
            before = (world(source) * blob[..., None]).sum((0, 1, 2)) / blob.sum()
            np.testing.assert_allclose(where, before, atol=0.05)


class TestCropToBodyd:
    """On voxels of 1 x 2 x 4 mm, turned."""

    SPACING = (1.0, 2.0, 4.0)

    def kept(self, box: tuple[slice, ...], margin: float) -> tuple[slice, ...]:
        shape = (20, 18, 16)
        source = grid(ORDERS[0], 20.0, self.SPACING, shape)
        body = np.zeros(shape, np.float32)
        body[box] = 1
        image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        given = {
            key: MetaTensor(torch.from_numpy(values)[None], affine=torch.from_numpy(source.affine.copy()))
            for key, values in (("image", image), ("body", body))
        }
        transform = CropToBodyd(["image", "body"], (-1.0, 0.0), margin=margin)
        result = transform(given)
        back = transform.inverse(result)
        assert grid_of(back["image"]).matches(source, 1e-9)
        lost = np.ones(shape, bool)
        corner = np.linalg.solve(source.affine, grid_of(result["image"]).affine[:, 3])[:3]
        at = tuple(slice(int(c), int(c) + n) for c, n in zip(np.rint(corner), result["image"].shape[1:], strict=True))
        np.testing.assert_allclose(np.rint(corner), corner, atol=1e-9)
        lost[at] = False
        # What is kept lies where it lay; the rest comes back as the fill.
        np.testing.assert_array_equal(result["image"][0].numpy(), image[at])
        np.testing.assert_array_equal(back["image"][0].numpy(), np.where(lost, -1, image))
        np.testing.assert_array_equal(back["body"][0].numpy(), body)
        assert torch.equal(given["image"].as_tensor()[0], torch.from_numpy(image))
        return at

    @pytest.mark.parametrize(
        ("box", "margin", "kept"),
        [
            ((slice(6, 11), slice(7, 12), slice(5, 10)), 3.0, (slice(3, 14), slice(5, 14), slice(4, 11))),
            ((slice(6, 11), slice(7, 12), slice(5, 10)), 0.0, (slice(6, 11), slice(7, 12), slice(5, 10))),
            ((slice(1, 19), slice(0, 18), slice(0, 15)), 9.0, (slice(0, 20), slice(0, 18), slice(0, 16))),
            ((slice(6, 7), slice(7, 9), slice(5, 8)), 0.0, (slice(4, 9), slice(6, 10), slice(4, 9))),
        ],
        ids=["margin in mm", "no margin", "ends where the volume ends", "four voxels at least"],
    )
    def test_what_is_kept_around_the_body(self, box: tuple[slice, ...], margin: float, kept: tuple[slice, ...]) -> None:
        assert self.kept(box, margin) == kept

    def test_a_negative_margin_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least 0 mm"):
            CropToBodyd(["image"], -1.0, margin=-0.1)
