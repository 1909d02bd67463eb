"""A CSV that lists the volumes, one per row: the layout for whatever no other layout fits.

Columns: `image` and one of `domain` (a, b) or `modality` (MR, CT) are needed; `patient`, `case`, `kind`, `split`
(train, val, test), `site` and `body` are optional. Paths are relative to the file; without a patient, the case is one.
"""

from __future__ import annotations

import csv
from pathlib import Path

from medcyclegan.cohort.layouts.scan import Scan, patient_of, require_scans, text
from medcyclegan.documents import read_table
from medcyclegan.errors import InputError, raise_all
from medcyclegan.io.reader import case_id
from medcyclegan.io.tree import Tree

NAME = "csv"
SHAPE = "a CSV with the columns image, domain or modality, and patient, case, kind, split, site, body as needed"

_ALLOWED = {"image", "domain", "modality", "patient", "case", "kind", "split", "site", "body"}
_VALUES = {"domain": ("", "a", "b"), "modality": ("", "MR", "CT"), "split": ("", "train", "val", "test")}


def recognize(tree: Tree) -> str | None:
    found = _tables(tree)
    return f"it has {found[0].name} with the column image" if len(found) == 1 else None


def read(tree: Tree) -> list[Scan]:
    tables = _tables(tree)
    if len(tables) != 1:
        names = ", ".join(path.name for path in tables)
        there = f"more than one CSV with the column image: {names}" if tables else "no CSV with the column image"
        raise InputError(
            f"{tree.root} holds {there}.",
            f"Give the file itself: {SHAPE}.",
        )
    (path,) = tables
    problems: list[str] = []
    columns, rows = read_table(path, f"table {path}", problems=problems)
    if "image" not in columns:
        raise InputError(f"{path} has the columns {', '.join(sorted(columns)) or '(none)'}.", f"It needs {SHAPE}.")
    if unknown := sorted(set(columns) - _ALLOWED):
        problems.append(f"there is no column {', '.join(unknown)}; allowed: {', '.join(sorted(_ALLOWED))}")
    if not set(columns) & {"domain", "modality"}:
        problems.append("a column domain (a, b) or modality (MR, CT) is needed")
    found = []
    for number, row in enumerate(rows, start=2):
        line = f"line {number}"
        values = {key: text(row.get(key, "").strip()) for key in _ALLOWED}
        if not values["image"]:
            problems.append(f"{line}: the image is empty")
            continue
        if not values["domain"] and not values["modality"]:
            problems.append(f"{line}: neither domain nor modality is given")
        problems += [
            f"{line}: {key} is '{values[key]}', allowed: {', '.join(filter(None, allowed))}"
            for key, allowed in _VALUES.items()
            if values[key] not in allowed
        ]
        # As it is written, not in one spelling: the file system may know only that one.
        image = path.parent / row["image"].strip()
        body = path.parent / row["body"].strip() if values["body"] else None
        case = values["case"] or text(case_id(image))
        patient = values["patient"] or patient_of(case)
        modality, kind, domain, split, site = (values[key] for key in ("modality", "kind", "domain", "split", "site"))
        found.append(Scan((image,), case, patient, modality, kind, domain, split, site, body))
    raise_all(problems, f"{path} has mistakes:")
    return require_scans(found, tree, NAME)


def _tables(tree: Tree) -> list[Path]:
    names = [name for name in tree.files() if name.lower().endswith(".csv")]
    if not tree.root.is_dir():
        return [tree.root] if names else []
    return [path for path in map(tree.path, names) if "image" in _columns(path)]


def _columns(path: Path) -> set[str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            return set(next(csv.reader(stream), ()))
    except (OSError, UnicodeDecodeError, csv.Error):
        return set()  # some other table; if it was meant, the message names what is needed
