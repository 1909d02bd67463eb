"""The translator: with the identity as its network the input comes back, on the input's grid, in the input's units."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from axis_orders import ORDERS, Order, affine_of, rotation
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImage, Orientation, Spacing
from torch import Tensor, nn

from medcyclegan import InputError, load_translator, phantom
from medcyclegan.inference.sliding_window import SlidingWindow
from medcyclegan.inference.translator import ImageDomain, Translator
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import grid_of, read_volume
from medcyclegan.io.writer import write_volume
from medcyclegan.transforms.intensity import Scaler
from medcyclegan.transforms.pipeline import Preparation

SPACING = (3.0, 4.0, 5.0)


def ct(spacing: tuple[float, float, float] = SPACING, high: float = 3071.0) -> ImageDomain:
    return ImageDomain((Preparation("CT", spacing),), (Scaler(-1024.0, high),))


def identity(spacing: tuple[float, float, float] = SPACING) -> Translator:
    return Translator(nn.Identity(), ct(spacing), ct(spacing), SlidingWindow((32, 32)))


def head() -> tuple[np.ndarray, np.ndarray]:
    """A lopsided int16 CT (X, Y, Z) in RAS order and where its body is."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in (26, 22, 18)], indexing="ij")
    body = (x / 0.8) ** 2 + (y / 0.7) ** 2 + (z / 0.75) ** 2 < 1
    hu = np.where(body, 300 * x - 150 * y + 80 * z + 400, -1024)
    return np.rint(hu).astype(np.int16), body


@pytest.mark.parametrize("degrees", [0.0, 14.0])
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_identity_law_for_all_axis_orders(order: Order, degrees: float) -> None:
    hu, body = head()
    affine = affine_of(ORDERS[0], degrees, SPACING)
    straight = nib.Nifti1Image(hu, affine)
    orientation = np.transpose(order)
    image = straight.as_reoriented(orientation)
    result = identity()(
        image, body=nib.Nifti1Image(body.astype(np.int8), affine).as_reoriented(orientation).get_fdata() > 0
    )
    assert result.array.dtype == np.int16
    assert np.array_equal(result.array, np.asarray(image.dataobj))
    np.testing.assert_allclose(result.affine, image.affine, atol=1e-12)


def test_every_kind_of_input_and_every_format_give_the_same(tmp_path: Path) -> None:
    hu, body = head()
    affine = np.eye(4)
    affine[:3, :3] = rotation(14.0) @ np.diag(SPACING)
    grid = Grid((26, 22, 18), affine)
    for suffix in (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd"):
        write_volume(tmp_path / f"ct{suffix}", hu, grid)
        result = identity()(tmp_path / f"ct{suffix}", body=body)
        assert np.array_equal(result.array, hu), suffix
        result.save(tmp_path / f"out{suffix}")
        again = read_volume(tmp_path / f"out{suffix}")
        assert np.array_equal(again.numpy()[0], hu), suffix
        assert grid_of(again).matches(grid_of(read_volume(tmp_path / f"ct{suffix}")), 1e-4), suffix
    for image in (
        read_volume(tmp_path / "ct.mha"),
        nib.load(tmp_path / "ct.nii"),
        sitk.ReadImage(tmp_path / "ct.nrrd"),
        str(tmp_path / "ct.nii.gz"),
    ):
        assert np.array_equal(identity()(image, body=body).array, hu), type(image)


def test_other_spacing_stays_within_interpolation_error_and_keeps_positions() -> None:
    hu, body = head()
    image = nib.Nifti1Image(hu, np.diag([*SPACING, 1]))
    result = identity((2.0, 2.0, 2.0))(image, body=body).array
    from scipy.ndimage import binary_erosion

    inner = binary_erosion(body, iterations=3)
    assert np.abs(result.astype(int) - hu)[inner].max() <= 12  # a linear ramp of 40 HU per voxel, antialiased
    assert np.abs((result.astype(int) - hu)[inner].mean()) < 1


def test_outside_the_body_is_air() -> None:
    class Bright(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x)

    hu, body = head()
    translator = identity()
    translator.generator = Bright()
    result = translator(nib.Nifti1Image(hu, np.diag([*SPACING, 1])), body=body).array
    assert (result[~body] == -1024).all()
    assert (result[body] == np.rint(-1024 + 4095 / 2)).all()


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_network_that_gives_no_numbers_is_refused(modality: str) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 0.2, torch.nan, x)

    hu, body = head()
    translator = identity()
    translator.generator = Broken()
    translator.target = ImageDomain((Preparation(modality, SPACING),), (translator.scaler,))
    with pytest.raises(InputError, match=r"network gave \d+ of \d+ voxels values that are not finite"):
        translator(nib.Nifti1Image(hu + 1500, np.diag([*SPACING, 1])), body=body)


