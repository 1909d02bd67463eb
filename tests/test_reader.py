"""Reading: the same scan in any format is the same volume, and everything else is refused by name."""

from __future__ import annotations

import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImaged

from medcyclegan.errors import InputError
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import (
    VOLUME_SUFFIXES,
    SimpleITKReader,
    as_volume,
    grid_of,
    read_mask,
    read_volume,
)

DATA = Path(__file__).parents[1].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the real volumes (../shared/data) are absent")

SHAPE = (6, 5, 4)
# Oblique, left-handed and anisotropic, with every number different.
AFFINE = np.array(
    [[0.0, -1.92, 1.05, 12.5], [-0.9, 0.0, 0.0, -40.25], [0.0, 0.56, 3.6, 101.0], [0, 0, 0, 1]], dtype=np.float64
)


def scan() -> np.ndarray:
    return np.random.default_rng(0).integers(-1024, 3000, SHAPE).astype(np.int16)


def nifti(array: np.ndarray, affine: np.ndarray = AFFINE, sform: int = 1, qform: int = 0) -> nib.Nifti1Image:
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine if sform else None, sform)
    image.set_qform(affine if qform else None, qform)
    return image


def itk(array: np.ndarray, affine: np.ndarray = AFFINE) -> sitk.Image:
    image = sitk.GetImageFromArray(array.T)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    flip = np.array([-1.0, -1.0, 1.0])
    image.SetSpacing(spacing.tolist())
    image.SetDirection((flip[:, None] * affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin((flip * affine[:3, 3]).tolist())
    return image


def store(folder: Path, suffix: str, array: np.ndarray, affine: np.ndarray = AFFINE, compress: bool = False) -> Path:
    path = folder / f"scan{suffix}"
    if suffix.startswith(".nii"):
        nib.save(nifti(array, affine), path)
    else:
        sitk.WriteImage(itk(array, affine), str(path), useCompression=compress)
    return path


@pytest.fixture(autouse=True)
def no_unexpected_warnings(recwarn: pytest.WarningsRecorder) -> None:
    warnings.simplefilter("error", UserWarning)
    # MONAI says so whenever a LoadImage is made beside pydicom.
    warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")


class TestSameScan:
    @pytest.mark.parametrize("suffix", VOLUME_SUFFIXES)
    def test_every_format_gives_the_same_volume(self, suffix: str, tmp_path: Path) -> None:
        path = store(tmp_path, suffix, scan())
        image = sitk.ReadImage(str(path))
        volume = read_volume(path.rename(tmp_path / f"SCAN{suffix.upper()}"))
        assert isinstance(volume, MetaTensor)
        assert volume.dtype == torch.float32 and volume.affine.dtype == torch.float64
        assert volume.is_contiguous()
        np.testing.assert_array_equal(volume.numpy(), scan()[None])
        np.testing.assert_allclose(volume.affine.numpy(), AFFINE, atol=1e-5)
        assert volume.meta["spatial_shape"].tolist() == list(SHAPE)
        np.testing.assert_array_equal(volume.meta["original_affine"], volume.affine.numpy())
        lps = volume.affine.numpy() @ [5, 1, 3, 1] * [-1, -1, 1, 1]
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint((5, 1, 3)), lps[:3], atol=1e-4)

    def test_a_trailing_axis_of_one_frame(self, tmp_path: Path) -> None:
        nib.save(nifti(scan()[..., None]), tmp_path / "scan.nii")
        np.testing.assert_array_equal(read_volume(tmp_path / "scan.nii").numpy()[0], scan())
        image = sitk.JoinSeries([itk(scan())])
        sitk.WriteImage(image, str(tmp_path / "scan.mha"))
        volume = read_volume(tmp_path / "scan.mha")
        np.testing.assert_array_equal(volume.numpy()[0], scan())
        np.testing.assert_allclose(volume.affine.numpy(), AFFINE, atol=1e-5)


class TestRefusals:
    def test_missing_file_folder_and_foreign_suffix(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"none\.nii does not exist"):
            read_volume(tmp_path / "none.nii")
        with pytest.raises(InputError, match="is a folder"):
            read_volume(tmp_path)
        (tmp_path / "a.txt").touch()
        with pytest.raises(InputError, match=r"a\.txt: not a volume format.*\.nii\.gz"):
            read_volume(tmp_path / "a.txt")

    @pytest.mark.parametrize(
        ("array", "reason"),
        [
            (np.zeros((4, 4, 4, 3), np.int16), r"3 frames \(4 x 4 x 4 x 3\)"),
            (np.zeros((4, 4), np.int16), "three axes, this has 2"),
            (np.zeros((4, 4, 1), np.int16), "at least 2 voxels along each axis"),
            (np.zeros((4, 4, 4), np.complex64), "complex"),
            (np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "color"),
            (np.full((4, 4, 4), 7, np.int16), r"every voxel holds the same value \(7\)"),
        ],
    )
    def test_kinds_that_are_not_one_scalar_volume(self, array: np.ndarray, reason: str, tmp_path: Path) -> None:
        path = tmp_path / "scan.nii.gz"
        nib.save(nifti(array, np.eye(4)), path)
        with pytest.raises(InputError, match=reason):
            read_volume(path)

    def test_vector_and_complex_pixels_of_itk(self, tmp_path: Path) -> None:
        sitk.WriteImage(sitk.Image([4, 4, 4], sitk.sitkVectorFloat32, 3), str(tmp_path / "v.mha"))
        with pytest.raises(InputError, match="3 values per voxel"):
            read_volume(tmp_path / "v.mha")
        with pytest.raises(InputError, match="complex"):
            as_volume(sitk.Image([4, 4, 4], sitk.sitkComplexFloat32))

    @pytest.mark.parametrize(("bad", "count"), [([np.nan, np.nan, np.nan, np.inf], 4), ([1e300], 1)])
    def test_values_that_are_not_finite_in_float32_are_counted(self, bad: list[float], count: int) -> None:
        array = scan().astype(np.float64)
        array.flat[: len(bad)] = bad
        with pytest.raises(InputError, match=rf"{count} of 120 voxels are not finite"):
            as_volume(nifti(array))

    @pytest.mark.parametrize("column", [np.zeros(3), AFFINE[:3, 1]])
    def test_affines_without_an_inverse(self, column: np.ndarray) -> None:
        affine = AFFINE.copy()
        affine[:3, 0] = column
        with pytest.raises(InputError, match="cannot be inverted"):
            as_volume(MetaTensor(torch.from_numpy(scan()), affine=torch.from_numpy(affine)))

    def test_shear(self, tmp_path: Path) -> None:
        affine = np.diag([1.0, 1.0, 3.0, 1.0])
        affine[1, 2] = 3 * np.tan(np.radians(18.5))
        nib.save(nifti(scan(), affine), tmp_path / "scan.nii")
        with pytest.warns(UserWarning, match=r"sheared \(18\.5 degrees"):
            read_volume(tmp_path / "scan.nii")


class TestAsVolume:
    def test_every_kind_gives_what_its_file_gives(self, tmp_path: Path) -> None:
        expected = read_volume(store(tmp_path, ".mha", scan()))
        tensor = torch.from_numpy(scan())
        affine = torch.from_numpy(AFFINE)
        kinds = [
            store(tmp_path, ".nii.gz", scan()),
            str(store(tmp_path, ".nrrd", scan())),
            nifti(scan()),
            itk(scan()),
            MetaTensor(tensor, affine=affine),
            MetaTensor(tensor[None].double(), affine=affine),
            MetaTensor(
                tensor, affine=torch.diag(torch.tensor([-1.0, -1, 1, 1])).double() @ affine, meta={"space": "LPS"}
            ),
        ]
        for kind in kinds:
            volume = as_volume(kind)
            assert volume.shape == expected.shape and volume.dtype == torch.float32
            np.testing.assert_array_equal(volume.numpy(), expected.numpy())
            np.testing.assert_allclose(volume.affine.numpy(), expected.affine.numpy(), atol=1e-5)

    def test_memory_is_not_shared(self) -> None:
        tensor = torch.from_numpy(scan()).float()
        volume = as_volume(MetaTensor(tensor, affine=torch.from_numpy(AFFINE)))
        tensor += 1
        np.testing.assert_array_equal(volume.numpy()[0], scan())

    def test_channels_and_foreign_kinds(self) -> None:
        with pytest.raises(InputError, match="2 channels"):
            as_volume(MetaTensor(torch.rand(2, 4, 4, 4)))
        with pytest.raises(TypeError, match=r"got torch\.Tensor"):
            as_volume(torch.rand(4, 4, 4))  # type: ignore[arg-type]
        with pytest.raises(InputError, match="same value"):
            as_volume(MetaTensor(torch.zeros(4, 4, 4)))

    def test_grid_of(self) -> None:
        grid = grid_of(as_volume(nifti(scan())))
        assert grid.matches(Grid(SHAPE, AFFINE), 1e-4)


class TestMask:
    GRID = Grid(SHAPE, AFFINE)

    def mask(self) -> np.ndarray:
        return (scan() > 0).astype(np.uint8)

    @pytest.mark.parametrize("value", [1, 255])
    @pytest.mark.parametrize("suffix", [".nii.gz", ".mha"])
    def test_zero_and_one_other_value(self, suffix: str, value: int, tmp_path: Path) -> None:
        read = read_mask(store(tmp_path, suffix, self.mask() * np.uint8(value)), self.GRID)
        assert read.dtype == np.bool_
        np.testing.assert_array_equal(read, self.mask().astype(bool))

    def test_a_full_mask_is_one(self, tmp_path: Path) -> None:
        assert read_mask(store(tmp_path, ".nii", np.ones(SHAPE, np.uint8)), self.GRID).all()

    @pytest.mark.parametrize(
        ("array", "reason"),
        [
            (np.zeros(SHAPE, np.uint8), "empty"),
            (scan(), "0 and one other value"),
            (np.where(scan() > 0, 1, 2).astype(np.uint8), "0 and one other value"),
        ],
    )
    def test_refusals(self, array: np.ndarray, reason: str, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=reason):
            read_mask(store(tmp_path, ".nii", array), self.GRID)

    def test_another_order_of_the_same_voxels(self, tmp_path: Path) -> None:
        """`reordered` of test_grid, for all 48 orders."""
        nib.save(nifti(self.mask()).as_reoriented(np.array([[2, -1], [0, 1], [1, -1]])), tmp_path / "scan.nii")
        assert read_volume(tmp_path / "scan.nii").shape[1:] != SHAPE
        np.testing.assert_array_equal(read_mask(tmp_path / "scan.nii", self.GRID), self.mask().astype(bool))

    def test_half_a_voxel_away_is_another_grid(self, tmp_path: Path) -> None:
        flipped = AFFINE @ np.diag([-1.0, 1, 1, 1])
        flipped[:3, 3] = (AFFINE @ [SHAPE[0] - 0.5, 0, 0, 1])[:3]
        with pytest.raises(InputError, match="another grid"):
            read_mask(store(tmp_path, ".nii", self.mask()[::-1].copy(), flipped), self.GRID)

    def test_another_grid_is_described(self, tmp_path: Path) -> None:
        moved = AFFINE.copy()
        moved[0, 3] += 0.02
        with pytest.raises(InputError, match=r"another grid.*\(12\.52,.*\(12\.50,"):
            read_mask(store(tmp_path, ".mha", self.mask(), moved), self.GRID)
        with pytest.raises(InputError, match=r"5 x 5 x 4 voxels.*6 x 5 x 4 voxels"):
            read_mask(store(tmp_path, ".mha", self.mask()[1:]), self.GRID)


class TestMonaiReader:
    def test_load_imaged(self, tmp_path: Path) -> None:
        path = store(tmp_path, ".mha", scan())
        loaded = LoadImaged("image", reader=SimpleITKReader(), ensure_channel_first=True)({"image": path})["image"]
        np.testing.assert_array_equal(loaded.numpy(), scan()[None])
        np.testing.assert_allclose(loaded.affine.numpy(), AFFINE, atol=1e-12)

    def test_several_files_are_channels(self, tmp_path: Path) -> None:
        (tmp_path / "two").mkdir()
        paths = [store(tmp_path, ".mha", scan()), store(tmp_path / "two", ".nrrd", scan() + 1)]
        loaded = LoadImaged("image", reader=SimpleITKReader(), ensure_channel_first=True)({"image": paths})["image"]
        np.testing.assert_array_equal(loaded.numpy(), np.stack([scan(), scan() + 1]))

    def test_vector_pixels_are_channels(self, tmp_path: Path) -> None:
        array = np.stack([scan(), scan() + 1])
        image = sitk.GetImageFromArray(array.transpose(3, 2, 1, 0), isVector=True)
        sitk.WriteImage(image, str(tmp_path / "v.mha"))
        loaded = LoadImaged("image", reader=SimpleITKReader(), ensure_channel_first=True)({"image": tmp_path / "v.mha"})
        np.testing.assert_array_equal(loaded["image"].numpy(), array)

    def test_slices(self, tmp_path: Path) -> None:
        image = sitk.GetImageFromArray(scan()[:, :, 0].T)
        image.SetSpacing((1.5, 2.5))
        image.SetOrigin((3, 4))
        image.SetDirection((0, 1, -1, 0))
        warnings.filterwarnings("ignore", message=".*names no anatomical space")
        for name in ("slice.nrrd", "slice.mha"):
            sitk.WriteImage(image, str(tmp_path / name))
            array, meta = SimpleITKReader().get_data(SimpleITKReader().read(tmp_path / name))
            np.testing.assert_array_equal(array, scan()[:, :, 0])
            np.testing.assert_allclose(meta["affine"][:2, [0, 1, 3]], [[0, -2.5, -3], [1.5, 0, -4]])

    def test_damage_is_refused(self, tmp_path: Path) -> None:
        path = store(tmp_path, ".mha", scan(), compress=True)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(InputError, match="checksum"):
            SimpleITKReader().read(path)

    def test_it_reads_its_formats_only(self) -> None:
        reader = SimpleITKReader()
        assert reader.verify_suffix(["a.MHA", "b.nrrd"])
        assert not reader.verify_suffix("a.nii.gz")


@needs_data
class TestRealFiles:
    def test_frames_and_nan_are_refused(self) -> None:
        for name, reason in [
            ("nib_functional.nii", "20 frames"),
            ("nib_example_nifti2.nii.gz", "2 frames"),
            ("nib_resampled_anat_moved.nii", "153 of 1071 voxels are not finite"),
        ]:
            with pytest.raises(InputError, match=reason):
                read_volume(DATA / "odd" / name)

    @pytest.mark.parametrize(
        "name", ["odd/nib_anatomical.nii", "heads/mr_seg3d_t1.nii.gz", "heads/ct_template_hu.nii.gz"]
    )
    def test_values_are_those_of_nibabel(self, name: str) -> None:
        image = nib.load(DATA / name)
        volume = read_volume(DATA / name)
        np.testing.assert_array_equal(volume.numpy()[0], np.asanyarray(image.dataobj).astype(np.float32))
        np.testing.assert_array_equal(volume.affine.numpy(), image.affine)
