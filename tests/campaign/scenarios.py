"""Verbs that write, each on the small cohort of `workplace`; what is left unwritten has its reason in `SILENT`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from campaign.workplace import sets, workplace

Words = list[str | Path]


@dataclass(frozen=True)
class Scenario:
    """`words(out)` is the command whose results all lie in the folder `out`; `again(out)` what completes it."""

    verb: str
    words: Callable[[Path], Words]
    again: Callable[[Path], Words] | None = None


def _base(*parts: str) -> Path:
    return workplace().joinpath(*parts)


def _prepare(out: Path) -> Words:
    train = _base("phantoms", "train")
    pairs = ["--pairs", _base("pairs.csv"), "--workers", "1"]
    return ["prepare", "--a", train / "mr", "--b", train / "ct", "-o", out / "prepared", *pairs]


def _train(out: Path) -> Words:
    return ["train", "-o", out / "run", "--device", "cpu", *sets(f"data.source={_base('prepared')}")]


def _convert(out: Path, *more: str) -> Words:
    return ["convert", _base("run"), _base("phantoms", "train", "mr"), "-o", out / "sct", "--device", "cpu", *more]


def _conversion(*more: str) -> Scenario:
    return Scenario("convert", lambda out: _convert(out, *more), lambda out: _convert(out, *more, "--resume"))


def _evaluate(out: Path) -> Words:
    return ["evaluate", _base("sct"), _base("phantoms", "test", "ct"), "-o", out / "scores", "--workers", "1"]


SCENARIOS = {
    "datalist": Scenario("datalist", lambda out: ["datalist", _base("cohort.csv"), "-o", out / "cohort.json"]),
    "prepare": Scenario("prepare", _prepare),
    "plan": Scenario(
        "plan",
        lambda out: ["plan", *_prepare(out)[1:5], "-o", out / "plan.yaml", "--gpu-memory", "24", "--device", "cpu"],
    ),
    "train": Scenario("train", _train, lambda out: ["train", "--resume", out / "run", "--device", "cpu"]),
    "convert": _conversion(),
    "convert-uncertainty": _conversion("--uncertainty"),
    **{f"convert-{name}": _conversion("--format", name) for name in ("dicom", "mha", "nrrd")},
    "evaluate": Scenario("evaluate", _evaluate),
    "report": Scenario("report", lambda out: ["report", _base("scores"), "-o", out / "report.html"]),
    "report-run": Scenario("report", lambda out: ["report", _base("run"), "-o", out / "report.html"]),
    "compare": Scenario("compare", lambda out: ["compare", _base("scores"), _base("scores2"), "-o", out / "tables"]),
    "export": Scenario("export", lambda out: ["export", _base("run"), "-o", out / "bundle"]),
    "export-slicer": Scenario("export", lambda out: ["export", _base("run"), "-o", out / "ext", "--format", "slicer"]),
    "inspect": Scenario(
        "inspect", lambda out: ["inspect", _base("phantoms", "train"), "-o", out / "page.html", "--workers", "1"]
    ),
}
SILENT = {
    "demo": "it is made of prepare, train, convert, evaluate and report, and takes minutes",
    "benchmark": "it writes nothing",
    "list": "it writes nothing",
    "import-weights": "it writes one checkpoint, in the way that train does",
}