def test_a_volume_without_codes_can_be_saved_after_it_was_moved(tmp_path: Path) -> None:
    hu, _ = head()
    image = nib.Nifti1Image(hu, None)
    image.header.set_zooms(SPACING)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, tmp_path / "ct.nii")
    for steps, codes in (([], 0), ([Spacing((5.0, 5.0, 5.0)), Orientation("RAS", labels=None)], 1)):
        given = Compose([LoadImage(ensure_channel_first=True), *steps])(tmp_path / "ct.nii")
        result = identity()(given)
        result.save(tmp_path / "sct.nii")
        written = nib.load(tmp_path / "sct.nii")
        np.testing.assert_allclose(written.affine, given.affine, atol=1e-4)
        assert int(written.header["sform_code"]) == int(written.header["qform_code"]) == codes


def test_loaded_run_translates_both_ways(run: Path, cohort: phantom.Cohort, tmp_path: Path) -> None:
    sct = load_translator(run, device="cpu")(cohort.test_mr[0])
    source = nib.load(cohort.test_mr[0])
    assert sct.array.dtype == np.int16 and sct.array.shape == source.shape
    sct.save(tmp_path / "sct.nii.gz")
    written = nib.load(tmp_path / "sct.nii.gz")
    np.testing.assert_allclose(written.affine, source.affine, atol=1e-5)
    assert (written.dataobj.slope, written.dataobj.inter, written.get_data_dtype()) == (1, 0, np.int16)
    codes = ("sform_code", "qform_code")
    assert [int(written.header[code]) for code in codes] == [int(source.header[code]) for code in codes]
    assert b"not for clinical use" in written.header["descrip"].tobytes()
    np.testing.assert_array_equal(sct.to_metatensor().numpy()[0], np.asarray(written.dataobj))
    smr = load_translator(run, direction="ba", device="cpu")(cohort.test_ct[0])
    assert smr.modality == "MR" and smr.array.dtype == np.float32


def test_the_generator_is_a_plain_module_of_the_direction(run: Path) -> None:
    from medcyclegan.training.checkpoint import load_checkpoint

    for direction in ("ab", "ba"):
        generator = load_translator(run, direction=direction, device="cpu").generator
        assert isinstance(generator, nn.Module) and not generator.training
        saved = load_checkpoint(run)["ema"][f"gen_{direction}"]
        assert all(torch.equal(value, saved[key]) for key, value in generator.state_dict().items())
    with pytest.raises(InputError, match="'ab' or 'ba'"):
        load_translator(run, direction="mr2ct")


