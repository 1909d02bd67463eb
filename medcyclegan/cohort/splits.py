"""Splits into training, validation and test: by patient, seeded, balanced over sites.

Words used here. *Stratum*: patients of the same sites with scans in the same domains. *Fold*: one of k parts, each of
which validates once.

*Leak*: data of one patient on both sides of a split.

Patients in a stratum are ordered by a hash of seed and patient, so the split depends on neither the order of files nor
a random generator.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from medcyclegan.cohort.layouts.scan import Scan
from medcyclegan.errors import InputError, raise_all

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class SplitPlan:
    """How the patients of a cohort are split.

    Attributes:
        val, test: shares of the patients to split off; 0 keeps the split of the layout.
        folds: k for cross-validation, without `val`; None for none.
        seed: another one gives another split.
    """

    val: float = 0.0
    test: float = 0.0
    folds: int | None = None
    seed: int = 0


AS_IN_LAYOUT = SplitPlan()


def with_split_of_patient(scans: Sequence[Scan]) -> list[Scan]:
    """Scans without a split get that of their patient, so that no patient is in two splits.

    Raises:
        InputError: a patient is on two sides.
    """
    sides: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for scan in scans:
        if scan.patient and scan.split:
            sides[scan.patient][scan.split].append(str(scan.image))
    raise_all(
        [
            f"patient '{patient}': " + "; ".join(f"{split}: {', '.join(found[split][:2])}" for split in sorted(found))
            for patient, found in sorted(sides.items())
            if len(found) > 1
        ],
        "a patient may be on one side only, but some are in more than one of train, val and test. Move them; or, if "
        "the same name does not mean the same patient, say what does with --patient ('(.*)': every file is another "
        "patient):",
    )
    return [replace(s, split=next(iter(sides[s.patient]))) if not s.split and s.patient in sides else s for s in scans]


def split_scans(scans: Sequence[Scan], plan: SplitPlan) -> tuple[list[Scan], dict[str, int]]:
    """The scans, each with its split, and patient -> fold, which is empty without folds.

    Raises:
        InputError: the layout has such a set of its own, pictures do not say whose they are, or see `split_patients`.
    """
    if plan.folds is not None and plan.val:
        raise InputError("with folds, each of them validates once.", "Leave out val, or the folds.")
    wanted = {"val": plan.val or plan.folds is not None, "test": plan.test}
    if both := [name for name, asked in wanted.items() if asked and any(scan.split == name for scan in scans)]:
        raise InputError(
            f"the layout has its own {' and '.join(both)} set.",
            "Keep it and leave out the share, or list the volumes in a CSV without a split.",
        )
    scans = [replace(scan, split=scan.split or "train") for scan in scans]
    if not any(wanted.values()):
        return scans, {}
    free = [scan for scan in scans if scan.split == "train"]
    if nameless := [str(scan.image) for scan in free if not scan.patient]:
        raise InputError(
            f"the names of {len(nameless)} pictures do not say whose they are, for example {nameless[0]}: slices of "
            "one patient could be parted.",
            "Say what names the patient with --patient REGEX ('(.*)': every file is another patient).",
        )
    stratum = strata((scan.patient, scan.domain, scan.site) for scan in free)
    split = split_patients(stratum, val=plan.val, test=plan.test, seed=plan.seed)
    scans = [replace(scan, split=split[scan.patient]) if scan.split == "train" else scan for scan in scans]
    if plan.folds is None:
        return scans, {}
    trained = {patient: stratum[patient] for patient, side in split.items() if side == "train"}
    return scans, fold_patients(trained, folds=plan.folds, seed=plan.seed)


def strata(scans: Iterable[tuple[str, str, str]]) -> dict[str, str]:
    """Patient -> stratum, from (patient, domain, site) of every scan; an empty site is an unknown one."""
    places: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for patient, domain, site in scans:
        places[patient].add((domain, site))
    return {patient: "; ".join(f"{d} {site}".strip() for d, site in sorted(found)) for patient, found in places.items()}


def split_patients(stratum: Mapping[str, str], *, val: float = 0.0, test: float = 0.0, seed: int = 0) -> dict[str, str]:
    """Patient -> "train", "val" or "test".

    A share above 0 gets the nearest whole number of patients, at least one. Of n patients in a stratum, a share s takes
    s n of them to within two.

    Args:
        stratum: patient -> what splits are balanced over.
        val, test: shares of all patients.
        seed: another one gives another split.

    Raises:
        InputError: the shares are none, or too few patients are left to train on.
    """
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise InputError(f"the shares val {val:g} and test {test:g} are to be 0 or more and together below 1.")
    order = _order(stratum, seed)
    counts = {name: max(1, round(share * len(order))) if share else 0 for name, share in (("test", test), ("val", val))}
    if sum(counts.values()) >= len(order):
        raise InputError(
            f"{len(order)} patients are too few for val {val:g} and test {test:g}: {counts['val']} and "
            f"{counts['test']} of them leave nobody to train on.",
            "Take smaller shares.",
        )
    split = dict.fromkeys(order, "train")
    for name, count in counts.items():
        left = [patient for patient in order if split[patient] == "train"]
        for patient in _evenly(left, count):
            split[patient] = name
    return split


def fold_patients(stratum: Mapping[str, str], *, folds: int, seed: int = 0) -> dict[str, int]:
    """Patient -> fold, 0 to `folds` - 1; the folds of a stratum, and of all, differ by at most one patient.

    Raises:
        InputError: fewer than 2 folds, or fewer patients than folds.
    """
    if not 2 <= folds <= len(stratum):
        raise InputError(f"{folds} folds of {len(stratum)} patients: from 2 folds to one per patient are possible.")
    return {patient: position % folds for position, patient in enumerate(_order(stratum, seed))}


def _order(stratum: Mapping[str, str], seed: int) -> list[str]:
    """The patients, stratum after stratum, both in the order of their hashes."""
    return sorted(stratum, key=lambda patient: (_hash(seed, stratum[patient]), stratum[patient], _hash(seed, patient)))


def _evenly(patients: Sequence[str], count: int) -> list[str]:
    """`count` of the patients, spread evenly over the sequence: those at which floor(count i / n) rises."""
    n = len(patients)
    return [patient for i, patient in enumerate(patients) if (i + 1) * count // n > i * count // n]


def _hash(seed: int, text: str) -> str:
    return hashlib.blake2b(f"{seed}\n{text}".encode(), digest_size=16).hexdigest()
