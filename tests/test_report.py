"""A report says what the results say, needs nothing but itself, and names what is missing."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medcyclegan import cli
from medcyclegan.errors import InputError
from medcyclegan.evaluation.columns import heading
from medcyclegan.evaluation.evaluate import evaluate
from medcyclegan.evaluation.results import read_results
from medcyclegan.report import pictures, plots
from medcyclegan.report.page import Table, cell
from medcyclegan.report.pictures import standing_out
from medcyclegan.report.report import About, write_report
from medcyclegan.training.guards import Remark
from medcyclegan.training.recorder import Panel, RunRecorder

ALL_BYTES, LAYOUT = pictures.PICTURE_BYTES, plots.ConstrainedLayoutEngine
GRADING = Path(__file__).parents[1] / ".github/docs/howto/grade.md"
HOSTILE = "<script>alert('x')&\"<b>"
SHAPE = (24, 28, 16)
AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
OFFSETS = {"head_01": 20.0, "head_02": -35.0, "head_03": 60.0, "head_04": 10.0, "head_05": -80.0}
STATISTICS = {
    "n": 5,
    "mean": 41.25,
    "sd": 28.5,
    "median": 35.0,
    "q1": 20.0,
    "q3": 60.0,
    "ci_low": 21.5,
    "ci_high": 63.75,
}


class Reader(HTMLParser):
    """Tags with their attributes, the text, and the text of every table row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.page = text
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.inside = ""
        self.in_row = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag if tag in ("style", "script") else ""
        if tag == "tr":
            self.rows.append([])
            self.in_row = True
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""
        self.in_row = self.in_row and tag != "tr"

    def handle_data(self, data: str) -> None:
        if not self.inside:
            self.text += data
            if self.in_row and self.rows[-1]:
                self.rows[-1][-1] += data.strip()

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [
            attributes
            for name, attributes in self.tags
            if name == tag and all((attributes.get(key) or "") == value for key, value in wanted.items())
        ]


def shown(results: Path, **options: Any) -> Reader:
    """The report of some results, beside them, as a browser reads it."""
    return Reader(write_report(results, results / "r.html", **options).path.read_text(encoding="utf-8"))


def head() -> np.ndarray:
    i, j, k = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    inside = ((i - 11.5) / 9) ** 2 + ((j - 13.5) / 11) ** 2 + ((k - 7.5) / 7) ** 2 < 1
    return np.where(inside, 40.0, -1000.0).astype(np.float32)


def save(volume: np.ndarray, path: Path, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume.astype(np.float32), affine), path)
    return path


