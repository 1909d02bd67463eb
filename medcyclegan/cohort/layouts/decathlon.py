"""The Medical Segmentation Decathlon's and nnU-Net's: `dataset.json` beside `imagesTr/` and `imagesTs/`.

nnU-Net gives every channel of a case a file of its own: `case_0000.nii.gz`, `case_0001.nii.gz`; `channel_names` (or
`modality`) in dataset.json says what they show. One such dataset may hold both domains as channels, or several lie
beside each other, each with what its channels are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from medcyclegan.cohort.layouts.scan import Scan, modality_of, patient_of, require_scans, text
from medcyclegan.documents import read_json
from medcyclegan.errors import InputError, raise_all
from medcyclegan.io.reader import case_id
from medcyclegan.io.tree import Tree, is_volume, join

NAME = "decathlon"
SHAPE = "dataset.json beside imagesTr, or several such folders (Decathlon, nnU-Net)"

_SPLITS = {"imagesTr": "train", "imagesTs": "test"}
_CHANNEL = re.compile(r"^(.+)_(\d{4})$")


def recognize(tree: Tree) -> str | None:
    homes = _homes(tree)
    return f"it has dataset.json and imagesTr in {', '.join(home or 'itself' for home in homes)}" if homes else None


def read(tree: Tree) -> list[Scan]:
    found: list[Scan] = []
    for home in _homes(tree):
        content = _description(tree, home)
        channels, listed = _channels(content), _listed(content)
        present: set[str] = set()
        for folder in _SPLITS:
            names = {f"{folder}/{name}" for name in tree.files(join(home, folder)) if is_volume(name)}
            # A list of cases knows whether "x_0001" is channel 1 of x, or a case of this name.
            found += _scans(tree, join(home, folder), channels, whole=not names.isdisjoint(listed))
            present |= names
        raise_all(
            [place for place in listed if place not in present and not _split_name(place, present)],
            f"{tree.path(join(home, 'dataset.json'))} lists files that are not there:",
        )
    return require_scans(found, tree, NAME)


def _scans(tree: Tree, place: str, channels: dict[int, str], *, whole: bool) -> Iterator[Scan]:
    """The volumes of one folder of images; with `whole`, a file is a case and no channel of one."""
    names = [name for name in tree.files(place) if is_volume(name)]
    numbered = not whole and all(_CHANNEL.match(case_id(name)) for name in names)
    if names and not numbered and len(channels) > 1:
        raise InputError(
            f"{tree.path(place)}: dataset.json names the channels {', '.join(channels.values())}, but the "
            "files have no channel suffix (_0000): the channels lie in one 4D file each.",
            "Split them into one 3D file per channel.",
        )
    for name in names:
        path, case, number = tree.path(join(place, name)), text(case_id(name)), 0
        if numbered and (match := _CHANNEL.match(case)):
            case, number = match.group(1), int(match.group(2))
        if number not in channels:
            raise InputError(
                f"{path} is channel {number}, and dataset.json names only "
                f"{', '.join(f'{n}: {channel}' for n, channel in channels.items()) or 'none'}."
            )
        kind = channels[number]
        split = _SPLITS[place.rpartition("/")[2]]
        yield Scan((path,), case, patient_of(case), modality_of(kind), kind, split=split)


def _homes(tree: Tree) -> list[str]:
    return [
        home
        for home in ("", *tree.folders())
        if "dataset.json" in tree.files(home) and "imagesTr" in tree.folders(home)
    ]


def _description(tree: Tree, home: str) -> dict[str, object]:
    path = tree.path(join(home, "dataset.json"))
    content = read_json(path, f"description {path}")
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold an object.")
    return content


def _channels(content: dict[str, object]) -> dict[int, str]:
    """Number -> name of every channel; nnU-Net 2 says channel_names, its older form and the Decathlon modality."""
    names = content.get("channel_names", content.get("modality", {}))
    if not isinstance(names, dict) or not all(str(number).isdigit() for number in names):
        raise InputError("dataset.json: channel_names (or modality) is to be an object of number: name.")
    return {int(number): str(name) for number, name in names.items()} or {0: ""}


def _listed(content: dict[str, object]) -> list[str]:
    """imagesTr/FILE of every case that the Decathlon's list names; nnU-Net has no list."""
    entries = content.get("training", [])
    listed = [entry.get("image") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return [str(PurePosixPath(image)) for image in listed if isinstance(image, str)]


def _split_name(place: str, present: set[str]) -> bool:
    """True if the case that the list names is there as channels of their own."""
    stem = case_id(place)
    return any(re.fullmatch(rf"imagesTr/{re.escape(stem)}_\d{{4}}\..+", other) for other in present)
