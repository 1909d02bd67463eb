"""SynthRAD's: a folder per case with `mr` or `cbct`, `ct` and `mask`, as .nii.gz or .mha, below task and region.

    Task1/brain/1BA001/{mr,ct,mask}.nii.gz        the ct is missing where it was kept for the challenge

Any folders of cases with files of these names are read alike. A challenge's id, 1BA001, names the task (1), the region
(B; HN, TH, AB, P) and the center (A): splits are balanced over the last two.
"""

from __future__ import annotations

import re

from medcyclegan.cohort.layouts.scan import Scan, require_scans, text
from medcyclegan.cohort.layouts.tree import Tree, is_volume, join
from medcyclegan.errors import InputError
from medcyclegan.io.reader import case_id

NAME = "synthrad"
SHAPE = "a folder per case with mr or cbct, ct and mask (SynthRAD), at any depth"

_KINDS = {"mr": ("MR", "a"), "cbct": ("CT", "a"), "ct": ("CT", "b")}
_ID = re.compile(r"^\d([A-Z]{1,2})([A-E])\d+$")


def recognize(tree: Tree) -> str | None:
    cases = _cases(tree)
    both = [case for case, files in cases.items() if len(_KINDS.keys() & files.keys()) > 1]
    return f"it has {len(cases)} folders with mr, cbct or ct, for example {both[0]}" if both else None


def read(tree: Tree) -> list[Scan]:
    found = []
    for place, files in _cases(tree).items():
        case = text(place.rpartition("/")[2])
        match = _ID.match(case)
        above = place.split("/")[-2] if "/" in place else ""
        site = "-".join(match.groups()) if match else above
        body = tree.path(join(place, files["mask"])) if "mask" in files else None
        for kind, (modality, domain) in _KINDS.items():
            if kind in files:
                path = tree.path(join(place, files[kind]))
                found.append(Scan(path, case, case, modality, kind, domain, site=site, body=body))
    return require_scans(found, tree, NAME)


def _cases(tree: Tree) -> dict[str, dict[str, str]]:
    """Folder of a case -> what is in it -> file name."""
    cases = {}
    for place in tree.every_folder():
        files: dict[str, str] = {}
        for name in tree.files(place):
            kind = case_id(name).lower()
            if is_volume(name) and kind in (*_KINDS, "mask"):
                if kind in files:
                    raise InputError(f"{tree.path(place)} holds {files[kind]} and {name}.", "Keep one of them.")
                files[kind] = name
        if place and _KINDS.keys() & files.keys():
            cases[place] = files
    return cases
