"""DICOM series by patient: a folder per patient, with the files of any number of series anywhere below it.

What a series is comes from its header: the modality, the scanner, and from its description the kind (T1w, T2w, FLAIR,
or the description itself). Localizers, reports and other modalities are left out. Two folders whose headers name one
patient are one patient; nothing of the patient's identity is kept or shown.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path

from medcyclegan.cohort.layouts import bids, cyclegan
from medcyclegan.cohort.layouts.folders import is_named
from medcyclegan.cohort.layouts.scan import Scan, holds_scans, patient_of, require_scans, text, unite_patients
from medcyclegan.errors import InputError
from medcyclegan.io.dicom.series import Series, list_series
from medcyclegan.io.tree import Tree

NAME = "dicom"
SHAPE = "a folder per patient with DICOM series in it"

_KINDS = (
    (r"flair", "FLAIR"),
    (r"t2", "T2w"),
    (r"t1|mp-?rage|bravo|spgr|tfl|vibe", "T1w"),
)
_AGENT = re.compile(r"(^|[^a-z])(gd|gad\w*|ce|post|km|\+c|c\+)([^a-z]|$)", re.IGNORECASE)


def recognize(tree: Tree) -> str | None:
    if cyclegan.recognize(tree) or bids.recognize(tree):
        return None
    patients = [name for name in tree.folders() if not is_named(name)]
    # A folder with volumes of another kind is no folder of series, however much DICOM lies beside.
    if any(holds_scans(tree, name, pictures=False) for name in patients):
        return None
    first = next((name for name in patients if tree.holds_dicom(name)), None)
    return f"the folder {first} holds DICOM" if first else None


def read(tree: Tree) -> list[Scan]:
    found: list[Scan] = []
    identities: dict[str, set[str]] = defaultdict(set)
    for name in tree.folders():
        folder = tree.path(name)
        if is_named(name) or not tree.holds_dicom(name):
            continue
        every = list_series(folder)
        scans = [series for series in every if series.kind == "scan" and series.modality in ("MR", "CT")]
        patient = patient_of(text(name))
        identities[patient] |= {series.patient_digest for series in every if series.patient_digest}
        for series in scans:
            # With one scan, what else is there is passed over by the reader in the same way.
            whole = len([s for s in every if s.kind == "scan"]) == 1
            if not whole and not series.uid:
                raise InputError(
                    f"{folder} holds several series, and one has no SeriesInstanceUID by which to name it: {series}.",
                    "Give each series a folder of its own.",
                )
            image = folder if whole else Path(f"{folder}#{series.uid_end}")
            case = text(name) if len(scans) == 1 else f"{text(name)}_{series.uid_end}"
            found.append(Scan((image,), case, patient, series.modality, _kind(series), site=series.scanner))
    return require_scans(_united(found, identities), tree, NAME)


def _kind(series: Series) -> str:
    if series.modality == "CT":
        return "CT"
    description = series.description.lower()
    kind = next((kind for pattern, kind in _KINDS if re.search(pattern, description)), series.description or "MR")
    return f"{kind} contrast agent" if _AGENT.search(description) else kind


def _united(scans: list[Scan], identities: dict[str, set[str]]) -> list[Scan]:
    """The same scans with one patient for all folders whose headers name the same one."""
    # An anonymizer that gives everybody the same id says nothing.
    folders = Counter(digest for digests in identities.values() for digest in digests)
    useless = (
        {digest for digest, count in folders.items() if count == len(identities)} if len(identities) > 1 else set()
    )
    owners = ([patient for patient, own in identities.items() if digest in own] for digest in folders.keys() - useless)
    return unite_patients(scans, owners)
