"""The page is whole in one file and says what it was given; pictures show the right side of the patient."""

from __future__ import annotations

import base64
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib import image as images

from medcyclegan.evaluation.evaluate import Case, Evaluation, _summary
from medcyclegan.evaluation.metrics.score import Score
from medcyclegan.evaluation.protocol import protocol
from medcyclegan.io.grid import Grid
from medcyclegan.report import figures
from medcyclegan.report.report import Table, scores_table, write_report

HOSTILE = "<script>alert('x')</script>&\"<b>"


def pixels(png: bytes) -> np.ndarray:
    """(height, width, RGBA) in [0, 1]."""
    return np.asarray(images.imread(io.BytesIO(png), format="png"))


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def ct() -> np.ndarray:
    i, j, k = np.ogrid[:20, :24, :16]
    head = ((i - 9.5) / 8) ** 2 + ((j - 11.5) / 10) ** 2 + ((k - 7.5) / 7) ** 2 < 1
    return np.where(head, 40.0, -1000.0)


def graded() -> Evaluation:
    chosen = protocol("synthrad2023")
    cases = {
        "head_01": Case(
            {"mae": Score(61.234), "psnr": Score(28.5), "ssim": Score(0.87654)}, 100, "body", ("look here",)
        ),
        HOSTILE: Case({"mae": Score(71.0), "psnr": Score(27.5), "ssim": Score(math.nan, "too short")}, 90, "body"),
    }
    failed = {"head_03": f"cannot read {HOSTILE}"}
    return Evaluation(chosen, cases, failed, _summary(chosen, cases, failed, "body"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "new" / "report.html"
    picture = figures.case_panel(None, ct() + 100, ct(), Grid(ct().shape, np.eye(4)), ct() > 0)
    write_report(
        path,
        title=f"Run {HOSTILE}",
        facts={"Data": "12 heads", HOSTILE: HOSTILE},
        table=scores_table(graded()),
        baselines=Table(("method", "MAE [HU]"), (("constant", 70.1), ("lookup table", 12345.6))),
        cases=[("head_01", picture, figures.CAPTION), (HOSTILE, picture, HOSTILE)],
        curves=figures.curves({"cycle": ([1, 2, 3], [3.0, 2.0, 1.0])}),
    )
    return path.read_text(encoding="utf-8")


def test_the_page_needs_nothing_else(page: str) -> None:
    without_pictures = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "DATA", page)
    assert "http" not in without_pictures
    assert "url(" not in without_pictures and "@import" not in without_pictures
    tags = Page(page).tags
    assert {tag for tag, _ in tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "base"})
    for tag, attributes in tags:
        assert all(not name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "srcset"):
            assert (attributes.get(name) or "data:image/png;base64,").startswith("data:image/png;base64,"), tag


def test_pictures_are_embedded_whole_and_described(page: str) -> None:
    found = [attributes for tag, attributes in Page(page).tags if tag == "img"]
    assert len(found) == 3
    for attributes in found:
        encoded = (attributes["src"] or "").removeprefix("data:image/png;base64,")
        assert pixels(base64.b64decode(encoded, validate=True)).ndim == 3
        assert attributes["alt"]
    assert "head_01" in (found[0]["alt"] or "")
    assert "level 400 HU, width 1600 HU" in (found[0]["alt"] or "")


def test_the_page_says_what_it_was_given(page: str) -> None:
    text = Page(page).text
    numbers = ("61.23", "28.50", "0.8765", "71.00", "undefined", "70.10", "12346", "66.12", "12 heads")
    for part in (*numbers, "look here", "Protocol synthrad2023, -1024 to 3000 HU", "2 scored, 1 failed"):
        assert part in text, part
    assert "SSIM ↑: mean and deviation leave out 1 case(s)" in text
    assert "head_03 failed: cannot read" in text
    assert text.count("Research tool, not for clinical use") == 2


def test_what_users_name_is_escaped(page: str) -> None:
    assert "<script" not in page and "<b>" not in page
    # title, heading, fact name and value, case, failure, case heading and its caption
    assert Page(page).text.count(HOSTILE) == 8
    assert any(attributes.get("alt") == f"Case {HOSTILE}. {HOSTILE}" for _, attributes in Page(page).tags)


def test_the_page_serves_dark_screens_and_paper(page: str) -> None:
    assert "prefers-color-scheme: dark" in page and "@media print" in page
    assert page.startswith("<!doctype html>")


