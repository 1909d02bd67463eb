"""Splits by patient: whole, seeded, balanced, the same on every machine."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from medcyclegan.cohort.splits import fold_patients, split_patients, strata
from medcyclegan.errors import InputError


def patients(**sites: int) -> dict[str, str]:
    """Patient -> stratum, so many of each site."""
    return {f"{site}{i}": f"a {site}" for site, count in sites.items() for i in range(count)}


def test_a_stratum_is_the_domains_and_sites_of_a_patient() -> None:
    scans = [("p", "b", "X"), ("p", "a", "X"), ("p", "a", "X"), ("q", "a", ""), ("r", "a", "Y")]
    assert strata(scans) == {"p": "a X; b X", "q": "a", "r": "a Y"}


def test_the_split_is_this_one_on_every_machine() -> None:
    # Worked out once by hand of the rule: order by BLAKE2b of "seed\nname", every 5th, then every 4th of the rest.
    split = split_patients({f"p{i}": "a" for i in range(10)}, val=0.2, test=0.2, seed=0)
    import hashlib

    order = sorted(split, key=lambda p: hashlib.blake2b(f"0\n{p}".encode(), digest_size=16).hexdigest())
    assert [p for p in order if split[p] == "test"] == [order[4], order[9]]
    rest = [p for p in order if split[p] != "test"]
    assert [p for p in rest if split[p] == "val"] == [rest[3], rest[7]]


def test_listing_order_does_not_matter_and_the_seed_does() -> None:
    stratum = patients(X=40, Y=25)
    shuffled = list(stratum.items())
    random.Random(1).shuffle(shuffled)
    split = split_patients(stratum, val=0.2, test=0.1, seed=3)
    assert split_patients(dict(shuffled), val=0.2, test=0.1, seed=3) == split
    assert split_patients(stratum, val=0.2, test=0.1, seed=4) != split
    folds = fold_patients(stratum, folds=5, seed=3)
    assert fold_patients(dict(shuffled), folds=5, seed=3) == folds
    assert fold_patients(stratum, folds=5, seed=4) != folds


@pytest.mark.parametrize("seed", range(20))
def test_sites_are_balanced(seed: int) -> None:
    stratum = patients(X=60, Y=30, Z=10)
    split = split_patients(stratum, val=0.1, test=0.2, seed=seed)
    assert Counter(split.values()) == {"train": 70, "val": 10, "test": 20}
    for site, count in (("X", 60), ("Y", 30), ("Z", 10)):
        of_site = Counter(split[patient] for patient in split if patient.startswith(site))
        assert abs(of_site["test"] - 0.2 * count) <= 1
        assert abs(of_site["val"] - 0.1 * count) <= 2


def test_single_patients_of_a_site_are_drawn_at_random() -> None:
    stratum = {f"p{i}": f"a site {i}" for i in range(10)}
    drawn = {p for seed in range(40) for p, s in split_patients(stratum, val=0.1, seed=seed).items() if s == "val"}
    assert len(drawn) > 7


@pytest.mark.parametrize("count", [5, 7, 12])
def test_folds_are_even_within_and_over_sites(count: int) -> None:
    stratum = patients(X=3 * count + 1, Y=count + 2)
    folds = fold_patients(stratum, folds=count, seed=1)
    for site in ("X", "Y", ""):
        sizes = Counter(fold for patient, fold in folds.items() if patient.startswith(site))
        assert set(sizes) == set(range(count)) and max(sizes.values()) - min(sizes.values()) <= 1


def test_shares_and_folds_at_their_limits() -> None:
    stratum = patients(X=4)
    assert Counter(split_patients(stratum, val=0.25, test=0.5).values()) == {"train": 1, "val": 1, "test": 2}
    assert Counter(split_patients(stratum).values()) == {"train": 4}
    # A small share is one patient at least.
    assert Counter(split_patients(patients(X=5), val=0.01).values()) == {"train": 4, "val": 1}
    with pytest.raises(InputError, match=r"2 patients are too few.*leave nobody to train on"):
        split_patients(patients(X=2), val=0.01, test=0.01)
    assert Counter(fold_patients(stratum, folds=2).values()) == {0: 2, 1: 2}
    assert set(fold_patients(stratum, folds=4).values()) == {0, 1, 2, 3}
    for folds in (0, 1, 5):
        with pytest.raises(InputError, match="from 2 folds to one per patient"):
            fold_patients(stratum, folds=folds)
    # Without a seed it is 0, so that a split is the same split tomorrow.
    many = patients(X=30)
    assert split_patients(many, val=0.2) == split_patients(many, val=0.2, seed=0)
    assert fold_patients(many, folds=5) == fold_patients(many, folds=5, seed=0)


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (-0.1, 0), (0, 1), (float("nan"), 0)])
def test_impossible_shares(val: float, test: float) -> None:
    with pytest.raises(InputError, match="together below 1"):
        split_patients(patients(X=5), val=val, test=test)