class Rough(nn.Module):
    """The identity; under autocast 3 HU too high where slices are bright on average."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x.mean(dim=(1, 2, 3), keepdim=True) > -0.5
        return x + bright * (3 / 2047.5 * torch.is_autocast_enabled("cpu"))


def rough() -> Translator:
    translator = identity((1.0, 1.0, 1.0))
    translator.generator, translator.window = Rough(), replace(translator.window, bf16=True)
    return translator


def filled(hu: list[int]) -> MetaTensor:
    """A box of one slice per HU value in air."""
    array = np.full((32, 32, len(hu)), -1024, np.float32)
    array[2:-2, 2:-2] = hu
    return MetaTensor(torch.from_numpy(array)[None], affine=torch.eye(4, dtype=torch.float64))


def test_every_volume_is_computed_in_bf16_only_if_that_hardly_changes_it() -> None:
    translator = rough()
    fine, changed = filled([-300] * 12), filled([500] * 12)
    for volume, precision, change in ((fine, "bf16", 0.0), (changed, "float32", 3.0), (fine, "bf16", 0.0)):
        result = translator(volume, body=volume[0].numpy() > -900)
        assert result.quality["precision"] == [precision]
        assert result.quality["bf16_changes_hu"] == [pytest.approx(change, abs=0.01)]
        np.testing.assert_array_equal(result.array, volume[0].numpy().astype(np.int16))


def test_what_bf16_changes_is_the_mean_over_slices_through_the_body() -> None:
    """Half of them is changed by 3 HU, which is less than 2 on average."""
    volume = filled([-300] * 6 + [500] * 6)
    result = rough()(volume, body=volume[0].numpy() > -900)
    assert result.quality["precision"] == ["bf16"]
    assert result.quality["bf16_changes_hu"] == [pytest.approx(1.5, abs=0.01)]
    assert result.array[16, 16].tolist() == [-300] * 6 + [503] * 6


def test_a_network_that_fails_in_bf16_computes_in_float32() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * float("nan") if torch.is_autocast_enabled("cpu") else x

    translator, volume = rough(), filled([40] * 4)
    translator.generator = Failing()
    result = translator(volume, body=volume[0].numpy() > -900)
    assert result.quality["precision"] == ["float32"] and result.quality["bf16_changes_hu"] == [None]
    np.testing.assert_array_equal(result.array, volume[0].numpy().astype(np.int16))


@pytest.mark.parametrize("window", [(16, 16, 16), (64, 64, 64)])
def test_in_3d_a_window_in_the_body_is_compared(window: tuple[int, int, int]) -> None:
    """Two legs, with nothing in the middle of the volume."""

    class Rough3D(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 50 / 2047.5 * torch.is_autocast_enabled("cpu")

    array = np.full((64, 32, 32), -1024, np.float32)
    array[4:20, 8:24, 2:-2] = array[-20:-4, 8:24, 2:-2] = 40
    translator = Translator(Rough3D(), ct((1.0, 1.0, 1.0)), ct(), SlidingWindow(window, bf16=True))
    result = translator(MetaTensor(torch.from_numpy(array)[None], affine=torch.eye(4)), body=array > -900)
    assert result.quality["precision"] == ["float32"] and result.quality["bf16_changes_hu"] == [pytest.approx(50, 0.01)]
    np.testing.assert_array_equal(result.array, array.astype(np.int16))


@pytest.mark.parametrize(("high", "precision"), [(976.0, "bf16"), (4976.0, "float32")])
def test_the_limit_of_bf16_is_in_hu_whatever_the_window(high: float, precision: str) -> None:
    translator = rough()
    translator.target = ct(high=high)  # in which Rough is 1.5 and 4.4 HU too high
    quality = translator(filled([500] * 12), body=filled([500] * 12)[0].numpy() > -900).quality
    assert quality["precision"] == [precision]
    assert quality["bf16_changes_hu"] == [pytest.approx(3 * (high + 1024) / 4095, abs=0.01)]


def test_a_translator_that_was_used_can_be_sent_to_another_process() -> None:
    translator = rough()
    translator(filled([500] * 12), body=filled([500] * 12)[0].numpy() > -900)
    assert pickle.loads(pickle.dumps(translator)).window.bf16


def test_without_bf16_nothing_is_compared() -> None:
    quality = identity()(filled([40] * 20)).quality
    assert quality["precision"] == ["float32"] and quality["bf16_changes_hu"] == [None]
