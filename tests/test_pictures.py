"""2D images: their values and place, what is refused, and a training on them from beginning to end."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import TINY
from PIL import Image

from medcyclegan import config, factory, phantom
from medcyclegan.cohort.layouts import read_layout
from medcyclegan.convert import Options, convert
from medcyclegan.errors import InputError
from medcyclegan.inference.ensemble import Ensemble
from medcyclegan.io.pictures import GrayLevels
from medcyclegan.io.reader import read_volume


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


GRAY = ramp(np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """(rows, columns) or (rows, columns, components) as Pillow writes it."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def tiff(tag: int, offset: int, value: int) -> bytes:
    """A TIFF with two bytes of a tag's entry (tag, type, count, value) changed."""
    content = bytearray(encoded(GRAY, "TIFF", tiffinfo={274: 1}))
    (at,) = struct.unpack_from("<I", content, 4)
    struct.pack_into("<H", content, content.index(struct.pack("<H", tag), at) + offset, value)
    return bytes(content)


COLOR = np.zeros((2, 3, 3), np.uint8)
COLOR[0, 0], COLOR[0, 1], COLOR[0, 2] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
OPAQUE = np.dstack([GRAY, GRAY, GRAY, np.full((5, 7), 255, np.uint8)])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("turned.tif", tiff(274, 8, 2), "Orientation"),
        ("inverted.tif", tiff(262, 8, 0), "Photometric"),
        ("two_widths.tif", tiff(257, 0, 256), r"tag 256 twice|does not say its ImageLength|cannot be read"),
        (
            "pages.tif",
            encoded(GRAY, "TIFF", save_all=True, append_images=[Image.new("L", (7, 5))]),
            "two axes",
        ),
        ("gray_hidden.png", encoded(GRAY, transparency=14), "transparent"),
        ("hidden.png", encoded(OPAQUE - np.uint8([0, 0, 0, 1])), "transparent"),
        ("color.png", encoded(COLOR), r"color\.png: a color picture"),
        ("broken.png", b"\x89PNG\r\n\x1a\nnothing", r"broken\.png cannot be read"),
    ],
)
def test_what_is_no_plain_picture_is_refused(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_volume(tmp_path / name)


def test_a_tiff_that_is_cut_within_its_directory_is_refused(tmp_path: Path) -> None:
    content = encoded(GRAY, "TIFF")
    (at,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, at)
    for length in range(at, min(len(content), at + 2 + 12 * count)):
        (tmp_path / "x.tif").write_bytes(content[:length])
        with pytest.raises(InputError, match=r"cannot be read|does not say"):
            read_volume(tmp_path / "x.tif")


def test_color_and_transparency_that_show_gray(tmp_path: Path) -> None:
    for pixels in (np.dstack([GRAY, GRAY, GRAY]), OPAQUE):
        (tmp_path / "gray.png").write_bytes(encoded(pixels))
        np.testing.assert_array_equal(read_volume(tmp_path / "gray.png").numpy()[0, :, :, 0].T, GRAY)
    (tmp_path / "color.png").write_bytes(encoded(COLOR))
    gray = read_volume(tmp_path / "color.png", GrayLevels(gray=True)).numpy()[0, :, 0, 0]
    # ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B.
    np.testing.assert_allclose(gray, [76.245, 149.685, 29.07], atol=1e-3)


def test_a_window_rises() -> None:
    with pytest.raises(InputError, match="two rising HU"):
        GrayLevels((5.0, 5.0))


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
    given = config.parse({"data": {"source": str(slices)}}, "the test")
    with pytest.raises(InputError, match=r"uint8 gray levels says nothing of Hounsfield units(.|\n)*picture_window"):
        factory.prepare(given, tmp_path / "prepared")


def test_a_training_on_pictures_from_beginning_to_end(slices: Path, tmp_path: Path) -> None:
    assert read_layout(slices).layout == "cyclegan"
    data = {"source": str(slices), "picture_window": [-1024, 2048]}
    experiment = config.parse({**TINY, "data": data}, "the test")
    run = tmp_path / "run"
    factory.train(experiment, run, device="cpu")
    source = sorted((slices / "trainA").iterdir())[0]
    result = convert(run, [source], tmp_path / "out", Options(device="cpu", uncertainty=True))
    assert not result.failed
    (written,) = result.written.values()
    image = sitk.ReadImage(str(written))
    assert image.GetSize() == (36, 44, 1) and image.GetPixelIDTypeAsString() == "16-bit signed integer"
    values = sitk.GetArrayFromImage(image)
    assert values.min() == -1024 and values.max() > -1024
    assert sorted(file.name for file in (tmp_path / "out" / "uncertainty").iterdir()) == [
        f"{source.stem}_{name}.nii.gz" for name in ("combined", "cycle", "spread", "structure")
    ]
    across = convert(run, [source], tmp_path / "across", Options(device="cpu", ensemble=Ensemble(("axial", "coronal"))))
    assert "a picture is one axial slice" in across.failed[source.stem]
    with pytest.raises(InputError, match="single 2D images"):
        factory.train(
            config.parse({**TINY, "data": data, "patches": {"size": [32, 32], "neighbors": 1}}, "the test"),
            tmp_path / "other",
            device="cpu",
        )


def test_two_domains_of_gray_levels(slices: Path, tmp_path: Path) -> None:
    domains = {"a": {"name": "A", "modality": "MR"}, "b": {"name": "B", "modality": "MR"}}
    given = config.parse({"domains": domains, "data": {"source": str(slices)}}, "the test")
    prepared = factory.prepare(given, tmp_path / "prepared")
    assert not prepared.failed and len(prepared.cases["b"]) == 10
    assert all(case.image.shape[3] == 1 for case in prepared.cases["b"])
