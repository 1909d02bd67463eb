"""The cases of a cohort, and the checks that every cohort has to pass: from folders, a datalist or a layout.

A *case* is one patient of one domain: a volume, or one per channel, and optionally a body mask. A *pair* is one patient
in both domains on one grid; pairs serve validation and are never trained on.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medcyclegan.documents import read_table
from medcyclegan.errors import InputError, few, raise_all
from medcyclegan.io.pictures import GrayLevels
from medcyclegan.io.reader import list_volumes, volume_files

DOMAINS = ("a", "b")
MASKS_BY_ID = "masks are matched to volumes by case id (the file name without its ending), but:"
_LONGEST_ID = 150  # bytes; file systems take 255, and results add endings to it


@dataclass(frozen=True)
class Case:
    """One patient of one domain.

    Attributes:
        id: unique within the domain; serves as a file name.
        images: the file of each channel, in order.
        body: the file of the body mask, on the grid of the first.
        levels: how pixels of 2D images are read; not used for volumes.
    """

    id: str
    images: tuple[Path, ...]
    body: Path | None = None
    levels: GrayLevels | None = None

    def __str__(self) -> str:
        return " or ".join(map(str, self.images))


Pair = tuple[Case, Case]  # of a and of b, with one id and one body mask; the first images of both share one grid


@dataclass(frozen=True)
class Cohort:
    """The unpaired cases of the domains a and b, and the pairs for validation.

    Attributes:
        contrasts: "a", "b" -> the names of its contrasts, in order, where its cases have several.
    """

    a: tuple[Case, ...]
    b: tuple[Case, ...]
    pairs: tuple[Pair, ...] = ()
    contrasts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def groups(self) -> dict[str, tuple[Case, ...]]:
        """The cases of "a" and "b", and the halves of the pairs, "pairs_a" and "pairs_b"."""
        return {"a": self.a, "b": self.b} | {f"pairs_{d}": tuple(p[i] for p in self.pairs) for i, d in enumerate("ab")}

    def with_levels(self, levels: Mapping[str, GrayLevels]) -> Cohort:
        """The same cohort; `levels` says by domain, "a" and "b", how its 2D images are understood."""
        a, b = levels["a"], levels["b"]
        return replace(
            self,
            a=tuple(replace(case, levels=a) for case in self.a),
            b=tuple(replace(case, levels=b) for case in self.b),
            pairs=tuple((replace(x, levels=a), replace(y, levels=b)) for x, y in self.pairs),
        )


def contrast_names(count: int) -> tuple[str, ...]:
    """Default names of contrasts."""
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

    def case(row: Mapping[str, str], domain: str) -> Case:
        mask = path.parent / row["mask"] if row.get("mask") else None
        return Case(row["case"], (path.parent / row[domain],), mask)

    return tuple((case(row, "a"), case(row, "b")) for row in rows)


def _folder_cases(folder: Path, masks: Path | None) -> tuple[Case, ...]:
    images = list_volumes(folder)
    bodies = list_volumes(masks) if masks else {}
    if masks:
        raise_all(
            [f"{id}: no mask in {masks}" for id in images if id not in bodies]
            + [f"{bodies[id].name}: no volume with the id '{id}' in {folder}" for id in bodies if id not in images],
            MASKS_BY_ID,
        )
    return tuple(Case(id, (image,), bodies.get(id)) for id, image in images.items())


def check_cohort(cohort: Cohort, source: str) -> Cohort:
    """The cohort, if every case has existing files and a unique id that can serve as a file name.

    Raises:
        InputError: naming files that are not there or are listed twice, ids that are no file name or occur twice (upper
            and lower case count the same, as on many file systems), and pairs that are trained on.
    """
    entries: dict[str, Sequence[tuple[Case, ...]]] = {
        "a": [(case,) for case in cohort.a],
        "b": [(case,) for case in cohort.b],
        "pairs": cohort.pairs,
    }
    problems = []
    for name, listed in entries.items():
        if not listed and name != "pairs":
            problems.append(f"{name}: no case at all")
        problems += [f"{name}: {problem}" for problem in _id_problems([cases[0].id for cases in listed])]
        for cases in listed:
            where = f"{name}: case {shortened(cases[0].id)[1:-1]}"
            problems += [f"{where}: {problem}" for problem in _file_problems(cases)]
    problems += [*_repeated_files(cohort), *_uneven_contrasts(cohort)]
    raise_all(problems, f"the cohort of {source} cannot be used:")
    trained = {image.resolve() for case in (*cohort.a, *cohort.b) for image in case.images}
    raise_all(
        [f"case {c.id}: {f}" for halves in cohort.pairs for c in halves for f in c.images if f.resolve() in trained],
        f"pairs serve validation and must not be trained on too, but in {source} these files are in both:",
    )
    return cohort


def _id_problems(ids: Sequence[str]) -> list[str]:
    problems, seen = [], dict[str, str]()
    for id in ids:
        key = unicodedata.normalize("NFC", id).casefold()
        if id == seen.get(key):
            problems.append(f"the case id '{id}' occurs more than once")
        elif key in seen:
            problems.append(f"the case ids '{seen[key]}' and '{id}' are the same name on many file systems")
        seen.setdefault(key, id)
        if reason := no_case_id(id):
            problems.append(f"{shortened(id)} cannot be a case id, it must serve as a file name: {reason}")
    return list(dict.fromkeys(problems))


def no_case_id(id: str) -> str | None:
    """Why a text cannot be a case id, which serves as a file name; None where it can."""
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


def _file_problems(cases: tuple[Case, ...]) -> Iterator[str]:
    """Problems of the files of a case, or of both halves of a pair."""
    images, body = [image for case in cases for image in case.images], cases[0].body
    for file in (*images, body) if body else images:
        try:
            if not volume_files(file):
                yield f"there is no file {file}"
        except OSError as error:
            yield f"the file {shortened(str(file), 100)} cannot be looked for: {error.strerror}"
    places = {image.resolve() for image in images}
    if len(cases) > 1 and len(places) < len(images):
        yield "the same file stands for more than one of its volumes"
    if body and body.resolve() in places:
        yield f"{body} is its body mask and its image"


def _repeated_files(cohort: Cohort) -> Iterator[str]:
    """Volumes that are listed twice: trained on twice as often, or the same image as source and as target."""
    places: dict[Path, str] = {}
    for domain in DOMAINS:
        for case in cohort.groups[domain]:
            for image in case.images:
                place = f"case {case.id} of {domain}"
                if (before := places.setdefault(image.resolve(), place)) is not place:
                    yield f"{image} is listed more than once: {before}, {place}"


def _uneven_contrasts(cohort: Cohort) -> Iterator[str]:
    for domain in DOMAINS:
        counts: dict[int, list[str]] = {}
        for group, mark in ((domain, ""), (f"pairs_{domain}", " (pair)")):
            for case in cohort.groups[group]:
                counts.setdefault(len(case.images), []).append(case.id + mark)
        if len(counts) > 1:
            found = "; ".join(f"{count} in {few(ids, 8)}" for count, ids in sorted(counts.items()))
            yield f"{domain}: every case needs the same number of contrasts, but there are {found}"


def shortened(value: object, most: int = 60) -> str:
    """The value for a message: as Python writes it, cut after `most` characters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."
