"""The Brain Imaging Data Structure's: `sub-01/[ses-1/]anat/sub-01_T1w.nii.gz`, CT in `ct/` as `..._ct.nii.gz`.

The suffix after the last underscore is the kind of scan; with a contrast agent (`ce-`) it is another kind. Sites come
from the columns site, center, scanner or manufacturer of `participants.tsv`. Everything but anatomical MR and CT
is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from medcyclegan.cohort.layouts.scan import Scan, require_scans, text
from medcyclegan.documents import read_table
from medcyclegan.errors import InputError
from medcyclegan.io.reader import case_id
from medcyclegan.io.tree import Tree, is_volume, join

NAME = "bids"
SHAPE = "sub-*/anat/*_T1w.nii.gz and sub-*/ct/*_ct.nii.gz (BIDS)"

_FOLDERS = ("anat", "ct")
_SUFFIXES = {
    **dict.fromkeys(
        ("T1w", "T2w", "FLAIR", "PDw", "PDT2", "T2starw", "UNIT1", "inplaneT1", "inplaneT2", "angio"), "MR"
    ),
    "ct": "CT",
}
_SITES = ("site", "center", "centre", "scanner", "manufacturer")


def recognize(tree: Tree) -> str | None:
    found = next(_files(tree), None)
    return f"it has {found[2]}" if found else None


def read(tree: Tree) -> list[Scan]:
    sites = _read_sites(tree)
    found = []
    for subject, session, place in _files(tree):
        stem = text(case_id(place.rpartition("/")[2]))
        *entities, suffix = stem.split("_")
        agent = [part for part in entities if part.startswith("ce-")]
        if subject != entities[0] or (session and session not in entities):
            raise InputError(f"{tree.path(place)} lies in {join(subject, session)}, but its name says otherwise.")
        kind = "_".join([*agent, suffix])
        case = "_".join(part for part in entities if part not in agent)
        modality = _SUFFIXES[suffix]
        found.append(Scan((tree.path(place),), case, subject, modality, kind, site=sites.get(subject, "")))
    return require_scans(found, tree, NAME)


def _files(tree: Tree) -> Iterator[tuple[str, str, str]]:
    """Subject, session (or ""), and place of every anatomical MR and CT."""
    for subject in (name for name in tree.folders() if re.fullmatch(r"sub-[^/]+", name)):
        sessions = [name for name in tree.folders(subject) if name.startswith("ses-")]
        for session in ("", *sessions):
            for folder in _FOLDERS:
                place = join(subject, session, folder)
                for name in tree.files(place):
                    if is_volume(name) and case_id(name).rpartition("_")[2] in _SUFFIXES:
                        yield text(subject), text(session), join(place, name)


def _read_sites(tree: Tree) -> dict[str, str]:
    """Subject -> site and scanner, from participants.tsv; empty where it is missing or does not say."""
    if "participants.tsv" not in tree.files():
        return {}
    path = tree.path("participants.tsv")
    rows = read_table(path, f"table {path}", delimiter="\t")[1]
    found = {}
    for row in rows:
        sites = [row[key] for key in row if key.lower() in _SITES and row[key] not in ("", "n/a")]
        found[text(row.get("participant_id") or "")] = " ".join(sites)
    return found
