"""Assemble a cohort with its splits from a folder in a known layout.

The scans of the layout, those of the chosen contrasts and domains, copies left out, patients split, pairs found. The
result becomes a `Cohort` at once, or a datalist on disk, see `cohort.datalist`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from medcyclegan.cohort.cases import DOMAINS, Case, Cohort, check_cohort
from medcyclegan.cohort.datalist import write_datalist
from medcyclegan.cohort.domains import Selection, choose_scans
from medcyclegan.cohort.duplicates import refuse_one_as_two, survey_images, without_copies
from medcyclegan.cohort.layouts import read_layout
from medcyclegan.cohort.layouts.scan import Scan
from medcyclegan.cohort.splits import AS_IN_LAYOUT, SPLITS, SplitPlan, split_scans, with_split_of_patient
from medcyclegan.errors import few, raise_all
from medcyclegan.io.grid import on_one_grid
from medcyclegan.progress import Progress
from medcyclegan.survey.volume import Survey

_PREFIX = {"train": "", "val": "val_", "test": "test_"}  # of a split's lists in a datalist


@dataclass(frozen=True)
class Assembly:
    """A cohort with its splits.

    Attributes:
        scans: those taken, each with domain and split.
        folds: patient -> fold, empty where there are none.
        pairs: (a, b) of one patient on one grid.
        failed: images that cannot be read, with the reason.
        notes: for the user, one line each.
        about: how it was made, plain data.
        contrasts: "a", "b" -> the names of the contrasts, in order, where several were joined.
    """

    scans: tuple[Scan, ...]
    folds: Mapping[str, int]
    pairs: tuple[tuple[Scan, Scan], ...]
    failed: Mapping[Path, str]
    notes: tuple[str, ...]
    about: Mapping[str, Any]
    contrasts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def cohort(self) -> Cohort:
        """The cohort for training and validation, with unreadable scans, which preparation will report."""
        a, b = (
            tuple(Case(s.case, s.images, s.body) for s in self.scans if (s.domain, s.split) == (domain, "train"))
            for domain in DOMAINS
        )
        pairs = tuple(
            (Case(x.case, x.images, body := x.body or y.body), Case(x.case, y.images, body))
            for x, y in self.pairs
            if x.split == "val"
        )
        return check_cohort(Cohort(a, b, pairs, self.contrasts), str(self.about["root"]))

    def counts(self) -> dict[str, int]:
        """Number of entries of every list of the datalist."""
        return {name: len(entries) for name, entries in self._lists(Path()).items()}

    def write(self, path: Path) -> None:
        """Write the datalist, see `write_datalist`; paths below its folder are relative to it."""
        write_datalist(path, self.about, self._lists(path.parent))

    def _lists(self, folder: Path) -> dict[str, list[dict[str, Any]]]:
        lists: dict[str, list[dict[str, Any]]] = {"a": [], "b": [], "pairs": []}
        readable = [scan for scan in self.scans if not _unread(scan, self.failed)]
        for split in SPLITS:
            for domain in DOMAINS:
                for scan in readable:
                    if (scan.domain, scan.split) == (domain, split):
                        lists.setdefault(_PREFIX[split] + domain, []).append(self._entry(scan, folder))
        for a, b in self.pairs:
            if a.split == "train" and not self.folds:
                continue
            images = {"a": _relative_images(a, folder), "b": _relative_images(b, folder)}
            entry = {"case": a.case, "patient": a.patient, **images} | self._shared(a, a.body or b.body, folder)
            lists.setdefault("test_pairs" if a.split == "test" else "pairs", []).append(entry)
        return lists

    def _entry(self, scan: Scan, folder: Path) -> dict[str, Any]:
        contrast = list(self.contrasts[scan.domain]) if len(scan.images) > 1 else scan.kind
        known = {"patient": scan.patient, "contrast": contrast, "site": scan.site}
        return {
            "image": _relative_images(scan, folder),
            "case": scan.case,
            **{key: value for key, value in known.items() if value},
            **self._shared(scan, scan.body, folder),
        }

    def _shared(self, scan: Scan, body: Path | None, folder: Path) -> dict[str, Any]:
        """Keys that entries of cases and of pairs share: the body mask, and the fold of training patients."""
        entry: dict[str, Any] = {"body": _relative(body, folder)} if body else {}
        return entry | ({"fold": self.folds[scan.patient]} if scan.split == "train" and self.folds else {})


def assemble(selection: Selection, split: SplitPlan = AS_IN_LAYOUT, progress: Progress | None = None) -> Assembly:
    """Read a layout and make a cohort of it.

    Args:
        selection: which scans are taken.
        split: how their patients are split.
        progress: watches the reading of every volume, which finds duplicates.

    Raises:
        InputError: no layout fits; a domain has no scans or scans of several kinds; a patient or a copy of a scan is
            on two sides; the same scan is in both domains; contrasts to be joined are ambiguous; a split is not
            possible.
    """
    found = read_layout(selection.root, selection.layout)
    chosen = choose_scans(found.scans, selection)
    taken = with_split_of_patient(chosen.scans)
    surveys, failed = survey_images((image for scan in taken for image in scan.images), progress=progress)
    refuse_one_as_two(taken, surveys)
    taken, copies = without_copies(taken, surveys)
    # Unreadable scans are not used for validation or test.
    unread = [replace(scan, split=scan.split or "train") for scan in taken if _unread(scan, failed)]
    taken, folds = split_scans([scan for scan in taken if not _unread(scan, failed)], split)
    _require_training(taken, failed)
    taken += unread
    pairs, unpaired = _pairs(taken, surveys, folds)
    about: dict[str, Any] = {"root": str(selection.root), "layout": found.layout, "reason": found.reason}
    about |= {"seed": split.seed, **asdict(split), "modalities": dict(selection.modalities)}
    about |= {"contrasts": {domain: contrast for domain, contrast in selection.contrasts.items() if contrast}}
    notes = (*found.notes(), *chosen.notes, *copies, *unpaired)
    return Assembly(tuple(taken), folds, pairs, failed, notes, about, chosen.contrasts)


def _unread(scan: Scan, failed: Mapping[Path, str]) -> bool:
    return any(image in failed for image in scan.images)


def _require_training(scans: Sequence[Scan], failed: Mapping[Path, str]) -> None:
    """Require a training scan in each domain."""
    trained = {scan.domain for scan in scans if scan.split == "train"}
    problems = [
        f"domain {domain}: {sum(scan.domain == domain for scan in scans)} scans, all of which validate or test"
        for domain in DOMAINS
        if domain not in trained
    ]
    if problems:
        problems += [f"{image} cannot be read: {reason}" for image, reason in failed.items()]
    raise_all(problems, "nothing is left to train on; take smaller shares or another seed, or give more volumes:")


def _pairs(
    scans: Sequence[Scan], surveys: Mapping[Path, Survey], folds: Mapping[str, int]
) -> tuple[tuple[tuple[Scan, Scan], ...], list[str]]:
    """(a, b) of one patient on one grid, where there is one such b only; and notes on those who lack one.

    Only patients who validate or test, and have scans in both domains, are noted.
    """
    by_patient = defaultdict(list)
    for scan in scans:
        if scan.domain == "b" and scan.patient and scan.image in surveys:
            by_patient[scan.patient].append(scan)
    found = []
    alone: dict[str, list[str]] = defaultdict(list)
    for a in scans:
        if a.domain != "a" or a.image not in surveys or a.patient not in by_patient:
            continue
        fitting = [b for b in by_patient[a.patient] if _on_one_grid(surveys[a.image], surveys[b.image])]
        if len(fitting) == 1:
            found.append((a, fitting[0]))
        elif a.split != "train" or folds:
            alone["several scans of b lie" if fitting else "no scan of b lies"].append(a.case)
    notes = [
        f"no pairs for validation or testing, because {reason} on the grid of that of a: {few(cases)}"
        for reason, cases in alone.items()
    ]
    return tuple(found), notes


def _on_one_grid(a: Survey, b: Survey) -> bool:
    return a.grid is not None and b.grid is not None and on_one_grid(a.grid, b.grid)


def _relative_images(scan: Scan, folder: Path) -> str | list[str]:
    """One file, or a list of the files of several contrasts."""
    names = [_relative(image, folder) for image in scan.images]
    return names if len(names) > 1 else names[0]


def _relative(path: Path, folder: Path) -> str:
    whole, above = path.absolute(), folder.absolute()
    return whole.relative_to(above).as_posix() if whole.is_relative_to(above) else str(whole)
