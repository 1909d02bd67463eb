"""Scoring synthetic CTs against reference CTs: pair the files, score each case, write tables and a summary.

It scores any sCT, however it was made. Nothing is resampled or moved unless requested:
a prediction must lie on the reference's grid, or its case fails by name.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from medcyclegan.atomic import is_temporary, sweep
from medcyclegan.errors import InputError
from medcyclegan.evaluation import segmentation
from medcyclegan.evaluation.case import Case, grade
from medcyclegan.evaluation.pairing import CaseFiles, Pairing, find_cases
from medcyclegan.evaluation.scoring import Scoring
from medcyclegan.evaluation.summary import (
    ANGLES_FILE,
    CASES_FILE,
    CLASSES_FILE,
    SUMMARY_FILE,
    Evaluation,
    summarize,
    write,
)
from medcyclegan.io.reader import grid_of, read_volume
from medcyclegan.io.writer import write_volume
from medcyclegan.machine import cores
from medcyclegan.process_pool import ProcessPool
from medcyclegan.progress import Progress, Silent

RANGE_MAPS, SEGMENTATIONS = "range_error", "segmentations"
_OURS = (CASES_FILE, SUMMARY_FILE, ANGLES_FILE, CLASSES_FILE, RANGE_MAPS, SEGMENTATIONS)
_SILENT = Silent()

StrPath = str | os.PathLike[str]


def evaluate(
    pred: StrPath,
    ref: StrPath,
    output: StrPath | None = None,
    *,
    masks: StrPath | None = None,
    scoring: Scoring | None = None,
    workers: int = 1,
    progress: Progress = _SILENT,
) -> Evaluation:
    """Score every prediction against its reference.

    Files are paired by case id (see `medcyclegan.evaluation.pairing`) before anything is read; two single files are
    paired as they are. For label maps, targets, patterns of names or a table of pairs, pair them with `find_cases` and
    call `evaluate_pairs`.

    Args:
        pred: synthetic CTs in HU, a folder or one file.
        ref: reference CTs in HU, a folder or one file; a folder may be in the SynthRAD layout, whose masks are used.
        output, scoring, workers, progress: as for `evaluate_pairs`.
        masks: one mask per reference, a folder or one file; None takes the body of each reference.

    Raises:
        InputError: as `find_cases` and `evaluate_pairs`.
    """
    pairing = find_cases({"pred": pred, "ref": ref, "mask": masks})
    return evaluate_pairs(pairing, output, scoring, workers=workers, progress=progress)


def evaluate_pairs(
    pairing: Pairing,
    output: StrPath | None = None,
    scoring: Scoring | None = None,
    *,
    workers: int = 1,
    progress: Progress = _SILENT,
) -> Evaluation:
    """Score every case of a pairing. One that cannot be scored is recorded in `failed` and does not stop the others.

    Args:
        pairing: what is compared, from `find_cases`.
        output: folder for cases.csv, summary.json and more; None writes nothing. It may exist if it is empty or holds
            only an earlier evaluation, which is then replaced.
        scoring: how it is scored; None: `Scoring()`.
        workers: processes that grade side by side; 0: one per core. With more than one, a script needs the usual
            `if __name__ == "__main__":`.
        progress: shows the cases as they are done.

    Returns:
        Scores, failures and summary.

    Raises:
        InputError: maps or segmentations without what they need, or other content in the output.
    """
    scoring = scoring or Scoring()
    folder = None if output is None else Path(output)
    pool = ProcessPool(workers or cores(), progress)
    maps = None
    if (scoring.range_maps or scoring.segment) and folder is None:
        raise InputError("Maps of range errors and segmentations are files: give an output folder.")
    if scoring.segment:
        segmentation.check_installed()
        if any(files.pred_labels is not None for files in pairing.cases.values()):
            raise InputError("Label maps are either given or made with --segment, not both.")
    if scoring.range_maps and any(files.target is None for files in pairing.cases.values()):
        raise InputError("Maps of range errors are made of targets: give --targets.")
    if folder is not None:
        # Checked first: an unusable folder must not cost the user the whole evaluation.
        _open(folder)
        maps = folder / RANGE_MAPS if scoring.range_maps else None
        if scoring.segment:
            pairing = _segmented(pairing, folder / SEGMENTATIONS, progress)
    tasks = {name: (name, files, scoring, maps) for name, files in pairing.cases.items()}
    with pool:
        graded = dict(pool.each(_attempt, tasks, "Evaluating"))
    # Processes finish in any order; tables keep that of the references.
    outcomes = {name: graded[name] for name in pairing.cases}
    cases = {name: case for name, case in outcomes.items() if isinstance(case, Case)}
    failed = {name: str(error) for name, error in outcomes.items() if isinstance(error, InputError)}
    result = Evaluation(scoring, cases, failed, summarize(scoring, pairing, cases, failed), pairing.missing)
    if folder is not None:
        write(folder, result)
    return result


def _open(folder: Path) -> None:
    """Make the output folder, or refuse what it holds; maps and label maps of an earlier evaluation are removed."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"The output {folder} is a file.", "Give a folder.")
    if folder.is_dir():
        foreign = sorted(e.name for e in folder.iterdir() if e.name not in _OURS and not is_temporary(e))
        if foreign:
            listed = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
            raise InputError(
                f"The output folder {folder} holds something other than an earlier evaluation: {listed}.",
                "Give a new or an empty folder.",
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"Nothing can be written to the output folder {folder} ({error}).", "Give another.") from error
    sweep(folder)
    for earlier in (RANGE_MAPS, SEGMENTATIONS):  # they would seem to be of this one
        shutil.rmtree(folder / earlier, ignore_errors=True)


def _segmented(pairing: Pairing, folder: Path, progress: Progress) -> Pairing:
    """With the label maps that TotalSegmentator makes of every prediction and reference."""
    cases = {}
    for name, files in progress.track(pairing.cases.items(), len(pairing.cases), "Segmenting"):
        made = {}
        for role, volume in (("pred_labels", files.pred), ("ref_labels", files.ref)):
            made[role] = folder / role / f"{name}.nii.gz"
            if volume.name.lower().endswith((".nii", ".nii.gz")):
                segmentation.segment(volume, made[role])
                continue
            with tempfile.TemporaryDirectory() as scratch:
                copy = Path(scratch) / "ct.nii.gz"
                read = read_volume(volume)
                write_volume(copy, read.numpy()[0], grid_of(read))
                segmentation.segment(copy, made[role])
        cases[name] = replace(files, **made)
    return replace(pairing, cases=cases)


def _attempt(name: str, files: CaseFiles, scoring: Scoring, maps: Path | None) -> Case:
    try:
        return grade(name, files, scoring, maps)
    except (InputError, MemoryError):
        raise
    # A damaged file can make a reader raise anything; it must fail this case only, and be reported.
    except Exception as error:
        raise InputError(f"{type(error).__name__}: {error}") from error
