"""Reads the folder of an evaluation: the scores of every case, their statistics, and where the volumes are.

Everything but the case names is optional: what is absent is None, so that a report can say so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcyclegan.documents import read_json, read_table
from medcyclegan.errors import InputError
from medcyclegan.evaluation.pairing import CaseFiles
from medcyclegan.evaluation.summary import CASES_FILE, SUMMARY_FILE

STATISTICS = ("n", "mean", "sd", "median", "q1", "q3", "ci_low", "ci_high")
_FAILED = "failed:"


@dataclass(frozen=True)
class Case:
    """One line of the table of scores.

    Attributes:
        name: as the user named it.
        scores: column to value; nan where undefined.
        voxels: how many were graded; None where that was not recorded.
        notes: the evaluation's notes on it; the reason, if it failed.
        failed: True if it could not be scored.
    """

    name: str
    scores: Mapping[str, float]
    voxels: int | None = None
    notes: str = ""
    failed: bool = False


@dataclass(frozen=True)
class Results:
    """An evaluation.

    Attributes:
        folder: where it was read from.
        columns: names of the scores: those of the summary first, in its order, then any other column of numbers.
        cases: in the order of the table.
        statistics: score -> {n, mean, sd, median, q1, q3, ci_low, ci_high}; None for what is not recorded.
        reasons: score -> why its mean is no number.
        no_interval: why a score has no interval; empty if all have one, or no reason is recorded.
        files: case -> its volumes; without the cases whose volumes were not recorded.
        summary: all that summary.json holds.
    """

    folder: Path
    columns: tuple[str, ...]
    cases: tuple[Case, ...]
    statistics: Mapping[str, Mapping[str, float | None]]
    reasons: Mapping[str, str]
    no_interval: str
    files: Mapping[str, CaseFiles]
    summary: Mapping[str, Any]

    @property
    def scored(self) -> tuple[Case, ...]:
        """The cases that did not fail."""
        return tuple(case for case in self.cases if not case.failed)

    @property
    def order_by(self) -> str | None:
        """The score by which cases are sorted: the MAE, else the first; None if there is no score."""
        return "mae" if "mae" in self.columns else next(iter(self.columns), None)


def holds_results(folder: Path) -> bool:
    """True if the folder looks like that of an evaluation."""
    return (folder / CASES_FILE).is_file() and (folder / SUMMARY_FILE).is_file()


def read_results(folder: Path) -> Results:
    """Read the folder of an evaluation.

    Raises:
        InputError: a file is missing, damaged, or holds no case.
    """
    if lacking := [name for name in (SUMMARY_FILE, CASES_FILE) if not (folder / name).is_file()]:
        raise InputError(f"There is no {folder / lacking[0]}.", "Give the folder that 'medcyclegan evaluate' wrote.")
    summary = read_json(folder / SUMMARY_FILE, f"summary {folder / SUMMARY_FILE}")
    if not isinstance(summary, dict):
        raise InputError(f"{folder / SUMMARY_FILE} holds no summary of an evaluation.", "Evaluate again.")
    metrics = {name: _dictionary(entry) for name, entry in _dictionary(summary.get("metrics")).items()}
    rows, fields = _read_rows(folder / CASES_FILE)
    numeric = [name for name in fields if name not in ("case", "voxels") and _all_numbers(rows, name)]
    if damaged := [name for name in metrics if name in fields and name not in numeric and any(r[name] for r in rows)]:
        raise InputError(f"{folder / CASES_FILE}: {', '.join(damaged)} must be numbers.", "Evaluate again.")
    columns = (*(name for name in metrics if name in numeric), *(name for name in numeric if name not in metrics))
    failed = summary.get("failed")
    failures = {
        str(entry["case"]): str(entry.get("reason", ""))
        for entry in (failed if isinstance(failed, list) else ())
        if "case" in _dictionary(entry)
    }
    cases = tuple(_case(row, columns, failures) for row in rows)
    known = [case.name for case in cases]
    if twins := sorted({name for name in known if known.count(name) > 1}):
        raise InputError(f"{folder / CASES_FILE} holds more than one line for {twins}.", "Evaluate again.")
    cases += tuple(Case(name, {}, None, why, True) for name, why in failures.items() if name not in known)
    reasons = {name: _dictionary(metrics[name].get("reasons")) for name in columns if name in metrics}
    return Results(
        folder=folder,
        columns=columns,
        cases=cases,
        statistics={name: {key: _float(metrics[name].get(key)) for key in STATISTICS} for name in reasons},
        reasons={name: str(found["mean"]) for name, found in reasons.items() if found.get("mean")},
        no_interval=next((str(found["ci_low"]) for found in reasons.values() if found.get("ci_low")), ""),
        files={name: found for name, entry in _dictionary(summary.get("files")).items() if (found := _files(entry))},
        summary=summary,
    )


def _read_rows(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    fields, rows = read_table(path, f"table {path}")
    if "case" not in fields:
        raise InputError(f"{path} has no column 'case'; its columns are {fields}.", "Evaluate again.")
    if not rows:
        raise InputError(f"{path} holds no case.", "Evaluate at least one case.")
    return rows, fields


def _all_numbers(rows: list[dict[str, str]], name: str) -> bool:
    """True if every cell that is filled is a number, and one is."""
    cells = [row[name] for row in rows if row[name]]
    return bool(cells) and all(_number(cell) is not None for cell in cells)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _case(row: Mapping[str, str], columns: tuple[str, ...], failures: Mapping[str, str]) -> Case:
    name, notes, voxels = row["case"], row.get("notes", ""), row.get("voxels", "")
    failed = name in failures or notes.startswith(_FAILED)
    why = failures.get(name) or notes.removeprefix(_FAILED).strip()
    scores = {column: float(row[column]) if row[column] else math.nan for column in columns}
    return Case(name, scores, int(voxels) if voxels.isdigit() else None, why if failed else notes, failed)


def _float(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _files(entry: Any) -> CaseFiles | None:
    paths = {role: Path(value) for role, value in _dictionary(entry).items() if isinstance(value, str) and value}
    if "pred" not in paths or "ref" not in paths:
        return None
    return CaseFiles(paths["pred"], paths["ref"], paths.get("mask"), paths.get("source"))


def _dictionary(entry: Any) -> dict[str, Any]:
    return entry if isinstance(entry, dict) else {}
