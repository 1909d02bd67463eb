"""One scan as described by its folder convention, and the patient and kind of image derived from names.

Words used here. *Kind*: the kind of scan as the layout names it: "T1w", "CT", "cbct", a channel's name.
*Patient*: who was scanned, as derived from names; scans of one patient stay in one split.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from medcyclegan.errors import InputError, raise_all
from medcyclegan.io.reader import case_id
from medcyclegan.io.tree import Tree, is_picture, is_volume, join

# Words in the names of files, folders and channels -> modality.
MODALITIES = {
    **dict.fromkeys(("mr", "mri", "t1", "t1w", "t1gd", "t1ce", "t2", "t2w", "flair", "pd", "pdw"), "MR"),
    **dict.fromkeys(("ct", "cbct"), "CT"),
}
_WORDS = "|".join(sorted(MODALITIES, key=len, reverse=True))
# "head_003" is a slice of "head"; "003" names no patient.
_SLICE = re.compile(r"^(?:(.*?)[_\-. ])?(?:slice|img|image|frame|s|z)?[_\-. ]?\d+$", re.IGNORECASE)
# One of these words at either end of a name is the kind of scan, not part of the patient's name.
_KIND_AT_END = re.compile(rf"^(?:(?:{_WORDS})[_\-. ]+)?(.+?)(?:[_\-. ]+(?:{_WORDS}))?$", re.IGNORECASE)
_MASK = re.compile(r"[_\-. ](?:mask|seg|segmentation|label|labels)$", re.IGNORECASE)


@dataclass(frozen=True)
class Scan:
    """One volume of a cohort, or those of one patient that were joined as channels.

    Attributes:
        images: of each channel the file, DICOM folder, or `FOLDER#DIGITS` for one series of several.
        case: id, unique within its domain; serves as a file name.
        patient: who was scanned; "" where names do not tell, as with numbered pictures.
        modality: "MR", "CT", or "" where the layout does not say.
        kind: as the layout names it; "" where it does not say.
        domain: "a", "b", or "" where the modality decides.
        split: "train", "val", "test", or "" where the layout does not say.
        site: hospital, scanner or body region that splits are balanced over; "" where unknown.
        body: file of its body mask.
    """

    images: tuple[Path, ...]
    case: str
    patient: str
    modality: str = ""
    kind: str = ""
    domain: str = ""
    split: str = ""
    site: str = ""
    body: Path | None = None

    @property
    def image(self) -> Path:
        """Of the first channel."""
        return self.images[0]


def modality_of(name: str) -> str:
    """The modality that the name of a folder or channel stands for, "" for any other name."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    found = {MODALITIES[word] for word in words if word in MODALITIES}
    return found.pop() if len(found) == 1 else ""


def patient_of(name: str) -> str:
    """The patient, from a case id: without a word for the kind of scan at either end.

    `p07_mr` and `p07_ct` are one patient. Merging two patients only keeps them in one split; splitting one would leak.
    """
    match = _KIND_AT_END.match(text(name))
    return match.group(1) if match else text(name)


def patient_of_picture(name: str) -> str:
    """The patient of a 2D image, from its id without the slice number; "" if only a number is left."""
    match = _SLICE.match(patient_of(name))
    return patient_of(match.group(1) or "") if match else patient_of(name)


def unite_patients(scans: Iterable[Scan], groups: Iterable[Iterable[str]]) -> list[Scan]:
    """The same scans, with one patient, the first by name, for all patients of a group; groups that meet are one."""
    first: dict[str, str] = {}

    def first_of(patient: str) -> str:
        while patient in first:
            patient = first[patient]
        return patient

    for group in groups:
        owners = sorted({first_of(patient) for patient in group})
        first |= dict.fromkeys(owners[1:], owners[0])
    return [replace(scan, patient=first_of(scan.patient)) for scan in scans]


def text(name: str) -> str:
    """One spelling of what looks the same: some file systems store an accent as a letter of its own (Unicode NFC)."""
    return unicodedata.normalize("NFC", name)


def scans_below(tree: Tree, place: str) -> Iterator[tuple[Path, str, str]]:
    """(Path, case, patient) of every scan in a folder of scans: volumes, 2D images, DICOM, or a folder per patient.

    A folder in it that holds volumes is a patient, whose cases are named after both; DICOM below it is one scan.

    Raises:
        InputError: masks or labels lie between the volumes, or two files are the same case.
    """
    found = list(_scans(tree, place))
    names = [path.name for path, _, _ in found]
    raise_all(
        [f"{name}" for name in names if _MASK.search(case_id(name))],
        f"{tree.path(place)} holds masks or labels between the volumes, which would be learned as volumes; move them "
        "away, or list volumes and body masks in a CSV:",
    )
    twins = Counter(case for _, case, _ in found)
    raise_all(
        [
            f"'{case}': {', '.join(str(path) for path, other, _ in found if other == case)}"
            for case, count in twins.items()
            if count > 1
        ],
        f"{tree.path(place)} holds more than one volume of the same case id; keep one or rename the others:",
    )
    yield from found


def _scans(tree: Tree, place: str) -> Iterator[tuple[Path, str, str]]:
    here = tree.contents(place)
    if here.slices:
        if here.volumes or tree.folders(place):
            raise InputError(
                f"{tree.path(place)} holds DICOM files beside volumes or folders.",
                "Give each DICOM series a folder of its own.",
            )
        case = text(place.rpartition("/")[2])
        yield tree.path(place), case, patient_of(case)
        return
    # Pictures beside volumes are previews of them.
    for path in here.volumes or here.pictures:
        case = text(case_id(path))
        yield path, case, patient_of(case) if here.volumes else patient_of_picture(case)
    for path in here.archives:
        case = text(case_id(path))
        yield path, case, patient_of(case)
    for name in tree.folders(place):
        inside = join(place, name)
        case, patient = text(name), patient_of(text(name))
        if not holds_scans(tree, inside, pictures=False) and tree.holds_dicom(inside):
            yield tree.path(inside), case, patient
            continue
        below = list(_scans(tree, inside)) if holds_scans(tree, inside) else []
        for path, part, _ in below:
            yield path, case if len(below) == 1 else f"{case}_{part}", patient


def holds_scans(tree: Tree, place: str, *, pictures: bool = True) -> bool:
    """True if a volume, or a 2D image where `pictures`, lies in `place` or below; DICOM is not looked for."""
    names = (name for folder in tree.every_folder(place) for name in tree.files(folder))
    return any(is_volume(name) or (pictures and is_picture(name)) for name in names)


def require_scans(scans: list[Scan], tree: Tree, name: str) -> list[Scan]:
    if not scans:
        raise InputError(f"{tree.root} has the layout {name}, but no volume was found in it.")
    return scans
