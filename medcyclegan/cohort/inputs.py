"""The inputs of a conversion: by case id its volumes, one per contrast, and its body mask.

A folder holds volumes, or is in the SynthRAD layout: a folder per case with `mr` or `cbct`, `ct` and `mask`, at any
depth. Of that one kind of volume is taken, the one that the model translates, and the masks are the bodies.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from medcyclegan.cohort.cases import MASKS_BY_ID, Case
from medcyclegan.cohort.layouts import synthrad
from medcyclegan.cohort.layouts.scan import Scan
from medcyclegan.errors import InputError, raise_all
from medcyclegan.io.dicom.files import split_choice
from medcyclegan.io.listing import list_volumes, volumes_at
from medcyclegan.io.tree import Tree, is_volume


def find_inputs(
    paths: Sequence[Path],
    masks: Path | None,
    *,
    channels: Sequence[str] = ("MR",),
    modality: str = "MR",
    domain: str = "a",
) -> dict[str, Case]:
    """Case id -> its files: a volume per channel, in order, and a mask on the grid of the first.

    Args:
        paths: volumes, or folders of which every volume is taken. Of several channels exactly one path each, in order.
        masks: folder of body masks with the same case ids; or one mask, for a single volume.
        channels: names of those that the model takes, in order.
        modality, domain: of the volumes that the model takes, which says what is taken from the SynthRAD layout.

    Raises:
        InputError: something does not exist, does not fit the others, is there twice, or lacks its mask.
    """
    given = [*paths, *([masks] if masks else [])]
    raise_all([f"{path}" for path in given if not split_choice(path)[0].exists()], "these inputs do not exist:")
    own: dict[str, Path] = {}
    if len(channels) > 1:
        files = _of_channels(paths, channels)
    else:
        files = {}
        for path in paths:
            volumes, bodies = _volumes(path, modality, domain)
            own |= bodies
            for case, file in volumes.items():
                if case in files:
                    raise InputError(
                        f"the case id '{case}' occurs twice: {files[case][0]} and {file}.", "Convert them apart."
                    )
                files[case] = (file,)
    bodies = own if masks is None else _masks(masks, list(files))
    return {case: Case(case, volumes, bodies.get(case)) for case, volumes in files.items()}


def _volumes(path: Path, modality: str, domain: str) -> tuple[dict[str, Path], dict[str, Path]]:
    """Case id -> volume, and case id -> the mask beside it, of a file or folder."""
    cases = _synthrad(path) if path.is_dir() else []
    if not cases:
        return volumes_at(path), {}
    scans = [scan for scan in cases if scan.modality == modality]
    # A CBCT and a CT are both CT: the model of one does not take the other.
    scans = [scan for scan in scans if scan.domain == domain] or scans
    found = Counter(scan.case for scan in scans)
    kind = " or ".join(sorted({scan.kind for scan in scans})) or {"MR": "mr"}.get(modality, "cbct or ct")
    problems = [f"{case}: there is no {kind}" for case in sorted({scan.case for scan in cases} - found.keys())]
    problems += [f"{case}: there are {count}" for case, count in sorted(found.items()) if count > 1]
    raise_all(
        problems, f"{path} is in the SynthRAD layout, and the model takes one {modality} of each case; convert apart:"
    )
    return {scan.case: scan.image for scan in scans}, {scan.case: scan.body for scan in scans if scan.body}


def _synthrad(folder: Path) -> list[Scan]:
    """The volumes of the cases below a folder in that layout; none where the folder has volumes itself."""
    tree = Tree(folder)
    if any(map(is_volume, tree.files())) or not synthrad.cases(tree):
        return []
    raise_all(
        [path.name for path in tree.contents(folders=True).series],
        f"{folder} is in the SynthRAD layout, and holds DICOM series besides; convert them apart:",
    )
    return synthrad.read(tree)


def _masks(masks: Path, cases: Sequence[str]) -> dict[str, Path]:
    if masks.is_dir():
        found = {scan.case: scan.body for scan in _synthrad(masks) if scan.body} or list_volumes(masks)
    elif len(cases) == 1:
        found = {cases[0]: masks}
    else:
        raise InputError(
            f"{masks} is one mask, and {len(cases)} volumes are to be converted.", "Give a folder of masks."
        )
    raise_all(
        [f"{case}: no mask in {masks}" for case in cases if case not in found],
        MASKS_BY_ID,
    )
    return found


def _of_channels(inputs: Sequence[Path], channels: Sequence[str]) -> dict[str, tuple[Path, ...]]:
    """Case id -> its file of every channel, in order.

    Raises:
        InputError: the wrong number of inputs, files beside folders, or a case that lacks a channel.
    """
    order = f"the model takes {len(channels)} contrasts, in this order: {', '.join(channels)}"
    if len(inputs) != len(channels):
        raise InputError(
            f"{len(inputs)} input{'s' * (len(inputs) != 1)} given, and {order}.",
            "Give one file or one folder for each.",
        )
    if len({path.resolve() for path in inputs}) < len(inputs):
        raise InputError(f"an input is given twice ({', '.join(map(str, inputs))}), and {order}.")
    found = [volumes_at(path) for path in inputs]
    # A file, or a folder that is one DICOM series, is the case itself, whatever it is called.
    single = [
        not path.is_dir() or list(volumes.values()) == [path] for path, volumes in zip(inputs, found, strict=True)
    ]
    named = [_short_ids(volumes, channel) for volumes, channel in zip(found, channels, strict=True)]
    raise_all(_misnamed(inputs, found, channels), f"the inputs are in another order; {order}:")
    if all(single):
        ids = [next(iter(own)) for own in named]
        case = ids[0] if len(set(ids)) == 1 else next(iter(found[0]))
        return {case: tuple(next(iter(volumes.values())) for volumes in found)}
    if any(single):
        raise InputError(
            f"some inputs are single volumes and some folders of volumes ({', '.join(map(str, inputs))}), and {order}.",
            "Give a volume for each, or a folder for each.",
        )
    problems = []
    for case in sorted(set().union(*named)):
        problems += [
            f"case '{case}': no {channel} in {path}"
            for channel, path, own in zip(channels, inputs, named, strict=True)
            if case not in own
        ]
    raise_all(problems, f"the inputs do not fit each other; {order}, and cases are matched by id:")
    return {case: tuple(own[case] for own in named) for case in sorted(named[0])}


def _misnamed(inputs: Sequence[Path], found: Sequence[Mapping[str, Path]], channels: Sequence[str]) -> Iterator[str]:
    """Inputs all of whose names end with the name of another channel than the one they were given as."""
    for path, volumes, channel in zip(inputs, found, channels, strict=True):
        for other in channels:
            ending = re.compile(rf"(?:^|.*[_\-. ]){re.escape(other)}", re.IGNORECASE)
            if other != channel and all(ending.fullmatch(case) for case in volumes):
                yield f"{path} was given as {channel}, and its name says {other}"


def _short_ids(volumes: Mapping[str, Path], channel: str) -> dict[str, Path]:
    """Case ids without the ending that all of a channel share: its name, or nnU-Net's channel number."""
    for ending in (re.escape(channel), r"\d{4}"):
        found = [re.fullmatch(rf"(.+)[_\-. ]({ending})", case, re.IGNORECASE) for case in volumes]
        if all(found) and len({match.group(2).lower() for match in found if match}) == 1:
            return {match.group(1): file for match, file in zip(found, volumes.values(), strict=True) if match}
    return dict(volumes)
