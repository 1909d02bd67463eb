"""The original CycleGAN's: `trainA/` and `trainB/`, and `testA/`, `testB/`, `valA/`, `valB/` if there are any."""

from __future__ import annotations

from medcyclegan.cohort.layouts.scan import Scan, require_scans, scans_below
from medcyclegan.io.tree import Tree

NAME = "cyclegan"
SHAPE = "trainA and trainB, and testA, testB, valA, valB where there are some"

_FOLDERS = {f"{split}{letter}": (split, letter.lower()) for split in ("train", "val", "test") for letter in "AB"}


def recognize(tree: Tree) -> str | None:
    found = [name for name in tree.folders() if name in _FOLDERS]
    return f"it has the folders {', '.join(found)}" if {"trainA", "trainB"} <= set(found) else None


def read(tree: Tree) -> list[Scan]:
    found = []
    for folder in tree.folders():
        if folder in _FOLDERS:
            split, domain = _FOLDERS[folder]
            found += [
                Scan((path,), case, patient, domain=domain, split=split)
                for path, case, patient in scans_below(tree, folder)
            ]
    return require_scans(found, tree, NAME)