def test_optional_sections_are_left_out(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", title="t", facts={}, table=Table(("case", "MAE"), (("a", -1.5),)))
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "−1.500" in text
    assert not any(word in text for word in ("<img", "Baselines", "Training", "<dl>"))


def test_infinite_scores_have_no_mean_and_say_why() -> None:
    chosen = protocol("synthrad2023")
    cases = {"a": Case({"mae": Score(0), "psnr": Score(math.inf, "identical"), "ssim": Score(1)}, 1, "given")}
    table = scores_table(Evaluation(chosen, cases, {}, _summary(chosen, cases, {}, "given")))
    assert table.rows == (("a", 0.0, math.inf, 1.0),)
    assert table.foot[0] == ("mean", 0.0, None, 1.0)
    assert any("PSNR" in note and "identical" in note for note in table.notes)


def test_a_ragged_table_is_refused() -> None:
    with pytest.raises(ValueError, match="row of 1 cells in a table of 2"):
        Table(("a", "b"), (("x",),))


# A volume in RAS with one bright block at the patient's right, anterior, superior.
MARKED = np.full((20, 30, 10), -1000.0)
MARKED[14:18, 22:28, 7:9] = 1200
RAS = Grid(MARKED.shape, np.diag([2.0, 1.0, 5.0, 1.0]))


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "SRA", "PIL", "ASL"])
def test_the_picture_does_not_depend_on_the_order_of_the_axes(codes: str) -> None:
    def panel(image: nib.Nifti1Image) -> bytes:
        volume = np.asarray(image.dataobj)
        grid = Grid(volume.shape, image.affine)
        world = RAS.affine @ [16, 24, 8, 1]
        voxel = tuple(int(index) for index in np.rint(np.linalg.solve(grid.affine, world))[:3])
        return figures.case_panel(volume, volume, volume - 100, grid, voxel=voxel)

    straight = nib.Nifti1Image(MARKED, RAS.affine)
    start, end = nib.io_orientation(straight.affine), nib.orientations.axcodes2ornt(codes)
    turned = straight.as_reoriented(nib.orientations.ornt_transform(start, end))
    assert "".join(nib.aff2axcodes(turned.affine)) == codes
    assert np.array_equal(pixels(panel(turned)), pixels(panel(straight)))


def drawn(plane: str) -> tuple[np.ndarray, float, float]:
    """A slice as `figures` draws it, first row at the top of the screen, and its extent in mm."""
    cut, across, up = {"axial": (2, 0, 1), "coronal": (1, 0, 2), "sagittal": (0, 1, 2)}[plane]
    figure = figures._figure(4, 4, "none")
    axes = figure.add_axes((0, 0, 1, 1))
    size = np.multiply(MARKED.shape, (2.0, 1.0, 5.0))
    middle = (16, 24, 8)[cut]
    figures._show(axes, figures._slice(MARKED, cut, middle), size[across], size[up], (-1000, 1200), False)
    shown = np.asarray(axes.images[0].get_array())
    assert axes.images[0].origin == "lower"
    left, right, bottom, top = axes.images[0].get_extent()
    assert axes.get_aspect() == 1
    return shown[::-1], right - left, top - bottom


@pytest.mark.parametrize(("plane", "width", "height"), [("axial", 40, 30), ("coronal", 40, 50), ("sagittal", 30, 50)])
def test_the_right_is_on_the_left_and_up_is_up(plane: str, width: float, height: float) -> None:
    shown, wide, high = drawn(plane)
    assert (wide, high) == (width, height)
    rows, columns = np.nonzero(shown > 0)
    # right (axial, coronal) or anterior (sagittal) on the left; anterior (axial) or superior (others) at the top
    assert columns.mean() < shown.shape[1] / 2
    assert rows.mean() < shown.shape[0] / 2


def test_errors_are_signed_and_holes_are_seen() -> None:
    grid = Grid(ct().shape, np.eye(4))
    for offset, channel in ((400, 0), (-400, 2)):
        picture = pixels(figures.case_panel(None, ct() + offset, ct(), grid))
        strong = (picture[..., channel] > 0.5) & (picture[..., 2 - channel] < 0.4)
        weak = (picture[..., 2 - channel] > 0.5) & (picture[..., channel] < 0.4)
        # the color bar shows both colors; the map shows one
        assert strong.sum() > 20 * weak.sum()
    holed = ct()
    holed[8:12, 10:14, 6:10] = np.nan
    magenta = (pixels(figures.case_panel(None, holed, ct(), grid))[..., :3] == (1, 0, 1)).all(axis=-1)
    assert magenta.sum() > 1000
    assert not (pixels(figures.case_panel(None, ct(), ct(), grid))[..., :3] == (1, 0, 1)).all(axis=-1).any()


def test_an_oblique_volume_says_so_and_a_straight_one_does_not() -> None:
    angle = math.radians(20)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    for affine, tilted in ((turn, True), (np.diag([-1.0, 2, 3, 1]), False)):
        to_ras = nib.io_orientation(affine)
        text = figures._footer(Grid((9, 9, 9), affine), to_ras, (0, 0, 0))
        assert ("oblique by 20°" in text) is tilted
        assert "level 400 HU, width 1600 HU" in text


def test_planes_run_through_the_middle_of_the_mask() -> None:
    inside = np.zeros((20, 30, 10), bool)
    inside[2:7, 10:21, 9] = True
    assert figures._center(inside, inside.shape) == (4, 15, 9)
    assert figures._center(None, (20, 30, 10)) == (10, 15, 5)
    assert figures._center(np.zeros_like(inside), (20, 30, 10)) == (10, 15, 5)


def test_panels_of_another_grid_are_refused() -> None:
    grid = Grid(ct().shape, np.eye(4))
    with pytest.raises(ValueError, match=r"MR.*\(3, 3, 3\)"):
        figures.case_panel(np.zeros((3, 3, 3)), ct(), ct(), grid)
    with pytest.raises(ValueError, match="outside"):
        figures.case_panel(None, ct(), ct(), grid, voxel=(0, 0, 16))


def test_curves_refuse_what_they_cannot_draw() -> None:
    with pytest.raises(ValueError, match="no curve"):
        figures.curves({})
    with pytest.raises(ValueError, match="'cycle' has 2 steps and 1 values"):
        figures.curves({"cycle": ([1, 2], [1.0])})
    assert pixels(figures.curves({"a": ([1, 2, 3], [1.0, math.nan, 2.0])}))[0, 0, 3] == 0
