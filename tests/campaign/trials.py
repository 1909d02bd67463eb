"""Every format by its name, and one trial of it: change, then judge."""

from __future__ import annotations

from pathlib import Path
from random import Random

from campaign.formats import FORMATS, VolumeFormat
from campaign.records import RECORDS, Record
from campaign.verbs import VERBS, Verb

EVERY: dict[str, VolumeFormat | Record | Verb] = {**FORMATS, **RECORDS, **VERBS}


def make(name: str, seed: int, folder: Path) -> str:
    """The input of a trial, in an empty folder; the same for the same seed. Returns what was changed."""
    return EVERY[name].change(Random(f"{name}/{seed}"), folder)


def trial(name: str, seed: int, folder: Path) -> tuple[str, str, str]:
    said = make(name, seed, folder)
    return said, *EVERY[name].judge(folder)
