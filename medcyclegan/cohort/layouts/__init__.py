"""Folder conventions of hospitals and challenges, one module each, detected or named by the user.

A layout says whether a tree of files looks like its convention, and which scans it holds. Where two layouts fit, the
user is asked; nothing is guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from medcyclegan.cohort.layouts import bids, cyclegan, decathlon, dicom, folders, synthrad, table
from medcyclegan.cohort.layouts.scan import Scan
from medcyclegan.errors import InputError, few
from medcyclegan.io.dicom.files import split_choice
from medcyclegan.io.tree import Tree, is_picture, is_volume, join


class Layout(Protocol):
    """One folder convention: a module of this package."""

    NAME: str
    SHAPE: str  # what it looks like, in one line

    def recognize(self, tree: Tree) -> str | None:
        """Why the tree looks like this convention, or None."""
        ...

    def read(self, tree: Tree) -> list[Scan]:
        """Every scan.

        Raises:
            InputError: the tree is not of this convention, or contradicts itself.
        """
        ...


LAYOUTS: dict[str, Layout] = {
    layout.NAME: layout for layout in (folders, cyclegan, decathlon, synthrad, bids, dicom, table)
}


@dataclass(frozen=True)
class Found:
    """The scans found under a root.

    Attributes:
        layout: its name.
        reason: why this layout was chosen.
        scans: sorted by domain, modality, kind and case.
        left_out: number of volumes under the root that do not belong to the layout, by folder.
    """

    layout: str
    reason: str
    scans: tuple[Scan, ...]
    left_out: dict[str, int]

    def notes(self) -> list[str]:
        """Notes for the user, one line each."""
        places = [f"{count} in {place or 'the root'}" for place, count in self.left_out.items()]
        return [f"volumes that the layout {self.layout} has no place for: {few(places, 5)}"] if places else []


def read_layout(root: Path, name: str | None = None) -> Found:
    """Every scan under a root.

    Args:
        root: a folder, or a CSV.
        name: one of `LAYOUTS`; by default the one that fits.

    Raises:
        InputError: no layout fits or more than one does, there is none of that name, or the tree contradicts itself.
    """
    if name is not None and name not in LAYOUTS:
        raise InputError(f"there is no layout '{name}'.", f"Allowed: {', '.join(LAYOUTS)}.")
    try:
        tree = Tree(root)
        _refuse_names(tree)
        return _read(tree, name)
    except OSError as error:
        raise InputError(
            f"{error.filename or root} cannot be read: {error.strerror or error}.",
            "Allow reading it, or move it away from this root.",
        ) from None


def fitting(tree: Tree) -> dict[str, str]:
    """The layouts that fit, and why."""
    return {layout.NAME: reason for layout in LAYOUTS.values() if (reason := layout.recognize(tree))}


def no_data(path: Path, reason: str) -> InputError:
    """The error for a path that is not data, listing every accepted kind of data."""
    known = [
        "a prepared folder: one with prepared.json, which `medcyclegan prepare` writes last",
        "a datalist: a .json file with the lists a and b, which `medcyclegan datalist` writes",
        *(f"layout {layout.NAME}: {layout.SHAPE}" for layout in LAYOUTS.values()),
    ]
    heading = f"{path} is no data that is known: {reason}. Give two folders of volumes as --a DIR --b DIR, or one of:"
    return InputError("\n  - ".join([heading, *known]))


def _read(tree: Tree, name: str | None) -> Found:
    root = tree.root
    if name is None:
        found = fitting(tree)
        if len(found) > 1:
            reasons = "; ".join(f"{layout} ({reason})" for layout, reason in found.items())
            raise InputError(f"{root} fits more than one layout: {reasons}.", "Say which with --layout.")
        if not found:
            raise no_data(root, f"it fits no layout; it holds {tree.shown() or 'nothing'}")
        ((name, reason),) = found.items()
    else:
        reason = "named by the user"
    scans = LAYOUTS[name].read(tree)
    order = sorted(scans, key=lambda s: (s.domain, s.modality, s.kind, s.split, s.case, str(s.image)))
    return Found(name, reason, tuple(order), _left_out(tree, order))


def _refuse_names(tree: Tree) -> None:
    """Names become case ids, which are written as text."""
    for place in tree.every_folder():
        for name in sorted([*tree.folders(place), *tree.files(place)]):
            try:
                name.encode()
            except UnicodeEncodeError:
                raise InputError(f"a name in {tree.path(place)} is not text: {name!a}.", "Rename it.") from None


def _left_out(tree: Tree, scans: list[Scan]) -> dict[str, int]:
    used = {split_choice(scan.image)[0] for scan in scans} | {scan.body for scan in scans if scan.body}
    counts: dict[str, int] = {}
    for place in tree.every_folder():
        names = tree.files(place)
        volumes = [n for n in names if is_volume(n)]
        unused = [n for n in volumes or [n for n in names if is_picture(n)] if tree.path(join(place, n)) not in used]
        if unused and not any(parent in used for parent in (tree.path(place), *tree.path(place).parents)):
            counts[place] = len(unused)
    for place in tree.folders():
        folder = tree.path(place)
        if not any(folder == path or folder in path.parents for path in used) and tree.holds_dicom(place):
            counts[place] = counts.get(place, 0) + 1
    return counts
