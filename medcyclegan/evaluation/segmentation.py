"""Organs segmented in the synthetic CT against organs segmented in the reference: Dice and HD95 of two label maps.

A *label map* holds 0 for background and a positive whole number per class, numbered as TotalSegmentator v2's task
"total" does. The *region* of a patient (AB abdomen, TH thorax, HN head and neck) decides which classes SynthRAD2025
counts; there it is the second and third letter of a patient's id, as in 1ABA001.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medcyclegan.errors import InputError
from medcyclegan.evaluation.metrics.score import Score, undefined
from medcyclegan.evaluation.metrics.surfaces import Agreement, Matrix, agreement

Labels = npt.NDArray[np.int32]

_BODY_CLASSES = frozenset((2, 3, 5, 6, *range(10, 15), *range(26, 52), 79, *range(92, 117)))
_HEAD_CLASSES = frozenset((*range(15, 18), *range(26, 51), 79, 90, 91))
REGIONS: dict[str, frozenset[int]] = {"AB": _BODY_CLASSES, "TH": _BODY_CLASSES, "HN": _HEAD_CLASSES}
LABEL_METRICS = ("dice", "hd95", "classes_found")
_PROGRAM = "TotalSegmentator"


@dataclass(frozen=True)
class LabelScores:
    """The agreement of two label maps.

    Attributes:
        dice: mean over the counted classes of the reference; a class that the prediction misses counts 0.
        hd95: mean over the classes that both have, mm.
        classes_found: share of the reference's counted classes that the prediction has, [0, 1].
        classes: class to its own agreement.
        notes: how to read the means.
    """

    dice: Score
    hd95: Score
    classes_found: Score
    classes: Mapping[int, Agreement]
    notes: tuple[str, ...] = ()

    @property
    def scores(self) -> dict[str, Score]:
        """The three means by the names of `LABEL_METRICS`."""
        return {"dice": self.dice, "hd95": self.hd95, "classes_found": self.classes_found}


def region_of(case: str) -> str | None:
    """The region in a SynthRAD2025 patient id (1ABA001: AB); None if `case` is none."""
    match = re.fullmatch(r"[12](AB|TH|HN)[A-E]\d{3}", case)
    return match[1] if match else None


def label_scores(
    reference: Labels, found: Labels, axes: Matrix, *, region: str | None, as_organizers: bool = False
) -> LabelScores:
    """Compare two label maps class by class.

    Args:
        reference: (X, Y, Z) whole numbers, 0 for background.
        found: (X, Y, Z), the same of the prediction.
        axes: (3, 3) mm, as for `medcyclegan.evaluation.metrics.surfaces.agreement`.
        region: "AB", "TH" or "HN" counts that region's classes (SynthRAD2025); None counts all.
        as_organizers: give 0, as SynthRAD2025 does, for a mean over no class; else nan with the reason.

    Raises:
        ValueError: the shapes differ, or there is no such region.
    """
    if reference.shape != found.shape:
        raise ValueError(f"two label maps of one shape are needed, got {reference.shape} and {found.shape}")
    if region is not None and region not in REGIONS:
        raise ValueError(f"a region is one of {', '.join(REGIONS)} or None, got {region!r}")
    boxes, boxes_found = ndimage.find_objects(reference), ndimage.find_objects(found)
    counted = None if region is None else REGIONS[region]
    classes = {}
    for label, box in enumerate(boxes, start=1):
        if box is None or (counted is not None and label not in counted):
            continue
        other = boxes_found[label - 1] if label <= len(boxes_found) else None
        window = (
            box
            if other is None
            else tuple(slice(min(s.start, o.start), max(s.stop, o.stop)) for s, o in zip(box, other, strict=True))
        )
        classes[label] = agreement(reference[window] == label, found[window] == label, axes)
    if not classes:
        reason = "the reference has none of the classes that count"
        if as_organizers:
            return LabelScores(Score(0.0), Score(0.0), undefined(reason), classes, (f"dice, hd95: 0 because {reason}",))
        return LabelScores(undefined(reason), undefined(reason), undefined(reason), classes)
    missed = [label for label, value in classes.items() if math.isnan(value.hd95.value)]
    both = [value.hd95.value for label, value in classes.items() if label not in missed]
    notes: tuple[str, ...] = ()
    if missed:
        notes = (f"hd95 leaves out {len(missed)} class(es) that the prediction misses: {', '.join(map(str, missed))}",)
    none_found = "the prediction has none of the classes of the reference"
    if both:
        hd95 = Score(float(np.mean(both)))
    elif as_organizers:
        hd95, notes = Score(0.0), (*notes, f"hd95: 0 because {none_found}")
    else:
        hd95 = undefined(none_found)
    dice = Score(float(np.mean([value.dice.value for value in classes.values()])))
    return LabelScores(dice, hd95, Score(len(both) / len(classes)), classes, notes)


def check_installed() -> str:
    """The path of the TotalSegmentator program.

    Raises:
        InputError: it is not installed.
    """
    program = shutil.which(_PROGRAM)
    if program is None:
        raise InputError(
            f"--segment runs {_PROGRAM}, which is not installed here.",
            "Install it (pip install TotalSegmentator; its weights are downloaded on first use), or give label maps "
            "that you have with --pred-labels and --ref-labels.",
        )
    return program


def segment(volume: Path, output: Path) -> None:
    """Run TotalSegmentator's task "total" on one CT and write its label map.

    Args:
        volume: a NIfTI file in HU.
        output: a .nii.gz file to write.

    Raises:
        InputError: it is not installed, or it failed; the end of its own message is given.
    """
    program = check_installed()
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [program, "-i", str(volume), "-o", str(output), "--ml", "--task", "total"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not output.exists():
        reason = (done.stderr or done.stdout).strip()[-500:]
        raise InputError(f"{_PROGRAM} failed on {volume} (exit code {done.returncode}): {reason}")
