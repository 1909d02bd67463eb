"""The report of an evaluation or of a training: read its folder, open its volumes one case at a time, write one page.

The scores are those of the evaluation; nothing is scored again. The volumes add pictures, the joint histogram, the
Bland-Altman plot and the baselines.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medcyclegan.atomic import atomic_file
from medcyclegan.errors import InputError
from medcyclegan.evaluation.results import holds_results, read_results
from medcyclegan.evaluation.summary import CASES_FILE, SUMMARY_FILE
from medcyclegan.progress import Progress, Silent
from medcyclegan.report.baselines import Baselines
from medcyclegan.report.display import CT_WINDOW
from medcyclegan.report.evaluation_page import evaluation_page
from medcyclegan.report.page import About, render
from medcyclegan.report.pictures import draw_pictures
from medcyclegan.report.training_page import training_page
from medcyclegan.report.training_run import CURVES_FILE, holds_run, read_run
from medcyclegan.report.volumes import UNCERTAINTY_SUFFIXES, VolumeFolder

__all__ = ["About", "Report", "write_report"]

_SUFFIXES = (".html", ".htm")
_SILENT, _NOTHING = Silent(), About()

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        path: the page.
        size: bytes.
        not_shown: case to why there is no picture of it.
        baselines: scores of the baselines, over the cases whose volumes could be opened.
    """

    path: Path
    size: int
    not_shown: Mapping[str, str]
    baselines: Baselines


def write_report(
    results: StrPath,
    output: StrPath,
    *,
    source: StrPath | None = None,
    uncertainty: StrPath | None = None,
    window: tuple[float, float] = CT_WINDOW,
    about: About = _NOTHING,
    progress: Progress = _SILENT,
) -> Report:
    """Write the page, atomically; one case is in memory at a time.

    Args:
        results: the folder of an evaluation (cases.csv and summary.json), or of a training (metrics.csv).
        output: the .html file; replaced if it exists.
        source: folder of the MR volumes, named as the cases; None takes those that the evaluation recorded.
        uncertainty: folder of uncertainty maps, named as the cases, or with `_combined`, `_uncertainty` or `_spread`
            behind; of an evaluation only.
        window: HU shown black and white.
        about: title and facts besides the results.
        progress: shows the cases as they are done.

    Returns:
        Where it is, how large it is, and which cases could not be shown.

    Raises:
        InputError: `results` is neither, or damaged; a folder holds no volume of any case; the window is empty; the
            output is no .html file.
    """
    folder, target = Path(results), Path(output)
    _check_target(target)
    if not (all(map(math.isfinite, window)) and window[0] < window[1]):
        raise InputError(
            f"The window {window[0]:g} to {window[1]:g} HU is empty.", "Give LOW HIGH with LOW below HIGH."
        )
    not_shown: Mapping[str, str] = {}
    baselines = Baselines(None)
    if _is_training(folder):
        if source is not None or uncertainty is not None or about.run is not None:
            raise InputError(
                f"{folder} is a training; its report takes no source, uncertainty maps or run.",
                "Leave them out, or give the folder of an evaluation.",
            )
        page = training_page(read_run(folder), about)
    else:
        found = read_results(folder)
        names = [case.name for case in found.cases]
        mr = None if source is None else VolumeFolder(Path(source), "MR", names)
        maps = (
            None
            if uncertainty is None
            else VolumeFolder(Path(uncertainty), "uncertainty map", names, UNCERTAINTY_SUFFIXES)
        )
        pictures = draw_pictures(found, mr, maps, window, progress)
        not_shown, baselines = pictures.not_shown, pictures.baselines
        page = evaluation_page(found, pictures, about)
    text = render(page)
    with atomic_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Report(target, target.stat().st_size, not_shown, baselines)


def _check_target(target: Path) -> None:
    if target.is_dir():
        raise InputError(f"The output {target} is a folder.", "Give a file such as report.html.")
    if target.suffix.lower() not in _SUFFIXES:
        raise InputError(f"The output {target} is no HTML file.", "Give a name that ends with .html.")


def _is_training(folder: Path) -> bool:
    """True for a training, False for an evaluation."""
    if not folder.exists():
        raise InputError(f"There is no {folder}.", "Give the folder of an evaluation or of a training.")
    evaluation, training = holds_results(folder), holds_run(folder)
    wanted = f"an evaluation holds {CASES_FILE} and {SUMMARY_FILE}, a training holds {CURVES_FILE}"
    if evaluation and training:
        raise InputError(f"{folder} holds both an evaluation and a training ({wanted}).", "Move one of them.")
    if not evaluation and not training:
        raise InputError(
            f"{folder} holds neither the results of an evaluation nor a training: {wanted}.",
            "Give the folder after -o of 'medcyclegan evaluate' or 'medcyclegan train'.",
        )
    return training
