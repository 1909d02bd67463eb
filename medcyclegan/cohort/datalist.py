"""Which volumes make up a cohort.

A *case* is one patient of one domain: a volume, or one per channel, and optionally a body mask. A *pair* is the same
patient in both domains on the same grid; pairs serve validation and are never trained on. A datalist is a JSON file
with the lists `a`, `b` and optionally `pairs`:

    {"a": [{"image": "mr/001.nii.gz", "body": "masks/001.nii.gz"}, ...],
     "b": [{"image": "ct/117.mha"}, ...],
     "pairs": [{"case": "031", "a": "mr/031.nii.gz", "b": "ct/031.nii.gz"}]}

Paths are relative to the file. MONAI's `load_decathlon_datalist(path, data_list_key="a")` reads the same file.
Several MR *contrasts* of a patient are a list of files, in one order throughout a domain; they become channels:

    {"a": [{"image": ["t1/001.nii.gz", "t2/001.nii.gz"], "contrast": ["T1w", "T2w"]}, ...], ...}

Datalists that `medcyclegan datalist` writes have lists for validation and testing too, which training leaves alone,
and with cross-validation a `fold` per entry: one fold is left out of `a` and `b`, and its `pairs` validate.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medcyclegan.documents import read_json, read_table
from medcyclegan.errors import InputError, few, raise_all
from medcyclegan.io.pictures import GrayLevels
from medcyclegan.io.reader import case_id, list_volumes, volume_files

_PAIRS = ("pairs", "test_pairs")
_LISTS = ("a", "b", "val_a", "val_b", "test_a", "test_b", *_PAIRS)
_TOLD = {"patient", "site", "contrast", "fold"}
_LONGEST_ID = 150  # bytes; file systems take 255, and results add endings to it


@dataclass(frozen=True)
class Case:
    """One patient of one domain.

    Attributes:
        id: unique within the domain; serves as a file name.
        images: the file of each channel, in order.
        body: the file of the body mask, on the grid of the first.
        levels: how 2D images are understood.
    """

    id: str
    images: tuple[Path, ...]
    body: Path | None = None
    levels: GrayLevels | None = None


@dataclass(frozen=True)
class Pair:
    """One patient in both domains: the file of each channel of a and of b, whose first ones share one grid."""

    id: str
    a: tuple[Path, ...]
    b: tuple[Path, ...]
    body: Path | None = None

    @property
    def images(self) -> dict[str, tuple[Path, ...]]:
        """The files by domain, "a" and "b"."""
        return {"a": self.a, "b": self.b}


@dataclass(frozen=True)
class Cohort:
    """The unpaired cases of the domains a and b, the pairs for validation, and how 2D images are understood.

    Attributes:
        levels: "a", "b" -> of that domain's pictures; of no meaning for volumes.
        contrasts: "a", "b" -> the names of its contrasts, in order, where its cases have several.
    """

    a: tuple[Case, ...]
    b: tuple[Case, ...]
    pairs: tuple[Pair, ...] = ()
    levels: Mapping[str, GrayLevels] = field(default_factory=dict)
    contrasts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def files_per_case(self, domain: str) -> int:
        """How many contrasts every case of "a" or "b" has."""
        return len(getattr(self, domain)[0].images)


def contrast_names(count: int) -> tuple[str, ...]:
    """What contrasts are called that nobody has named."""
    return tuple(f"contrast {number}" for number in range(1, count + 1))


def from_folders(
    a: Path, b: Path, *, masks_a: Path | None = None, masks_b: Path | None = None, pairs: Path | None = None
) -> Cohort:
    """Every volume of two folders; masks belong to the case of the same id.

    Raises:
        InputError: for a missing or empty folder, the same folder twice, or masks that fit no case.
    """
    if a.resolve() == b.resolve():
        raise InputError(f"the folders a and b are the same: {a}.", "Give one folder for each domain.")
    return check_cohort(
        Cohort(_folder_cases(a, masks_a), _folder_cases(b, masks_b), from_pairs_csv(pairs) if pairs else ()),
        f"{a} and {b}",
    )


def from_pairs_csv(path: Path) -> tuple[Pair, ...]:
    """Read a CSV with the columns case, a, b and optionally mask; paths relative to the file."""
    columns, rows = read_table(path, f"pairs file {path}")
    if not {"case", "a", "b"} <= set(columns) or set(columns) - {"case", "a", "b", "mask"}:
        raise InputError(
            f"the pairs file {path} has the columns {', '.join(sorted(columns)) or '(none)'};",
            "it needs case, a, b and optionally mask.",
        )
    if not rows:
        raise InputError(f"the pairs file {path} holds no pair below its columns.", "Fill it, or leave it out.")
    if not all(row["case"] and row["a"] and row["b"] for row in rows):
        raise InputError(f"the pairs file {path} has rows with an empty case, a or b.", "Fill or delete them.")
    return tuple(
        Pair(row["case"], (path.parent / row["a"],), (path.parent / row["b"],), _optional(path.parent, row.get("mask")))
        for row in rows
    )


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
    folder = path.parent

    def case(entry: Mapping[str, Any]) -> Case:
        names = _listed(entry["image"])
        body = _optional(folder, entry.get("body"))
        return Case(entry.get("case", case_id(names[0])), tuple(folder / name for name in names), body)

    def pair(entry: Mapping[str, Any]) -> Pair:
        a, b = (tuple(folder / name for name in _listed(entry[domain])) for domain in ("a", "b"))
        return Pair(entry["case"], a, b, _optional(folder, entry.get("body")))

    cohort = Cohort(
        tuple(map(case, content["a"])),
        tuple(map(case, content["b"])),
        tuple(map(pair, content.get("pairs", []))),
        contrasts=_named_contrasts(content, path),
    )
    return check_cohort(cohort, str(path))


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _named_contrasts(content: Mapping[str, Any], path: Path) -> dict[str, tuple[str, ...]]:
    """Domain -> what its entries call their contrasts, of domains whose entries have several."""
    names: dict[str, tuple[str, ...]] = {}
    problems = []
    for domain in ("a", "b"):
        told: dict[tuple[str, ...], list[str]] = {}
        for index, entry in enumerate(content[domain]):
            if len(_listed(entry["image"])) > 1 and "contrast" in entry:
                told.setdefault(tuple(_listed(entry["contrast"])), []).append(f"{domain}[{index}]")
        problems += [f"{', '.join(order)}: in {', '.join(where[:5])}" for order, where in told.items() if len(told) > 1]
        if told:
            names[domain] = next(iter(told))
    raise_all(
        problems, f"the entries of a domain in the datalist {path} name different contrasts, or in another order:"
    )
    return names


def _without_fold(content: dict[str, Any], fold: int | None, path: Path) -> dict[str, Any]:
    """Training without the fold that validates, and the pairs of that fold."""
    folds = {entry.get("fold") for name in ("a", "b") for entry in content[name]}
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
    chosen = {name: [entry for entry in content[name] if entry["fold"] != fold] for name in ("a", "b")}
    return {**content, **chosen, "pairs": [e for e in content.get("pairs", []) if e.get("fold", fold) == fold]}


def _refuse_leaks(content: Mapping[str, Any], path: Path) -> None:
    """Refuse patients, and volumes, that are trained on and validate or test too."""

    def volumes(name: str) -> dict[Path, str]:
        keys = ("a", "b") if name in _PAIRS else ("image",)
        named = [file for entry in content[name] for key in keys for file in _listed(entry[key])]
        return {(path.parent / file).resolve(): file for file in named}

    trained = {entry["patient"] for name in ("a", "b") for entry in content[name] if "patient" in entry}
    shown = {**volumes("a"), **volumes("b")}
    others = [name for name in content if name not in ("a", "b")]
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
    needed = ("case", "a", "b") if name in _PAIRS else ("image",)
    allowed = {"case", "body", *needed, *_TOLD}
    if not isinstance(entry, dict):
        return f"must be an object, got {_short(entry)}"
    if unknown := sorted(set(entry) - allowed):
        return f"unknown key {', '.join(unknown)}; allowed: {', '.join(sorted(allowed))}"
    if missing := [key for key in needed if key not in entry]:
        return f"needs the key {', '.join(missing)}"
    for key, value in entry.items():
        if key in ("image", "a", "b", "contrast") and isinstance(value, list):
            if not value or any(not isinstance(part, str) for part in value):
                return f"{key}: a list must hold text, one per contrast, got {_short(value)}"
        elif key != "fold" and not isinstance(value, str):
            return f"{key}: text is needed, got {_short(value)}"
        if key in ("case", "image", "a", "b", "body") and not all(_listed(value)):
            return f"{key} is empty"
    files = _listed(entry.get("image", ""))
    named = _listed(entry.get("contrast", ""))
    if "contrast" in entry and len(files) > 1 and (len(named) != len(files) or len(set(named)) < len(named)):
        return f"{len(files)} files need as many different names in contrast, got {', '.join(named)}"
    if type(entry.get("fold", 0)) is not int:
        return f"fold must be a whole number, got {_short(entry['fold'])}"
    return None


def _folder_cases(folder: Path, masks: Path | None) -> tuple[Case, ...]:
    images = list_volumes(folder)
    if masks is None:
        return tuple(Case(id, (image,)) for id, image in images.items())
    bodies = list_volumes(masks)
    raise_all(
        [f"{id}: no mask in {masks}" for id in images if id not in bodies]
        + [f"{bodies[id].name}: no volume with the id '{id}' in {folder}" for id in bodies if id not in images],
        "masks are matched to volumes by case id (the file name without its ending), but:",
    )
    return tuple(Case(id, (image,), bodies[id]) for id, image in images.items())


def check_cohort(cohort: Cohort, source: str) -> Cohort:
    """The cohort, if every case has a file and a name of its own that can serve as a file name.

    Raises:
        InputError: naming files that are not there or are listed twice, ids that are no file name or occur twice (upper
            and lower case count the same, as on many file systems), and pairs that are trained on.
    """
    problems = []
    for name, cases in (("a", cohort.a), ("b", cohort.b), ("pairs", cohort.pairs)):
        if not cases and name != "pairs":
            problems.append(f"{name}: no case at all")
        problems += _id_problems(name, [case.id for case in cases])
        problems += [
            f"{name}: case {_short(case.id)[1:-1]}: {problem}"
            for case in cases
            for file in _files(case)
            if (problem := _absent(file))
        ]
    problems += _repeated_files(cohort)
    for domain in ("a", "b"):
        counts: dict[int, list[str]] = {}
        for case in getattr(cohort, domain):
            counts.setdefault(len(case.images), []).append(case.id)
        for pair in cohort.pairs:
            counts.setdefault(len(pair.images[domain]), []).append(f"{pair.id} (pair)")
        if len(counts) > 1:
            told = "; ".join(f"{count} in {few(ids, 8)}" for count, ids in sorted(counts.items()))
            problems.append(f"{domain}: every case needs the same number of contrasts, but there are {told}")
    raise_all(problems, f"the cohort of {source} cannot be used:")
    trained = {image.resolve() for case in (*cohort.a, *cohort.b) for image in case.images}
    raise_all(
        [f"case {pair.id}: {f}" for pair in cohort.pairs for f in (*pair.a, *pair.b) if f.resolve() in trained],
        f"pairs serve validation and must not be trained on too, but in {source} these files are in both:",
    )
    return cohort


def _files(case: Case | Pair) -> list[Path]:
    files = [*case.a, *case.b] if isinstance(case, Pair) else [*case.images]
    return [*files, case.body] if case.body else files


def _short(value: Any, most: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def _absent(file: Path) -> str | None:
    """What is to be told of a file that is not there, or that cannot even be looked for."""
    try:
        return None if volume_files(file) else f"there is no file {file}"
    except OSError as error:
        return f"the file {_short(str(file), 100)} cannot be looked for: {error.strerror}"


def _id_problems(name: str, ids: list[str]) -> list[str]:
    problems, seen = [], dict[str, str]()
    for id in ids:
        key = unicodedata.normalize("NFC", id).casefold()
        if id == seen.get(key):
            problems.append(f"{name}: the case id '{id}' occurs more than once")
        elif key in seen:
            problems.append(f"{name}: the case ids '{seen[key]}' and '{id}' are the same name on many file systems")
        seen.setdefault(key, id)
        if reason := _no_file_name(id):
            problems.append(f"{name}: {_short(id)} cannot be a case id, it must serve as a file name: {reason}")
    return list(dict.fromkeys(problems))


def _no_file_name(id: str) -> str | None:
    if not id.strip() or id != id.strip():
        return "it is empty, or begins or ends with a space"
    if set(id) & {"/", "\\"}:
        return "it holds a slash or backslash"
    if id.startswith(".") or id.endswith("."):
        return "it begins or ends with a dot"
    if any(unicodedata.category(character).startswith("C") for character in id):
        return "it holds a character that cannot be shown, such as a line break"
    if len(id.encode("utf-8", "surrogatepass")) > _LONGEST_ID:
        return f"it is longer than {_LONGEST_ID} bytes"
    return None


def _repeated_files(cohort: Cohort) -> list[str]:
    """Volumes that stand at two places: shown twice as often, or the same image as source and as target."""
    problems = []
    places: dict[Path, str] = {}
    for domain in ("a", "b"):
        for case in getattr(cohort, domain):
            for image in case.images:
                place = f"case {case.id} of {domain}"
                if (before := places.setdefault(image.resolve(), place)) is not place:
                    problems.append(f"{image} is listed more than once: {before}, {place}")
            problems += _mask_problem(case.body, case.images, f"{domain}: case {case.id}")
    for pair in cohort.pairs:
        a, b = ({image.resolve() for image in images} for images in (pair.a, pair.b))
        if a & b or len(a) + len(b) < len(pair.a) + len(pair.b):
            problems.append(f"pairs: case {pair.id}: the same file stands for more than one of its volumes")
        problems += _mask_problem(pair.body, (*pair.a, *pair.b), f"pairs: case {pair.id}")
    return problems


def _mask_problem(body: Path | None, images: Iterable[Path], where: str) -> list[str]:
    same = body is not None and body.resolve() in {image.resolve() for image in images}
    return [f"{where}: {body} is its body mask and its image"] if same else []


def _optional(folder: Path, name: str | None) -> Path | None:
    return folder / name if name else None
