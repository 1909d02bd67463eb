"""What an evaluation left behind, read back: the scores of every case, their statistics, and where the volumes are.

Everything beyond the case names is optional: results of other versions, or made by hand, are read as far as they go,
and what is absent is None, so that a report can say so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medcyclegan.documents import read_json, read_table
from medcyclegan.errors import InputError
from medcyclegan.evaluation.summary import CASES_FILE, SUMMARY_FILE

STATISTICS = ("n", "mean", "sd", "median", "q1", "q3", "ci_low", "ci_high")
# Numbers about a case that are no scores.
_COUNTS = ("voxels",)
_FAILED = "failed:"


@dataclass(frozen=True)
class CaseFiles:
    """Where the volumes of one case are; None where the evaluation recorded none.

    Attributes:
        pred: synthetic CT, HU.
        ref: reference CT, HU.
        mask: where it was scored; None means the body of the reference.
        source: MR, any unit.
    """

    pred: Path | None = None
    ref: Path | None = None
    mask: Path | None = None
    source: Path | None = None


@dataclass(frozen=True)
class Case:
    """One line of the table of scores.

    Attributes:
        name: as the user named it.
        scores: column to value; nan where undefined.
        notes: what the evaluation had to say about it; the reason, if it failed.
        failed: True if it could not be scored.
    """

    name: str
    scores: Mapping[str, float]
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
        no_interval: why a score has no interval; empty where they all have one, or no reason is recorded.
        files: case -> its volumes; empty where the evaluation did not record them.
        summary: all that summary.json holds.
    """

    folder: Path
    columns: tuple[str, ...]
    cases: tuple[Case, ...]
    statistics: Mapping[str, Mapping[str, float | None]]
    reasons: Mapping[str, str]
    no_interval: str
    files: Mapping[str, CaseFiles]
    summary: Mapping[str, Any] = field(default_factory=dict)

    @property
    def order_by(self) -> str | None:
        """The score that tells a good case from a bad one: the MAE, else the first; None where there is no score."""
        return "mae" if "mae" in self.columns else next(iter(self.columns), None)


def holds_results(folder: Path) -> bool:
    """True if the folder looks like that of an evaluation."""
    return (folder / CASES_FILE).is_file() and (folder / SUMMARY_FILE).is_file()


def read_results(folder: Path) -> Results:
    """Read the folder of an evaluation.

    Raises:
        InputError: a file is missing, damaged, or holds no case.
    """
    summary = _read_summary(folder / SUMMARY_FILE)
    metrics = summary.get("metrics")
    metrics = metrics if isinstance(metrics, dict) else {}
    rows, fields = _read_rows(folder / CASES_FILE)
    numeric = [name for name in fields if name not in ("case", *_COUNTS) and _all_numbers(rows, name)]
    columns = (*(name for name in metrics if name in numeric), *(name for name in numeric if name not in metrics))
    failures = _failures(summary)
    cases = tuple(_case(row, columns, failures) for row in rows)
    if twins := {row["case"] for row in rows if sum(other["case"] == row["case"] for other in rows) > 1}:
        raise InputError(f"{folder / CASES_FILE} holds more than one line for {sorted(twins)}.", "Evaluate again.")
    known = {case.name for case in cases}
    cases += tuple(Case(name, {}, why, True) for name, why in failures.items() if name not in known)
    return Results(
        folder=folder,
        columns=columns,
        cases=cases,
        statistics={name: _statistics(metrics.get(name)) for name in columns if name in metrics},
        no_interval=next((why for name in columns if (why := _reason(metrics.get(name), "ci_low"))), ""),
        reasons={name: why for name in columns if (why := _reason(metrics.get(name), "mean"))},
        files={name: _files(entry) for name, entry in _dictionary(summary.get("files")).items()},
        summary=summary,
    )


def _read_summary(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise InputError(f"There is no {path}.", "Give the folder that 'medcyclegan evaluate' wrote.")
    content = read_json(path, f"summary {path}")
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no summary of an evaluation.", "Evaluate again.")
    return content


def _read_rows(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    fields, rows = read_table(path, f"table {path}")
    if "case" not in fields:
        raise InputError(f"{path} has no column 'case'; its columns are {fields}.", "Evaluate again.")
    if not rows:
        raise InputError(f"{path} holds no case.", "Evaluate at least one case.")
    return rows, fields


def _all_numbers(rows: list[dict[str, str]], name: str) -> bool:
    """True if every cell that is filled is a number, and one is."""
    cells = [row[name] for row in rows if row.get(name)]
    return bool(cells) and all(_number(cell) is not None for cell in cells)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _failures(summary: Mapping[str, Any]) -> dict[str, str]:
    entries = summary.get("failed")
    if isinstance(entries, dict):
        return {str(name): str(why) for name, why in entries.items()}
    if isinstance(entries, list):
        return {str(entry["case"]): str(entry.get("reason", "")) for entry in entries if "case" in _dictionary(entry)}
    return {}


def _case(row: Mapping[str, str], columns: tuple[str, ...], failures: Mapping[str, str]) -> Case:
    name, notes = row["case"], row.get("notes", "")
    failed = name in failures or notes.startswith(_FAILED)
    why = failures.get(name) or notes.removeprefix(_FAILED).strip()
    values = {column: _number(row.get(column, "")) for column in columns}
    scores = {column: math.nan if value is None else value for column, value in values.items()}
    return Case(name, scores, why if failed else notes, failed)


def _statistics(entry: Any) -> dict[str, float | None]:
    found = _dictionary(entry)
    return {name: float(found[name]) if isinstance(found.get(name), int | float) else None for name in STATISTICS}


def _reason(entry: Any, statistic: str) -> str:
    reasons = _dictionary(_dictionary(entry).get("reasons"))
    return str(reasons.get(statistic, ""))


def _files(entry: Any) -> CaseFiles:
    paths = {kind: value for kind, value in _dictionary(entry).items() if isinstance(value, str) and value}
    return CaseFiles(**{kind: Path(paths[kind]) for kind in ("pred", "ref", "mask", "source") if kind in paths})


def _dictionary(entry: Any) -> dict[str, Any]:
    return entry if isinstance(entry, dict) else {}
