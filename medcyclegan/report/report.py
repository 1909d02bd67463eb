"""The report of an evaluation or of a training: read what it left, open its volumes one case at a time, write one page.

Numbers are those of the evaluation; nothing is graded again. What the volumes add are pictures, the joint histogram and
the Bland-Altman plot.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medcyclegan.atomic import atomic_file
from medcyclegan.errors import InputError
from medcyclegan.evaluation.summary import CASES_FILE, SUMMARY_FILE
from medcyclegan.progress import Progress, Silent
from medcyclegan.report.display import CT_WINDOW
from medcyclegan.report.evaluation_page import evaluation_page
from medcyclegan.report.page import Table, render
from medcyclegan.report.pictures import draw_pictures
from medcyclegan.report.results import Results, holds_results, read_results
from medcyclegan.report.training_page import training_page
from medcyclegan.report.training_run import CURVES_FILE, holds_run, read_run
from medcyclegan.report.volumes import TRUST_SUFFIXES, VolumeFolder, require_any

_SUFFIXES = (".html", ".htm")
_SILENT = Silent()

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        path: the page.
        size: bytes.
        not_shown: case to why there is no picture of it.
    """

    path: Path
    size: int
    not_shown: Mapping[str, str]


def write_report(
    results: StrPath,
    output: StrPath,
    *,
    source: StrPath | None = None,
    trust: StrPath | None = None,
    window: tuple[float, float] = CT_WINDOW,
    title: str | None = None,
    facts: Mapping[str, str] | None = None,
    baselines: Table | None = None,
    run: StrPath | None = None,
    progress: Progress = _SILENT,
) -> Report:
    """Write the page, atomically; one case is in memory at a time.

    Args:
        results: the folder of an evaluation (cases.csv and summary.json), or of a training (metrics.csv).
        output: the .html file; replaced if it exists.
        source: folder of the MR volumes, named as the cases; of an evaluation only.
        trust: folder of the trust maps, named as the cases, or with `_combined`, `_trust`, `_spread` or `_uncertainty`
            behind; of an evaluation only.
        window: HU shown black and white.
        title: heading of the page.
        facts: name to value: data, model, settings; shown before those of the results.
        baselines: the scores of trivial methods, to compare with.
        run: the folder of the training that made the model, shown at the end; of an evaluation only.
        progress: shows the cases as they are done.

    Returns:
        Where it is, how large it is, and which cases could not be shown.

    Raises:
        InputError: `results` is neither, or damaged; a folder holds no volume of any case; the window is empty; the
            output is no .html file.
    """
    folder, target = Path(results), Path(output)
    _check_target(target)
    if not (math.isfinite(window[0]) and math.isfinite(window[1]) and window[0] < window[1]):
        raise InputError(
            f"The window {window[0]:g} to {window[1]:g} HU is empty.", "Give LOW HIGH with LOW below HIGH."
        )
    kind = _kind(folder)
    not_shown: Mapping[str, str] = {}
    if kind == "training":
        if source is not None or trust is not None or run is not None:
            raise InputError(
                f"{folder} is a training; its report takes no source, trust maps or run.",
                "Leave them out, or give the folder of an evaluation.",
            )
        page = training_page(read_run(folder), title, facts or {})
    else:
        found = read_results(folder)
        pictures = draw_pictures(
            found,
            _companions(found, source, "MR"),
            _companions(found, trust, "trust map", TRUST_SUFFIXES),
            window,
            progress,
        )
        not_shown = pictures.not_shown
        training = None if run is None else read_run(Path(run))
        page = evaluation_page(found, pictures, title, facts or {}, baselines, training)
    text = render(page)
    with atomic_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Report(target, target.stat().st_size, not_shown)


def _check_target(target: Path) -> None:
    if target.is_dir():
        raise InputError(f"The output {target} is a folder.", "Give a file such as report.html.")
    if target.suffix.lower() not in _SUFFIXES:
        raise InputError(f"The output {target} is no HTML file.", "Give a name that ends with .html.")


def _kind(folder: Path) -> str:
    if not folder.exists():
        raise InputError(f"There is no {folder}.", "Give the folder of an evaluation or of a training.")
    found = [name for name, holds in (("evaluation", holds_results), ("training", holds_run)) if holds(folder)]
    if len(found) == 1:
        return found[0]
    wanted = f"an evaluation holds {CASES_FILE} and {SUMMARY_FILE}, a training holds {CURVES_FILE}"
    if found:
        raise InputError(f"{folder} holds both an evaluation and a training ({wanted}).", "Move one of them.")
    raise InputError(
        f"{folder} holds neither the results of an evaluation nor a training: {wanted}.",
        "Give the folder after -o of 'medcyclegan evaluate' or 'medcyclegan train'.",
    )


def _companions(
    results: Results, folder: StrPath | None, kind: str, suffixes: tuple[str, ...] = ()
) -> VolumeFolder | None:
    if folder is None:
        return None
    volumes = VolumeFolder(Path(folder), kind, suffixes)
    require_any(volumes, [case.name for case in results.cases])
    return volumes
