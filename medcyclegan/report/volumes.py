"""The volumes of one case of an evaluation on the grid of its reference, with notes of everything doubtful.

A missing or mismatching volume is left out with a note; it never stops a report. Messages name
files, not folders, since a report is passed on.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from medcyclegan.errors import InputError
from medcyclegan.evaluation.pairing import CaseFiles, pair
from medcyclegan.evaluation.results import Case
from medcyclegan.io.grid import SAME_MM, Grid, reordered
from medcyclegan.io.reader import grid_of, list_volumes, read_mask, read_volume
from medcyclegan.report.display import Inside
from medcyclegan.transforms.body import body_mask
from medcyclegan.transforms.geometry import resample

Array = npt.NDArray[np.float32]
T = TypeVar("T")

# How uncertainty maps may be named, <case>_combined and so on; of several kinds in a folder, the first is shown.
UNCERTAINTY_SUFFIXES = ("_combined", "_uncertainty", "_spread")
# Of the MAE: a table written with fewer digits is no contradiction.
_TOLERANCE_HU, _TOLERANCE_PART = 0.01, 1e-3


@dataclass(frozen=True)
class CaseVolumes:
    """One case.

    Attributes:
        grid: the reference's.
        ct: (X, Y, Z), HU.
        sct: (X, Y, Z), HU.
        inside: (X, Y, Z), the mask, or the reference's body where there is none.
        mr: (X, Y, Z), any unit; None where there is none.
        uncertainty: (X, Y, Z), as given; None where there is none.
        notes: what was resampled, what is missing and why, and what contradicts the table.
    """

    grid: Grid
    ct: Array
    sct: Array
    inside: Inside
    mr: Array | None = None
    uncertainty: Array | None = None
    notes: tuple[str, ...] = ()


class VolumeFolder:
    """A folder with one volume per case.

    Args:
        folder: holds the volumes.
        kind: what they are, in the singular, for messages.
        cases: names of the cases; a folder with a volume of none of them is the wrong one.
        suffixes: endings that mark the right files if the folder holds others too; they are not part of the case's
            name. The first one that any file has is used.

    Attributes:
        suffix: the ending in use; empty if no file has one.

    Raises:
        InputError: the folder is missing, or holds no volume of any case.
    """

    def __init__(self, folder: Path, kind: str, cases: Sequence[str], suffixes: tuple[str, ...] = ()) -> None:
        self.kind = kind
        files = list_volumes(folder)
        self.suffix = next((end for end in suffixes if any(name.endswith(end) for name in files)), "")
        self.files = {
            name.removesuffix(self.suffix): path for name, path in files.items() if name.endswith(self.suffix)
        }
        if not any(self._name(case) for case in cases):
            raise InputError(
                f"{folder} holds no {kind} for any case; it holds {_first(self.files)}, the cases are {_first(cases)}.",
                "Give the folder whose files have the names of the cases.",
            )

    def _name(self, case: str) -> str | None:
        try:
            return pair([case], self.files, self.kind, spare_allowed=True)[case]
        except InputError:
            return None

    def find(self, case: str) -> Path:
        """The volume of a case.

        Raises:
            InputError: there is none, or more than one.
        """
        name = self._name(case)
        if name is None:
            raise InputError(f"no {self.kind}, or more than one, has the name of the case")
        return self.files[name]


def open_case(
    case: Case, files: CaseFiles | None, *, source: VolumeFolder | None = None, uncertainty: VolumeFolder | None = None
) -> CaseVolumes:
    """Open everything there is of a case; MR and uncertainty map are brought onto the reference's grid.

    Raises:
        InputError: the synthetic CT, the reference or the mask cannot be opened, or they lie on different grids.
    """
    if files is None:
        raise InputError("the evaluation did not record where the volumes are")
    ct, grid = _read(files.ref)
    sct, sct_grid = _read(files.pred)
    turned = reordered(sct, sct_grid, grid)
    if turned is None:
        raise InputError(
            f"{files.pred.name} lies on another grid than {files.ref.name}; what was graded was resampled or moved "
            "first, and is not kept"
        )
    sct = np.ascontiguousarray(turned)
    inside = (
        body_mask(ct, grid.spacing.tolist(), "CT")
        if files.mask is None
        else _opened(files.mask, lambda path: read_mask(path, grid))
    )
    notes = list(_contradiction(case, ct, sct, inside))
    mr, words = _companion("MR", case.name, source, files.source, grid)
    notes += words
    uncertain, words = _companion("uncertainty map", case.name, uncertainty, None, grid)
    notes += words
    return CaseVolumes(grid, ct, sct, inside, mr, uncertain, tuple(notes))


def _opened(path: Path, read: Callable[[Path], T]) -> T:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the evaluation has recorded them as notes
            return read(path)
    except InputError as error:
        raise InputError(_without_folders(error, path)) from error
    # A damaged file can make a reader raise anything at all; it must cost this picture only, and be seen.
    except Exception as error:
        raise InputError(f"{path.name} cannot be read ({type(error).__name__})") from error


def _read(path: Path) -> tuple[Array, Grid]:
    volume = _opened(path, read_volume)
    array: Array = volume.numpy()[0]
    return array, grid_of(volume)


def _companion(
    kind: str, case: str, folder: VolumeFolder | None, recorded: Path | None, grid: Grid
) -> tuple[Array | None, list[str]]:
    """A volume that is only shown: from the folder if one is given, else where the evaluation said."""
    if folder is None and recorded is None:
        return None, []
    try:
        path = folder.find(case) if folder is not None else recorded
        assert path is not None
        array, own = _read(path)
    except InputError as error:
        return None, [f"The {kind} is not shown: {error}."]
    if own.matches(grid, SAME_MM):
        return array, []
    moved = resample(array, own, grid, fill=math.nan, mode="linear", antialias=False)
    if not np.isfinite(moved).any():
        return None, [f"The {kind} is not shown: {path.name} lies elsewhere in space than the reference."]
    return moved, [f"The {kind} lay on another grid and was interpolated (linear) onto the reference's, to be shown."]


def _contradiction(case: Case, ct: Array, sct: Array, inside: Inside) -> list[str]:
    """Check that the volumes shown are those that were scored."""
    recorded = case.scores.get("mae", math.nan)
    if not math.isfinite(recorded) or not inside.any():
        return []
    found = float(np.abs(sct[inside].astype(np.float64) - ct[inside]).mean())
    if abs(found - recorded) <= _TOLERANCE_HU + _TOLERANCE_PART * recorded:
        return []
    return [
        f"The volumes shown have a MAE of {found:.1f} HU in the mask, the table of scores says {recorded:.1f} HU: the "
        "files have changed since they were graded, or they were registered or resampled for it."
    ]


def _without_folders(error: InputError, path: Path) -> str:
    return str(error).replace(str(path), path.name).replace(f"{path.parent}/", "").rstrip(".")


def _first(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