def make_results(folder: Path, offsets: dict[str, float] = OFFSETS, **summary: Any) -> Path:
    """An evaluation as recorded: the synthetic CT of each case is its CT plus an offset, so its MAE is |offset|."""
    ct, files = head(), {}
    inside = ct > -500
    for number, (name, offset) in enumerate(offsets.items()):
        mr = np.where(inside, 300.0 + 100 * number, 0)
        mr[10:14, 12:16, 6:10] *= 2
        files[name] = {
            "pred": str(save(np.where(inside, ct + offset, ct), folder / f"sct/v{number}_sct.nii")),
            "ref": str(save(ct, folder / f"ct/v{number}.nii")),
            "mask": str(save(inside, folder / f"mask/v{number}.nii")),
            "source": str(save(mr, folder / f"mr/v{number}.nii")),
        }
    scores = folder / "scores"
    scores.mkdir()
    with (scores / "cases.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["case", "mae", "ssim", "mae_air", "mae_soft", "mae_bone", "me_soft", "share_air", "share_soft"])
        for name, offset in offsets.items():
            table.writerow([name, repr(abs(offset)), "0.9", "nan", repr(abs(offset)), "150.5", offset, "0.0", "1.0"])
    metrics = {
        "mae": STATISTICS,
        "ssim": {**STATISTICS, "mean": 0.9, "ci_low": None, "ci_high": None, "n": 4},
        "mae_soft": {**STATISTICS, "mean": 31.25},
    }
    content = {"protocol": "native", "range": [-1024, 3071], "mask": "given", "metrics": metrics, "files": files}
    (scores / "summary.json").write_text(json.dumps(content | summary))
    return scores


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few slices, and plots that are not laid out, which takes most of their time; `page` has all of both."""
    monkeypatch.setattr(pictures, "PICTURE_BYTES", 100_000)
    monkeypatch.setattr(plots, "ConstrainedLayoutEngine", lambda **_: None)


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_results(tmp_path_factory.mktemp("evaluation"), tissues={"air": [None, -200], "bone": [200, None]})


@pytest.fixture(scope="module")
def page(scores: Path) -> str:
    return shown(scores, about=About("Five heads", {"Model": "a model"})).page


def test_the_page_needs_nothing_else(page: str) -> None:
    bare = re.sub(r"data:image/webp;base64,[A-Za-z0-9+/=]+", "DATA", page)
    assert not re.search(r"https?:|url\(|@import|//[a-z]", bare)
    reader = Reader(page)
    assert {tag for tag, _ in reader.tags}.isdisjoint({"link", "iframe", "object", "embed", "base", "form"})
    for tag, attributes in reader.tags:
        assert all(not name.startswith("on") for name in attributes), tag
        for name in ("src", "srcset"):
            assert (attributes.get(name) or "data:image/webp;base64,").startswith("data:image/webp;base64,"), tag
    policy = next(a["content"] for a in reader.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'; img-src data:" in (policy or "")
    assert page.startswith("<!doctype html>")
    assert "@media screen and (prefers-color-scheme: dark)" in page and "@media print" in page
    assert page.count('<source media="screen and (prefers-color-scheme: dark)"') == 2


def test_every_picture_is_whole_and_described(page: str) -> None:
    images = Reader(page).all("img")
    assert len(images) > 5 * 3
    for attributes in images:
        encoded = (attributes["src"] or "").removeprefix("data:image/webp;base64,")
        image = Image.open(io.BytesIO(base64.b64decode(encoded, validate=True)))
        image.load()
        assert len(attributes["alt"] or "") > 20
    words = [attributes["alt"] or "" for attributes in images]
    assert any(
        re.fullmatch(r"Case head_05, axial slice at z \+\d+ mm: MR, Synthetic CT, CT, .+", text) for text in words
    )


def test_tables_are_accessible(page: str) -> None:
    reader = Reader(page)
    assert all(attributes.get("scope") in ("col", "row") for attributes in reader.all("th"))
    assert len(reader.all("caption")) == len(reader.all("table")) == 3  # tissues, all scores, every case
    assert all(attributes.get("aria-label") for attributes in reader.all("input"))
    assert reader.all("html", lang="en")
    levels = [int(tag[1]) for tag, _ in reader.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    anchors = {attributes.get("id") for _, attributes in reader.tags}
    assert all((link["href"] or "#")[1:] in anchors for link in reader.all("a"))


def test_the_page_says_what_was_recorded(page: str) -> None:
    reader = Reader(page)
    assert ["MAE [HU] ↓", "5", "41.25", "21.50 to 63.75", "28.50", "35.00", "20.00 to 60.00"] in reader.rows
    # an interval that was not recorded is a dash, never made up
    assert ["SSIM ↑", "4", "0.9000", "–", "28.50", "35.00", "20.00 to 60.00"] in reader.rows
    for name, offset in OFFSETS.items():
        row = next(row for row in reader.rows if row[0] == name)
        assert row[1] == cell(abs(offset)) and row[5] == "undefined"
    for part in (
        "Five heads",
        "a model",
        "5 scored",
        "native, −1024 to 3071 HU",
        "the masks given",
        "air … to −200 HU",
    ):
        assert part in reader.text, part
    assert "SSIM: 4 cases have a value; the others are left out." in reader.text
    assert reader.text.count("Research tool, not for clinical use") == 2
    assert "registration alone moved MAE by 3 to 8 HU" in reader.text


def test_tissues_have_their_own_table(page: str) -> None:
    rows = Reader(page).rows
    # means of columns that the summary does not hold are taken over the cases; shares become percent
    assert ["soft tissue", "31.25", "21.50 to 63.75", "−5.000", "–", "100.0"] in rows
    assert ["bone", "150.5", "–", "–", "–", "–"] in rows
    assert ["air", "–", "–", "–", "–", "0"] in rows


def test_worst_median_and_best_are_open_and_the_others_can_be(page: str) -> None:
    reader = Reader(page)
    cases = reader.all("details", **{"class": "case"})
    assert [("open" in attributes) for attributes in cases] == [True, True, True, False, False]
    badges = re.findall(r"<h3>(\w+)</h3><span class=\"badge\">([\w ]+)</span>", page)
    assert badges == [("head_05", "worst MAE"), ("head_02", "median MAE"), ("head_04", "best MAE")]
    sliders = reader.all("input", type="range")
    assert len(sliders) == 5 * 3
    seen = [attributes for attributes in reader.all("img") if "data-label" in attributes and "hidden" not in attributes]
    assert len(seen) == 5 * 3  # one per plane, so that the page also serves without its script and on paper
    letters = re.findall(r"<b>([LRAPSI])</b>", page)
    assert {letter: letters.count(letter) for letter in "LRAPSI"} == dict.fromkeys("LRAPSI", 40)


def test_scales_carry_their_ends_and_units(tmp_path: Path) -> None:
    page = shown(make_results(tmp_path, {"a": 10.0, "b": 20.0}), window=(-160, 240)).page
    assert page.count("<span>−160</span><span>HU</span><span>240</span>") == 2 * 2
    assert page.count("<span>−500</span><span>HU</span><span>500</span>") == 2
    assert "level 40 HU, width 400 HU" in page


def test_pictures_show_the_case_they_are_named_after(page: str) -> None:
    """The offset of each case is seen as the color of its signed error: red above, blue below the truth."""
    for name, offset in (("head_03", 60), ("head_05", -80)):
        seen = [
            attributes
            for attributes in Reader(page).all("img")
            if (attributes["alt"] or "").startswith(f"Case {name}, axial") and "hidden" not in attributes
        ]
        encoded = (seen[0]["src"] or "").removeprefix("data:image/webp;base64,")
        whole = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")).astype(int)
        width = (whole.shape[1] + 2) // 4
        middle = whole[whole.shape[0] // 2, 3 * width + width // 2 - 10 : 3 * width + width // 2 + 10]
        red_minus_blue = (middle[:, 0] - middle[:, 2]).mean()
        assert red_minus_blue * offset > 0 and abs(red_minus_blue) > 8
        assert f"MAE {abs(offset)} HU" in (seen[0]["data-label"] or "")


def test_what_users_name_is_escaped(tmp_path: Path) -> None:
    scores = make_results(tmp_path, {HOSTILE: 10.0}, failed=[{"case": f"2{HOSTILE}", "reason": HOSTILE}])
    reader = shown(scores, about=About(HOSTILE, {HOSTILE: HOSTILE}))
    assert reader.page.count("<script") == 1 and "alert('x')" not in reader.page
    assert "<b>" not in re.sub(r"<b>[LRAPSI]</b>", "", reader.page)
    assert reader.text.count(HOSTILE) >= 9


def test_missing_volumes_are_told_and_cost_only_their_pictures(tmp_path: Path) -> None:
    scores = make_results(tmp_path, failed=[{"case": "head_06", "reason": "cannot be read"}], missing=["head_07"])
    (tmp_path / "sct/v0_sct.nii").unlink()
    (tmp_path / "mr/v1.nii").unlink()
    save(np.zeros((5, 5, 5)) + np.arange(5), tmp_path / "sct/v2_sct.nii")
    written = write_report(scores, tmp_path / "r.html")
    assert set(written.not_shown) == {"head_01", "head_03"}
    reader = Reader((tmp_path / "r.html").read_text(encoding="utf-8"))
    for words in (
        "head_06 could not be scored: cannot be read",
        "Missing, and in none of the numbers: head_07.",
        "5 of 6 scored",
        "No pictures of head_01: ",
        "No pictures of head_03: v2_sct.nii lies on another grid than v2.nii",
        "The MR is not shown: ",
    ):
        assert words in reader.text, words
    assert str(tmp_path) not in reader.text  # a report is passed on; folders may name people
    assert len(reader.all("details", **{"class": "case"})) == 5
    assert ["head_06", *["–"] * 8] in reader.rows


def test_results_without_volumes_are_reported_all_the_same(tmp_path: Path) -> None:
    scores = make_results(tmp_path, files=None)
    assert len(write_report(scores, tmp_path / "r.html").not_shown) == 5
    text = shown(scores).text
    assert "No volumes could be opened, so there is no histogram." in text
    assert "No pictures of any case: the evaluation did not record where the volumes are." in text


def test_volumes_that_contradict_the_scores_are_told(tmp_path: Path) -> None:
    scores = make_results(tmp_path)
    save(head() + 500, tmp_path / "sct/v1_sct.nii")
    text = shown(scores).text
    assert "Volumes and scores contradict each other in head_02" in text
    assert "The volumes shown have a MAE of 500.0 HU in the mask, the table of scores says 35.0 HU" in text


def test_companions_come_from_folders_and_are_brought_onto_the_grid(tmp_path: Path) -> None:
    scores = make_results(tmp_path, {"head_01": 20.0, "head_02": -35.0, "head_03": 60.0})
    fine = np.diag([1.0, 1.0, 1.5, 1.0])
    for name in ("head_01", "head_02"):
        save(np.random.default_rng(0).random((48, 56, 32)), tmp_path / f"maps/{name}_mr.nii", fine)
        save(np.random.default_rng(0).random(SHAPE), tmp_path / f"maps/{name}_sct_uncertainty.nii")
    reader = shown(scores, source=tmp_path / "maps", uncertainty=tmp_path / "maps")
    assert reader.text.count("The MR lay on another grid and was interpolated (linear)") == 2
    assert (
        reader.text.count("The uncertainty map is not shown: no uncertainty map, or more than one, has the name") == 1
    )
    assert (
        sum("MR, Synthetic CT, CT, Synthetic CT − CT, Uncertainty map" in (a["alt"] or "") for a in reader.all("img"))
        >= 6
    )
    with pytest.raises(InputError, match=r"no MR for any case; it holds .*the cases are head_01"):
        write_report(scores, tmp_path / "r.html", source=tmp_path / "ct")


def test_of_several_uncertainty_maps_the_combined_one_is_shown(tmp_path: Path) -> None:
    scores = make_results(tmp_path, {"head": 10.0})
    save(head() + 2000, tmp_path / "uncertainty/head_spread.nii")
    save(np.where(head() > -500, 3.0, 0), tmp_path / "uncertainty/head_combined.nii")
    page = shown(scores, uncertainty=tmp_path / "uncertainty").page
    assert "<span>0</span><span>as given</span><span>4</span>" in page  # all voxels of the mask hold 3
    assert "values of the files given (named *_combined)" in page and "high is doubtful" in page


def test_what_the_evaluation_doubts_comes_first(tmp_path: Path) -> None:
    scores = make_results(
        tmp_path,
        {"a": 10.0, "b": 20.0},
        doubts={"a": ["no air: stored without intercept?"], "b": ["no air: stored without intercept?"]},
        unmatched=["stray_sct"],
        interval={"method": "BCa", "confidence": 0.95, "resamples": 999, "seed": 4},
        registered=True,
        metrics={"mae": {**STATISTICS, "ci_low": None, "ci_high": None, "reasons": {"ci_low": "too few cases"}}},
    )
    text = shown(scores).text
    first = text.split("MAE [HU] ↓")[0]
    assert "Doubtful, a, b: no air: stored without intercept?." in first
    assert "Given, but paired with nothing: stray_sct." in first
    assert "BCa, confidence 0.95, resamples 999, seed 4" in text and "Registeredyes" in text
    assert "The evaluation recorded no intervals: too few cases." in text


def test_many_scores_of_a_case_are_one_table_that_sorts_by_numbers(tmp_path: Path) -> None:
    names = [f"score_{n}" for n in range(19)]
    lines = [",".join(["case", *names]), *(",".join([case, *map(str, range(19))]) for case in ("a", "b"))]
    lines += ["c," + ",".join(["1e-7", "nan", "inf", *map(str, range(16))])]
    (tmp_path / "cases.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "summary.json").write_text("{}")
    reader = shown(tmp_path)
    assert [len(row) for row in reader.rows if row[0] == "b"] == [20]
    assert len(reader.all("table", **{"class": "sortable"})) == 1
    # The number in full, whatever is shown of it, and nothing for what has no value.
    assert [cell["data-value"] for cell in reader.all("td")[-19:-15]] == ["1e-07", "", "inf", "0.0"]


def test_the_page_begins_with_what_is_looked_at(scores: Path, page: str) -> None:
    headings = re.findall(r"<h2[^>]*>([^<]+)</h2>", page)
    assert headings == [
        "Pictures",
        "Tissues",
        "Agreement of HU",
        "All scores over the cases",
        "Scores of every case",
        "Pictures of the other cases",
        "About this evaluation",
    ]
    labels = re.findall(r'<span class="label">([^<]+)</span> <strong>([^<]+)</strong>', page)
    assert labels == [("MAE [HU] ↓", "41.25"), ("MAE bone [HU] ↓", "150.5"), ("SSIM ↑", "0.9000")]
    assert page.index('class="headlines"') < page.index("<main") < page.index('class="case"')
    folded = page[page.index('<details class="folded"') :]
    assert "MAE soft [HU] ↓" in folded[: folded.index("</details>")]


def test_the_best_table_needs_the_mr(tmp_path: Path) -> None:
    scores = make_results(tmp_path, {"a": 10.0, "b": 20.0})
    shutil.rmtree(tmp_path / "mr")
    page = shown(scores).page
    assert "best constant <span>" in page and "best table <span>" not in page and "Best table" not in page
    assert "median HU of its own reference in the mask" in page


def test_distributions_are_drawn_from_eight_cases_on(tmp_path: Path) -> None:
    for count in (7, 8):
        scores = make_results(tmp_path / str(count), {f"c{n}": 10.0 + n for n in range(count)}, files=None)
        words = [a["alt"] or "" for a in shown(scores).all("img")]
        assert any("8 cases from 10 to 17" in text for text in words) == (count == 8)


def test_range_errors_by_angle(tmp_path: Path) -> None:
    rows = [{"angle": a, "mean_mm": 1 + a / 90, "p95_mm": 3.0, "signed_mm": 0.0} for a in (0.0, 90.0, 180.0)]
    recorded = {"angles": {"wepl": rows}, "calibration": {"relative_stopping_power": "a table. "}}
    scores = make_results(tmp_path / "good", {"a": 10.0}, range_error=recorded)
    reader = shown(scores)
    words = [a["alt"] or "" for a in reader.all("img")]
    assert "Range error by gantry angle. WEPL difference: largest mean 3.0 mm at 180 degrees." in words
    assert "Calibration: relative stopping power: a table." in reader.text
    assert "95th percentile (dashed)" in reader.text
    for row in rows:
        row["p95_mm"] = row["mean_mm"]
    text = shown(make_results(tmp_path / "one", {"a": 10.0}, range_error=recorded)).text
    assert "the one path of each case" in text and "dashed)" not in text


def test_what_is_no_result_is_refused(scores: Path, tmp_path: Path) -> None:
    for results, output, words in (
        (tmp_path / "none", "r.html", "There is no"),
        (tmp_path, "r.html", r"neither .* cases\.csv and summary\.json, a training holds metrics\.csv"),
        (scores, "r.pdf", "no HTML file"),
        (scores, ".", "is a folder"),
    ):
        with pytest.raises(InputError, match=words):
            write_report(results, tmp_path / output)
    with pytest.raises(InputError, match=r"window 40 to 40 HU is empty"):
        write_report(scores, tmp_path / "r.html", window=(40, 40))
    both = make_run(tmp_path / "both", [])
    for name in ("summary.json", "cases.csv"):
        shutil.copy(scores / name, both)
    with pytest.raises(InputError, match="both an evaluation and a training"):
        write_report(both, tmp_path / "r.html")
    with pytest.raises(InputError, match="takes no source"):
        write_report(make_run(tmp_path / "run", []), tmp_path / "r.html", source=tmp_path)
    assert list(tmp_path.glob("*.html")) == []


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("summary.json", "{", r"summary\.json cannot be read"),
        ("summary.json", '{"range_error": {"angles": {"wepl": [{}]}}}', r"summary\.json: 'range_error' cannot be read"),
        ("cases.csv", "case,mae\na,1\na,2\n", r"more than one line for \['a'\]"),
        ("metrics.csv", "step,loss\n", "holds no step yet"),
        ("metrics.csv", "step,loss\n1,x\n", "not a table of curves"),
        ("guards.csv", "step,guard\nx,y\n", r"guards\.csv is not a table of what guards said"),
    ],
)
def test_damaged_results_are_refused(tmp_path: Path, file: str, content: str, words: str) -> None:
    training = file in ("metrics.csv", "guards.csv")
    results = make_run(tmp_path / "run", []) if training else make_results(tmp_path, {"a": 10.0})
    (results / file).write_text(content)
    with pytest.raises(InputError, match=words):
        write_report(results, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_results_of_the_evaluation_are_read_as_they_were_written(tmp_path: Path) -> None:
    for name, offset in (("a", 30.0), ("b", -10.0)):
        save(head(), tmp_path / f"ct/{name}.nii.gz")
        save(head() + offset, tmp_path / f"sct/{name}_sct.nii.gz")
        save(head() > -500, tmp_path / f"mask/{name}.nii.gz")
    evaluate(tmp_path / "sct", tmp_path / "ct", tmp_path / "out", masks=tmp_path / "mask")
    found = read_results(tmp_path / "out")
    assert found.columns[:2] == ("mae", "psnr") and "voxels" not in found.columns
    assert [case.scores["mae"] for case in found.cases] == [30, 10]
    assert found.statistics["mae"]["mean"] == 20
    written = write_report(tmp_path / "out", tmp_path / "r.html")
    assert written.not_shown == {} and written.size == (tmp_path / "r.html").stat().st_size


def test_cases_that_stand_out(tmp_path: Path) -> None:
    def ranked(column: str, values: dict[str, str]) -> dict[str, str]:
        (tmp_path / "cases.csv").write_text("\n".join([f"case,{column}", *(f"{n},{v}" for n, v in values.items())]))
        (tmp_path / "summary.json").write_text("{}")
        return standing_out(read_results(tmp_path))

    assert ranked("mae", {"a": "3", "b": "1", "c": "2", "d": "nan"}) == {
        "a": "worst MAE",
        "c": "median MAE",
        "b": "best MAE",
    }
    assert ranked("psnr", {"a": "30", "b": "20"}) == {"b": "worst PSNR", "a": "best PSNR"}
    assert ranked("me", {"a": "-30", "b": "20", "c": "1"})["a"] == "worst ME"
    assert ranked("mae", {"a": "3"}) == {"a": "only case"}
    assert ranked("mae", {"a": "nan", "b": ""}) == {}


def test_headings_and_cells() -> None:
    assert str(heading("mae_bone")) == "MAE bone [HU] ↓" and str(heading("me")) == "ME [HU] → 0"
    assert str(heading("ms_ssim")) == "MS-SSIM ↑" and str(heading("wepl_p95_mm")) == "WEPL difference p95 [mm] ↓"
    assert str(heading("something_new")) == "something new" and str(heading("median_hu")) == "median [HU]"
    cells = {0.0: "0", -1.5: "−1.500", 12345.6: "12346", math.inf: "∞", math.nan: "undefined", None: "–", 7: "7"}
    assert {value: cell(value) for value in cells} == cells
    with pytest.raises(ValueError, match="row of 1 cells in a table of 2"):
        Table("", ("a", "b"), (("x",),))


def test_plots_refuse_what_they_cannot_draw() -> None:
    with pytest.raises(ValueError, match="no curve"):
        plots.curves({})
    with pytest.raises(ValueError, match="'cycle' has 2 steps and 1 values"):
        plots.curves({"cycle": ([1, 2], [1.0])})
    with pytest.raises(ValueError, match="no score"):
        plots.distributions([])
    drawn = plots.curves({"a": ([1, 2, 3], [1.0, math.nan, 2.0])})
    light, dark = (np.asarray(Image.open(io.BytesIO(data))) for data in (drawn.light, drawn.dark))
    assert light[0, 0, 3] == dark[0, 0, 3] == 0  # the ground is the page's
    assert light[light[..., 3] == 255][:, :3].min() < 60 and dark[dark[..., 3] == 255][:, :3].max() > 200


def make_run(folder: Path, pictures_at: list[int]) -> Path:
    (folder / "pictures").mkdir(parents=True)
    lines = [f"{step},{step / 10},{3 / step},{0.5},2.0,0.0002\n" for step in range(50, 501, 50)]
    text = "step,seconds,cycle_a,adversarial_ab,steps_per_s,learning_rate\n" + "".join(lines)
    (folder / "metrics.csv").write_text(text + "550,55.0,0.0")  # a line that is still being written
    (folder / "validation.csv").write_text("step,mae\n100,90.5\n200,70.25\n300,80\n")
    (folder / "config.yaml").write_text(
        "seed: 7\ndomains:\n  a: {name: T1, modality: MR}\n  b: {name: CT, modality: CT}\n"
        "preparation: {ct_window: [-1024, 1000], mr_inverted: true, crop_margin: null}\n"
        "training: {steps: 1000, learning_rate: 0.0002}\n"
    )
    for step in pictures_at:
        Image.fromarray(np.full((12, 18), step % 256, np.uint8)).save(folder / f"pictures/step_{step:07d}.png")
    return folder


def test_a_training_has_its_own_report(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [100, 200, 300])
    page = shown(run).page
    reader = Reader(page)
    assert ["validation mae", "90.50", "80.00", "70.25", "200"] in reader.rows
    assert ["cycle a", "0.06000", "0.006000", "0.006000", "500"] in reader.rows
    for words in (
        *("Training from T1 to CT", "500 of 1000", "50 s", "Upper row: real T1, CT made of it", "Seed"),
        *("CT at level 375 HU, width 1250 HU", "MR as the networks see it, dark and bright exchanged"),
    ):
        assert words in reader.text, words
    assert "crop margin no" in reader.text and "None" not in reader.text
    panels = [a for a in reader.all("img") if "data-label" in a]
    assert [a["data-label"] for a in panels] == ["step 100", "step 200", "step 300"]
    assert ["hidden" in a for a in panels] == [True, True, False]
    encoded = (panels[1]["src"] or "").removeprefix("data:image/webp;base64,")
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
    assert image.shape[:2] == (12, 18) and (image == 200).all()


def test_the_report_of_a_training_shows_what_the_guards_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [100])
    quiet = shown(run)
    assert "The guards of the training said nothing." in quiet.text and "what to try" not in quiet.text
    recorder = RunRecorder(run, log_every=1, picture_every=1, panel=Panel({}, {}))
    recorder.board = SimpleNamespace(add_text=lambda *_: None)
    said = Remark('discriminator_a is <0.005, "now" 0.', "The training goes on.", "Try fewer filters, or layers.")
    with pytest.warns(UserWarning, match="step 250: saturation: discriminator_a .* goes on. Try fewer filters"):
        recorder.report(250, "saturation", said)
    with pytest.warns(UserWarning, match="patience"):
        recorder.report(400, "patience", Remark("mae was no better.", "The training stops early."))
    with (run / "guards.csv").open("a") as stream:
        stream.write("450,collapse,a line that is")  # still being written
    reader = shown(run)
    assert ["step", "guard", "what it saw", "what it did", "what to try"] in reader.rows
    assert ["250", "saturation", said.saw, said.did, said.remedy] in reader.rows
    assert ["400", "patience", "mae was no better.", "The training stops early.", "–"] in reader.rows
    assert "said nothing" not in reader.text and "a line that is" not in reader.text


def test_of_many_panels_the_first_the_last_and_some_between_are_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", list(range(10, 1010, 10)))
    for name in ("validation.csv", "config.yaml"):
        (run / name).unlink()
    reader = shown(run)
    labels = [a["data-label"] for a in reader.all("img") if "data-label" in a]
    assert len(labels) == 40 and labels[0] == "step 10" and labels[-1] == "step 1000"
    for words in ("40 of 100 panels are shown", "no validation pairs", "config.yaml was not found"):
        assert words in reader.text, words


def test_an_evaluation_can_carry_the_training_of_its_model(tmp_path: Path) -> None:
    scores = make_results(tmp_path / "evaluation", {"only": 10.0})
    run = make_run(tmp_path / "run", [100])
    text = shown(scores, about=About(run=run)).text
    assert "Course of the training" in text and "Bland-Altman" in text


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    scores = make_results(tmp_path / "evaluation", {"only": 10.0})
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int | str | None, str, str]:
        monkeypatch.setattr(sys, "argv", ["medcyclegan", "report", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    code, out, _ = run(str(scores), "-o", "new/r.html", "--window", "-160", "240", "--json")
    assert code == 0
    assert json.loads(out) == {"report": "new/r.html", "bytes": Path("new/r.html").stat().st_size, "not_shown": {}}
    assert "level 40 HU, width 400 HU" in Path("new/r.html").read_text(encoding="utf-8")
    (line,) = re.findall(r"^medcyclegan report (SCORES .*)$", GRADING.read_text(encoding="utf-8"), re.MULTILINE)
    folders = {"SCORES": str(scores), "NEW_MR_DIR": str(tmp_path / "evaluation/mr")}
    shutil.move(tmp_path / "evaluation/mr/v0.nii", tmp_path / "evaluation/mr/only.nii")
    assert run(*(folders.get(word, word) for word in line.split()))[0] == 0
    code, _, err = run(str(tmp_path))
    assert code == 2 and "neither the results of an evaluation nor a training" in err


def many(folder: Path, shape: tuple[int, int, int], count: int) -> Path:
    """Results of many cases which all are the same noise, the hardest content to compress."""
    random = np.random.default_rng(0)
    noise = random.normal(0, 400, shape)
    paths = {
        "ref": save(noise, folder / "ct.nii"),
        "pred": save(noise + random.normal(0, 200, shape), folder / "sct.nii"),
        "source": save(random.random(shape), folder / "mr.nii"),
        "mask": save(np.ones(shape), folder / "mask.nii"),
    }
    for number in range(count):
        (folder / "uncertainty").mkdir(exist_ok=True)
        (folder / f"uncertainty/case_{number:03d}_uncertainty.nii").symlink_to(paths["source"])
    scores = folder / "scores"
    scores.mkdir()
    names = [f"case_{number:03d}" for number in range(count)]
    lines = [f"{name},{160 + number},0.5" for number, name in enumerate(names)]
    (scores / "cases.csv").write_text("\n".join(["case,mae,ssim", *lines]) + "\n")
    files = {name: {kind: str(path) for kind, path in paths.items()} for name in names}
    (scores / "summary.json").write_text(json.dumps({"metrics": {"mae": STATISTICS}, "files": files}))
    return scores


def test_cases_beyond_the_bytes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "PICTURE_BYTES", 400_000)
    scores = many(tmp_path, (40, 40, 20), 12)
    written = write_report(scores, tmp_path / "r.html")
    assert 0 < len(written.not_shown) < 9
    assert not {"case_000", "case_006", "case_011"} & set(written.not_shown)  # those that stand out come first
    assert written.size < 1.5 * 400_000 + 400_000
    text = Reader((tmp_path / "r.html").read_text(encoding="utf-8")).text
    assert "12 cases are too many for pictures of all in one page" in text


@pytest.mark.slow
def test_thirty_cases_of_full_size_stay_below_15_mb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "PICTURE_BYTES", ALL_BYTES)
    monkeypatch.setattr(plots, "ConstrainedLayoutEngine", LAYOUT)
    written = write_report(
        many(tmp_path, (104, 104, 64), 30), tmp_path / "r.html", uncertainty=tmp_path / "uncertainty"
    )
    assert written.not_shown == {}
    assert 10e6 < written.size < 15e6


PROBE = """
<script>
addEventListener("load", () => {
  const stack = document.querySelector(".stack");
  const slider = stack.querySelector("input");
  const shown = () => [...stack.querySelectorAll("img")].flatMap((image, index) => image.hidden ? [] : [index]).join();
  const found = [slider.value, shown(), stack.querySelector("output").textContent];
  slider.value = 2;
  slider.dispatchEvent(new Event("input"));
  found.push(shown(), stack.querySelector("output").textContent, slider.getAttribute("aria-valuetext"));
  const table = document.querySelector("table.sortable");
  const sorted = (column) => {
    table.tHead.rows[0].cells[column].querySelector("button").click();
    return [...table.tBodies[0].rows].map((row) => row.cells[0].textContent.trim().slice(-1)).join("");
  };
  found.push(sorted(0), sorted(0), sorted(1), sorted(1), table.tHead.rows[0].cells[1].getAttribute("aria-sort"));
  document.querySelector("button[data-open=all]").click();
  found.push(document.querySelectorAll("details.case[open]").length);
  document.querySelector("button[data-open=none]").click();
  location.hash = "case-4";
  addEventListener("hashchange", () => {
    found.push([...document.querySelectorAll("details.case[open]")].map((item) => item.id).join());
    const broken = [...document.images].filter((image) => image.complete && image.naturalWidth === 0).length;
    document.body.dataset.found = JSON.stringify([...found, broken]);
  });
});
</script>
"""


def browse(path: Path, profile: Path) -> tuple[str, list[str]]:
    """The page's elements after its scripts have run, and what the browser's console said."""
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0"]
    command += ["--virtual-time-budget=5000", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not on the PATH")
def test_slices_scroll_in_a_browser_without_a_word_on_its_console(page: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page + PROBE, encoding="utf-8")
    shown, console = browse(tmp_path / "page.html", tmp_path / "profile")
    assert console == []
    found = json.loads(Reader(shown).all("body")[0]["data-found"] or "[]")
    labels = [a["data-label"] for a in Reader(page).all("img") if (a["alt"] or "").startswith("Case head_05, axial")]
    start = next(n for n, a in enumerate(labels) if a == found[2])
    by_mae = "".join(name[-1] for name, _ in sorted(OFFSETS.items(), key=lambda case: abs(case[1])))
    orders = ["12345", "54321", by_mae, by_mae[::-1], "descending"]
    assert found == [str(start), str(start), labels[start], "2", labels[2], labels[2], *orders, 5, "case-4", 0]
    # The check itself can fail: what a page complains of is seen, and the page's own policy stops what is not its own.
    (tmp_path / "bad.html").write_text(page + '<img src="nothing.png" alt="">', encoding="utf-8")
    assert any("Content Security Policy" in line for line in browse(tmp_path / "bad.html", tmp_path / "other")[1])
