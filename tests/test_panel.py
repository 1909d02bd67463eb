"""The still picture of a case shows the right side of the patient, whatever the order of the file's axes."""

from __future__ import annotations

import io
import math

import nibabel as nib
import numpy as np
import pytest
from matplotlib import image as images

from medcyclegan.io.grid import Grid
from medcyclegan.report import panel
from medcyclegan.report.display import RasOrder
from medcyclegan.report.panel import case_panel


def pixels(png: bytes) -> np.ndarray:
    """(height, width, RGBA) in [0, 1]."""
    return np.asarray(images.imread(io.BytesIO(png), format="png"))


def ct() -> np.ndarray:
    i, j, k = np.ogrid[:20, :24, :16]
    head = ((i - 9.5) / 8) ** 2 + ((j - 11.5) / 10) ** 2 + ((k - 7.5) / 7) ** 2 < 1
    return np.where(head, 40.0, -1000.0)


# A volume in RAS with one bright block at the patient's right, anterior, superior.
MARKED = np.full((20, 30, 10), -1000.0)
MARKED[14:18, 22:28, 7:9] = 1200
RAS = Grid(MARKED.shape, np.diag([2.0, 1.0, 5.0, 1.0]))


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "SRA", "PIL", "ASL"])
def test_the_picture_does_not_depend_on_the_order_of_the_axes(codes: str) -> None:
    def picture(image: nib.Nifti1Image) -> bytes:
        volume = np.asarray(image.dataobj)
        grid = Grid(volume.shape, image.affine)
        world = RAS.affine @ [16, 24, 8, 1]
        voxel = tuple(int(index) for index in np.rint(np.linalg.solve(grid.affine, world))[:3])
        return case_panel(volume, volume, volume - 100, grid, voxel=voxel)

    straight = nib.Nifti1Image(MARKED, RAS.affine)
    start, end = nib.io_orientation(straight.affine), nib.orientations.axcodes2ornt(codes)
    turned = straight.as_reoriented(nib.orientations.ornt_transform(start, end))
    assert "".join(nib.aff2axcodes(turned.affine)) == codes
    assert np.array_equal(pixels(picture(turned)), pixels(picture(straight)))


def test_errors_are_signed_and_holes_are_seen() -> None:
    grid = Grid(ct().shape, np.eye(4))
    for offset, channel in ((400, 0), (-400, 2)):
        picture = pixels(case_panel(None, ct() + offset, ct(), grid))
        strong = (picture[..., channel] > 0.5) & (picture[..., 2 - channel] < 0.4)
        weak = (picture[..., 2 - channel] > 0.5) & (picture[..., channel] < 0.4)
        # the color bar shows both colors; the map shows one
        assert strong.sum() > 20 * weak.sum()
    holed = ct()
    holed[8:12, 10:14, 6:10] = np.nan
    magenta = (pixels(case_panel(None, holed, ct(), grid))[..., :3] == (1, 0, 1)).all(axis=-1)
    assert magenta.sum() > 1000
    assert not (pixels(case_panel(None, ct(), ct(), grid))[..., :3] == (1, 0, 1)).all(axis=-1).any()


def test_an_oblique_volume_says_so_and_a_straight_one_does_not() -> None:
    angle = math.radians(20)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    for affine, tilted in ((turn, True), (np.diag([-1.0, 2, 3, 1]), False)):
        text = panel._footer(RasOrder(Grid((9, 9, 9), affine)), (0, 0, 0))
        assert ("oblique by 20°" in text) is tilted
        assert "level 400 HU, width 1600 HU" in text


def test_panels_of_another_grid_are_refused() -> None:
    grid = Grid(ct().shape, np.eye(4))
    with pytest.raises(ValueError, match=r"MR.*\(3, 3, 3\)"):
        case_panel(np.zeros((3, 3, 3)), ct(), ct(), grid)
    with pytest.raises(ValueError, match="outside"):
        case_panel(None, ct(), ct(), grid, voxel=(0, 0, 16))
