"""Datalists: JSON files with the cases of a cohort for training, validation and test.

A datalist has the lists `a`, `b` and optionally `pairs`:

    {"a": [{"image": "mr/001.nii.gz", "body": "masks/001.nii.gz"}, ...],
     "b": [{"image": "ct/117.mha"}, ...],
     "pairs": [{"case": "031", "a": "mr/031.nii.gz", "b": "ct/031.nii.gz"}, ...]}

Paths are relative to the file. MONAI's `load_decathlon_datalist(file, is_segmentation=False, data_list_key="a")` reads
each list; it makes a path of every value that is the name of something beside the file, a patient's folder for example.
Several MR *contrasts* of a patient are a list of files, in one order throughout a domain; they become channels:

    {"a": [{"image": ["t1/001.nii.gz", "t2/001.nii.gz"], "contrast": ["T1w", "T2w"]}, ...], ...}

What `medcyclegan datalist` writes has more keys and lists, which training ignores:

    {"about": {...},                                       how it was made
     "a": [{"image": "mr/001.nii.gz", "case": "001", "patient": "001", "site": "...", "fold": 0}, ...],
     "b": [...], "pairs": [...],                           training, and pairs for validation
     "val_a": [...], "val_b": [...],                       everything of the validation patients, paired or not
     "test_a": [...], "test_b": [...], "test_pairs": [...]}

With cross-validation, one `fold` is left out of `a` and `b`, and its `pairs` validate.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medcyclegan.atomic import write_json
from medcyclegan.cohort.cases import DOMAINS, Case, Cohort, check_cohort, shortened
from medcyclegan.documents import read_json
from medcyclegan.errors import InputError, raise_all
from medcyclegan.io.reader import case_id

_PAIRS = ("pairs", "test_pairs")
_LISTS = (*DOMAINS, "val_a", "val_b", "test_a", "test_b", *_PAIRS)
_OPTIONAL = {"patient", "site", "contrast", "fold"}


def from_json(path: Path, fold: int | None = None) -> Cohort:
    """Read a datalist.

    Args:
        path: the file.
        fold: which fold validates; needed where the entries have folds.

    Raises:
        InputError: naming every entry that is wrong, or a patient of the training that validates or tests too.
    """
    content = read_json(path, f"datalist {path}")
    if not isinstance(content, dict) or not {"a", "b"} <= set(content) or set(content) - {*_LISTS, "about"}:
        raise InputError(
            f"the datalist {path} must be an object with the lists a, b and optionally pairs"
            f" ({', '.join(_LISTS[2:6])}, test_pairs and about are left alone)."
        )
    content.pop("about", None)
    raise_all(
        [f"{name}: must be a list" for name, entries in content.items() if not isinstance(entries, list)],
        f"the datalist {path} is wrong:",
    )
    problems = [
        f"{name}[{index}]: {problem}"
        for name, entries in content.items()
        for index, entry in enumerate(entries)
        if (problem := _entry_problem(entry, name))
    ]
    raise_all(problems, f"the datalist {path} has wrong entries:")
    content = _without_fold(content, fold, path)
    _refuse_leaks(content, path)

    def case(entry: Mapping[str, Any], key: str) -> Case:
        names = _listed(entry[key])
        body = path.parent / entry["body"] if "body" in entry else None
        return Case(entry.get("case", case_id(names[0])), tuple(path.parent / name for name in names), body)

    a, b = (tuple(case(entry, "image") for entry in content[domain]) for domain in DOMAINS)
    pairs = tuple((case(entry, "a"), case(entry, "b")) for entry in content.get("pairs", []))
    return check_cohort(Cohort(a, b, pairs, _named_contrasts(content, path)), str(path))


def write_datalist(path: Path, about: Mapping[str, Any], lists: Mapping[str, list[dict[str, Any]]]) -> None:
    """Write a datalist, atomically.

    Raises:
        InputError: `path` is something else than a datalist, such as the dataset.json of the cohort.
    """
    if path.exists():
        try:
            content = read_json(path, f"datalist {path}")
        except InputError:
            content = None
        if not isinstance(content, dict) or not {"about", "a", "b"} <= set(content):
            raise InputError(f"{path} exists and is no datalist of this program.", "Give another name.")
    write_json(path, {"about": dict(about), **lists})


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _named_contrasts(content: Mapping[str, Any], path: Path) -> dict[str, tuple[str, ...]]:
    """Domain -> the names of its contrasts, for domains whose entries have several."""
    names: dict[str, tuple[str, ...]] = {}
    problems = []
    for domain in DOMAINS:
        orders: dict[tuple[str, ...], list[str]] = {}
        for index, entry in enumerate(content[domain]):
            if len(_listed(entry["image"])) > 1 and "contrast" in entry:
                orders.setdefault(tuple(_listed(entry["contrast"])), []).append(f"{domain}[{index}]")
        if len(orders) > 1:
            problems += [f"{', '.join(order)}: in {', '.join(where[:5])}" for order, where in orders.items()]
        elif orders:
            (names[domain],) = orders
    raise_all(
        problems, f"the entries of a domain in the datalist {path} name different contrasts, or in another order:"
    )
    return names


def _without_fold(content: dict[str, Any], fold: int | None, path: Path) -> dict[str, Any]:
    """The training entries without the validation fold, and the pairs of that fold."""
    folds = {entry.get("fold") for name in DOMAINS for entry in content[name]}
    if folds == {None}:
        if fold is not None:
            raise InputError(f"the datalist {path} has no folds.", "Leave out data.fold.")
        return content
    there = ", ".join(str(number) for number in sorted(folds - {None}))
    if None in folds:
        raise InputError(f"the datalist {path} has entries in a or b without a fold.", f"Folds are {there}.")
    if fold not in folds:
        raise InputError(
            f"the datalist {path} has the folds {there}, and {'none' if fold is None else fold} was chosen.",
            "Set data.fold to the one that is to validate.",
        )
    chosen = {name: [entry for entry in content[name] if entry["fold"] != fold] for name in DOMAINS}
    return {**content, **chosen, "pairs": [e for e in content.get("pairs", []) if e.get("fold", fold) == fold]}


def _refuse_leaks(content: Mapping[str, Any], path: Path) -> None:
    """Refuse patients, and volumes, that are trained on and validate or test too."""

    def volumes(name: str) -> dict[Path, str]:
        keys = DOMAINS if name in _PAIRS else ("image",)
        named = [file for entry in content[name] for key in keys for file in _listed(entry[key])]
        return {(path.parent / file).resolve(): file for file in named}

    trained = {entry["patient"] for name in DOMAINS for entry in content[name] if "patient" in entry}
    shown = volumes("a") | volumes("b")
    others = [name for name in content if name not in DOMAINS]
    problems = [
        f"patient '{patient}' is in {name} too"
        for name in others
        for patient in sorted({entry["patient"] for entry in content[name] if "patient" in entry} & trained)
    ]
    problems += [
        f"{file} is in {name} too" for name in others for where, file in volumes(name).items() if where in shown
    ]
    raise_all(problems, f"in the datalist {path} patients or volumes of the training validate or test:")


def _entry_problem(entry: Any, name: str) -> str | None:
    needed = ("case", *DOMAINS) if name in _PAIRS else ("image",)
    allowed = {"case", "body", *needed, *_OPTIONAL}
    if not isinstance(entry, dict):
        return f"must be an object, got {shortened(entry)}"
    if unknown := sorted(set(entry) - allowed):
        return f"unknown key {', '.join(unknown)}; allowed: {', '.join(sorted(allowed))}"
    if missing := [key for key in needed if key not in entry]:
        return f"needs the key {', '.join(missing)}"
    for key, value in entry.items():
        if key in ("image", "a", "b", "contrast") and isinstance(value, list):
            if not value or any(not isinstance(part, str) for part in value):
                return f"{key}: a list must hold text, one per contrast, got {shortened(value)}"
        elif key != "fold" and not isinstance(value, str):
            return f"{key}: text is needed, got {shortened(value)}"
        if key in ("case", "image", "a", "b", "body") and not all(_listed(value)):
            return f"{key} is empty"
    files = _listed(entry.get("image", ""))
    named = _listed(entry.get("contrast", ""))
    if "contrast" in entry and len(files) > 1 and (len(named) != len(files) or len(set(named)) < len(named)):
        return f"{len(files)} files need as many different names in contrast, got {', '.join(named)}"
    if type(entry.get("fold", 0)) is not int:
        return f"fold must be a whole number, got {shortened(entry['fold'])}"
    return None
