"""SynthRAD's: a folder per case with `mr` or `cbct`, `ct` and `mask`, as .nii.gz or .mha, below task and region.

    Task1/brain/1BA001/{mr,ct,mask}.nii.gz        the ct is missing where it was kept for the challenge

Any folders of cases with files of these names are read alike. A challenge's id, 1BA001, names the task (1), the region
(B; HN, TH, AB, P) and the center (A): splits are balanced over the last two.
"""

from __future__ import annotations

import re
from pathlib import Path

from medcyclegan.cohort.layouts.scan import Scan, require_scans, text
from medcyclegan.io.tree import Tree, named_volumes

NAME = "synthrad"
SHAPE = "a folder per case with mr or cbct, ct and mask (SynthRAD), at any depth"

_KINDS = {"mr": ("MR", "a"), "cbct": ("CT", "a"), "ct": ("CT", "b")}
_ID = re.compile(r"^\d([A-Z]{1,2})([A-E])\d+$")


def recognize(tree: Tree) -> str | None:
    found = cases(tree)
    both = [case for case, files in found.items() if len(_KINDS.keys() & files.keys()) > 1]
    return f"it has {len(found)} folders with mr, cbct or ct, for example {both[0]}" if both else None


def read(tree: Tree) -> list[Scan]:
    found = []
    for place, files in cases(tree).items():
        case = text(place.rpartition("/")[2])
        match = _ID.match(case)
        above = place.split("/")[-2] if "/" in place else ""
        site = "-".join(match.groups()) if match else above
        for kind, (modality, domain) in _KINDS.items():
            if kind in files:
                body = files.get("mask")
                found.append(Scan((files[kind],), case, case, modality, kind, domain, site=site, body=body))
    return require_scans(found, tree, NAME)


def cases(tree: Tree) -> dict[str, dict[str, Path]]:
    """Folder of a case -> what is in it -> file."""
    found = named_volumes(tree, (*_KINDS, "mask"))
    return {place: files for place, files in found.items() if _KINDS.keys() & files.keys()}
