"""2D images: their values and place, what is refused, and a training on them from beginning to end."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import TINY
from PIL import Image

from medcyclegan import config, factory, phantom
from medcyclegan.cohort.layouts import read_layout
from medcyclegan.convert import convert
from medcyclegan.errors import InputError
from medcyclegan.inference.ensemble import Ensemble
from medcyclegan.io.pictures import GrayLevels
from medcyclegan.io.reader import list_volumes, read_volume


def ramp(dtype: type, rows: int = 5, columns: int = 7) -> np.ndarray:
    """(rows, columns) of values that are all different."""
    return (np.arange(rows * columns).reshape(rows, columns) * 7).astype(dtype)


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.TIFF"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_gray_levels_and_place(tmp_path: Path, name: str, dtype: type) -> None:
    pixels = ramp(dtype)
    image = Image.fromarray(pixels)
    image.save(tmp_path / name, format="PNG" if name.endswith("png") else "TIFF", dpi=(300, 300))
    volume = read_volume(tmp_path / name)
    assert volume.shape == (1, 7, 5, 1) and volume.dtype.is_floating_point
    assert volume.meta["unit"] == "gray levels"
    np.testing.assert_array_equal(volume.numpy()[0, :, :, 0], pixels.T.astype(np.float32))
    # Columns to the patient's left, rows to the back, 1 mm whatever the resolution says.
    np.testing.assert_array_equal(volume.affine.numpy(), np.diag([-1.0, -1.0, 1.0, 1.0]))


def test_a_window_gives_hounsfield_units(tmp_path: Path) -> None:
    for dtype, top in ((np.uint8, 255), (np.uint16, 65535)):
        pixels = np.array([[0, top], [top // 5, 0]], dtype=dtype)  # a fifth of 255 and of 65535 is whole
        Image.fromarray(pixels).save(tmp_path / "ct.png")
        volume = read_volume(tmp_path / "ct.png", GrayLevels((-1000.0, 2000.0)))
        np.testing.assert_allclose(volume.numpy()[0, :, :, 0].T, [[-1000, 2000], [-400, -1000]], atol=1e-3)
        assert volume.meta["unit"] == "HU"


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_signed_and_floating_tiff_are_what_they_say(tmp_path: Path, dtype: type) -> None:
    pixels = np.array([[-1000, 0, 40], [700, 3000, -50]], dtype=dtype)
    sitk.WriteImage(sitk.GetImageFromArray(pixels), str(tmp_path / "ct.tif"))
    volume = read_volume(tmp_path / "ct.tif", GrayLevels((0.0, 1.0)))
    np.testing.assert_array_equal(volume.numpy()[0, :, :, 0].T, pixels)
    assert volume.meta["unit"] == "HU"


@pytest.mark.parametrize(("tag", "value", "named"), [(274, 2, "Orientation"), (262, 0, "Photometric")])
def test_a_tiff_that_is_turned_or_inverted_is_refused(tmp_path: Path, tag: int, value: int, named: str) -> None:
    image = Image.fromarray(ramp(np.uint8))
    image.save(tmp_path / "x.tif", tiffinfo={tag: value})
    content = bytearray((tmp_path / "x.tif").read_bytes())
    # Pillow decides some tags by itself: the entry (tag, type, count, value) is set by hand where it did.
    for at in range(0, len(content) - 12, 2):
        if struct.unpack_from("<HHI", content, at) == (tag, 3, 1):
            struct.pack_into("<H", content, at + 8, value)
    (tmp_path / "x.tif").write_bytes(content)
    with pytest.raises(InputError, match=named):
        read_volume(tmp_path / "x.tif")


def test_a_tiff_with_a_tag_twice_is_refused(tmp_path: Path) -> None:
    Image.fromarray(ramp(np.uint8)).save(tmp_path / "x.tif")
    content = bytearray((tmp_path / "x.tif").read_bytes())
    (at,) = struct.unpack_from("<I", content, 4)
    struct.pack_into("<H", content, at + 2 + 12, 256)  # the height becomes a second width
    (tmp_path / "x.tif").write_bytes(content)
    with pytest.raises(InputError, match=r"tag 256 twice|does not say its ImageLength|cannot be read"):
        read_volume(tmp_path / "x.tif")


def test_a_tiff_that_is_cut_within_its_directory_is_refused(tmp_path: Path) -> None:
    Image.fromarray(ramp(np.uint8)).save(tmp_path / "x.tif")
    content = (tmp_path / "x.tif").read_bytes()
    (at,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, at)
    for length in range(at, min(len(content), at + 2 + 12 * count)):
        (tmp_path / "x.tif").write_bytes(content[:length])
        with pytest.raises(InputError, match=r"cannot be read|does not say"):
            read_volume(tmp_path / "x.tif")


def test_a_gray_level_that_is_transparent_is_refused(tmp_path: Path) -> None:
    Image.fromarray(ramp(np.uint8)).save(tmp_path / "x.png", transparency=14)
    with pytest.raises(InputError, match="transparent"):
        read_volume(tmp_path / "x.png")


def test_color(tmp_path: Path) -> None:
    same = np.repeat(ramp(np.uint8)[..., None], 3, axis=2)
    Image.fromarray(same).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(read_volume(tmp_path / "gray.png").numpy()[0, :, :, 0].T, ramp(np.uint8))
    color = np.zeros((2, 3, 3), np.uint8)
    color[0, 0], color[0, 1], color[0, 2] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    Image.fromarray(color).save(tmp_path / "color.png")
    with pytest.raises(InputError, match=r"color\.png: a color picture"):
        read_volume(tmp_path / "color.png")
    gray = read_volume(tmp_path / "color.png", GrayLevels(gray=True)).numpy()[0, :, 0, 0]
    # ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B.
    np.testing.assert_allclose(gray, [76.245, 149.685, 29.07], atol=1e-3)


def test_transparency(tmp_path: Path) -> None:
    pixels = np.dstack([*[ramp(np.uint8)] * 3, np.full((5, 7), 255, np.uint8)])
    Image.fromarray(pixels).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_volume(tmp_path / "x.png").numpy()[0, :, :, 0].T, ramp(np.uint8))
    pixels[2, 2, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "x.png")
    with pytest.raises(InputError, match="transparent"):
        read_volume(tmp_path / "x.png")


def test_what_is_no_picture(tmp_path: Path) -> None:
    pages = [Image.fromarray(ramp(np.uint8)), Image.fromarray(ramp(np.uint8) + 1)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match="a picture has two axes"):
        read_volume(tmp_path / "pages.tif")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(InputError, match=r"broken\.png cannot be read"):
        read_volume(tmp_path / "broken.png")
    with pytest.raises(InputError, match="two rising HU"):
        GrayLevels((5.0, 5.0))


def test_pictures_beside_volumes_are_no_cases(tmp_path: Path) -> None:
    for name in ("1.nii", "1.png", "2.png"):
        (tmp_path / name).touch()
    assert list(list_volumes(tmp_path)) == ["1"]
    (tmp_path / "1.nii").unlink()
    assert list(list_volumes(tmp_path)) == ["1", "2"]


@pytest.fixture(scope="module")
def slices(cohort: phantom.Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """trainA and trainB with five slices of two phantom heads each, as 16-bit PNG and 8-bit TIFF."""
    root = tmp_path_factory.mktemp("slices")
    for folder, files in (("trainA", cohort.train_mr), ("trainB", cohort.train_ct)):
        (root / folder).mkdir()
        for head, file in enumerate(files):
            volume = read_volume(file).numpy()[0]
            for k in range(8, 13):
                plane = volume[:, :, k].T[::-1, ::-1]
                if folder == "trainA":
                    pixels = np.clip(plane / volume.max() * 65535, 0, 65535).astype(np.uint16)
                    Image.fromarray(pixels).save(root / folder / f"head{head}_{k:03d}.png")
                else:
                    pixels = np.clip((plane + 1024) / 3072 * 255, 0, 255).round().astype(np.uint8)
                    Image.fromarray(pixels).save(root / folder / f"other{head}_{k:03d}.tif")
    return root


def test_gray_levels_are_no_ct(slices: Path, tmp_path: Path) -> None:
    given = config.parse({"data": {"root": str(slices)}}, "the test")
    with pytest.raises(InputError, match=r"uint8 gray levels says nothing of Hounsfield units(.|\n)*picture_window"):
        factory.prepare(given, tmp_path / "prepared")


def test_a_training_on_pictures_from_beginning_to_end(slices: Path, tmp_path: Path) -> None:
    assert read_layout(slices).layout == "cyclegan"
    data = {"root": str(slices), "picture_window": [-1024, 2048]}
    experiment = config.parse({**TINY, "data": data}, "the test")
    run = tmp_path / "run"
    factory.train(experiment, run, device="cpu")
    source = sorted((slices / "trainA").iterdir())[0]
    result = convert(run, [source], tmp_path / "out", device="cpu", trust=True)
    assert not result.failed
    (written,) = result.written.values()
    image = sitk.ReadImage(str(written))
    assert image.GetSize() == (36, 44, 1) and image.GetPixelIDTypeAsString() == "16-bit signed integer"
    values = sitk.GetArrayFromImage(image)
    assert values.min() == -1024 and values.max() > -1024
    assert sorted(file.name for file in (tmp_path / "out" / "trust").iterdir()) == [
        f"{source.stem}_{name}.nii.gz" for name in ("combined", "cycle", "spread", "structure")
    ]
    across = convert(run, [source], tmp_path / "across", device="cpu", ensemble=Ensemble(("axial", "coronal")))
    assert "a picture is one axial slice" in across.failed[source.stem]
    with pytest.raises(InputError, match="single 2D images"):
        factory.train(
            config.parse({**TINY, "data": data, "patches": {"size": [32, 32], "neighbors": 1}}, "the test"),
            tmp_path / "other",
            device="cpu",
        )


def test_two_domains_of_gray_levels(slices: Path, tmp_path: Path) -> None:
    domains = {"a": {"name": "A", "modality": "MR"}, "b": {"name": "B", "modality": "MR"}}
    given = config.parse({"domains": domains, "data": {"root": str(slices)}}, "the test")
    prepared = factory.prepare(given, tmp_path / "prepared")
    assert not prepared.failed and len(prepared.cases["b"]) == 10
    assert all(case.image.shape[3] == 1 for case in prepared.cases["b"])
