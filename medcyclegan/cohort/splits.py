"""Who is trained on, who validates, who is kept for the end: whole patients, by a seed, balanced over sites.

Words used here. *Stratum*: patients of the same sites with scans in the same domains. *Fold*: one of k parts, each of
which validates once.

The order in a stratum is that of a hash of seed and patient, so the split depends on neither the order in which a
machine lists files nor a random generator.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from medcyclegan.errors import InputError

SPLITS = ("train", "val", "test")


def strata(scans: Iterable[tuple[str, str, str]]) -> dict[str, str]:
    """Patient -> stratum, from (patient, domain, site) of every scan; an empty site is an unknown one."""
    told: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for patient, domain, site in scans:
        told[patient].add((domain, site))
    return {patient: "; ".join(f"{domain} {site}".strip() for domain, site in sorted(p)) for patient, p in told.items()}


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
