"""Two folders or more, named after what lies in them: `mr/` and `ct/`, `a/` and `b/`, `t1/` and `t2/`."""

from __future__ import annotations

from medcyclegan.cohort.layouts.scan import MODALITIES, Scan, holds_scans, modality_of, require_scans, scans_below
from medcyclegan.io.tree import Tree

NAME = "folders"
SHAPE = "two folders named mr and ct, a and b, or t1 and t2, with volumes, DICOM or 2D images"

_DOMAINS = {"a": "a", "domaina": "a", "source": "a", "b": "b", "domainb": "b", "target": "b"}


def recognize(tree: Tree) -> str | None:
    named = _named(tree)
    return f"it has the folders {', '.join(named)}" if len(named) > 1 else None


def read(tree: Tree) -> list[Scan]:
    found = []
    for folder in _named(tree):
        domain, modality = _DOMAINS.get(folder.lower(), ""), modality_of(folder)
        found += [
            Scan((path,), case, patient, modality, folder if modality else "", domain)
            for path, case, patient in scans_below(tree, folder)
        ]
    return require_scans(found, tree, NAME)


def is_named(folder: str) -> bool:
    """True if a folder's name says what lies in it rather than whom it is of."""
    return folder.lower() in MODALITIES or folder.lower() in _DOMAINS


def _named(tree: Tree) -> list[str]:
    return [name for name in tree.folders() if is_named(name) and (holds_scans(tree, name) or tree.holds_dicom(name))]
