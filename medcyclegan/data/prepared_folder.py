"""A prepared folder: every case of a cohort once, on its working grid, memory-mapped.

    PREPARED/prepared.json      the record: what was prepared, how, the key of every case, and what failed
    PREPARED/landmarks.json     decile shares of every volume, for the landmarks of "nyul"
    PREPARED/a/<case>/...       a case, see `stored_case`; likewise b, and pairs_a and pairs_b, the validation pairs
    PREPARED/pairs_b/<case>/registration.png    how b lies on a, where pairs are registered
    PREPARED/.lock              see `atomic.folder_lock`: exclusive for preparation, shared for training

The record is written last. A case whose key is not in the record is of another preparation, for example
an interrupted one, and the folder is refused.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medcyclegan.atomic import folder_lock, sweep
from medcyclegan.data.slices import Slices
from medcyclegan.data.stored_case import FILES, StoredCase, key_digest, open_case
from medcyclegan.documents import read_json
from medcyclegan.errors import InputError, raise_all
from medcyclegan.progress import Progress
from medcyclegan.transforms.intensity import Scaler
from medcyclegan.transforms.pipeline import Preparation

FORMAT = "medcyclegan-prepared"
VERSION = 5  # raise it when preparing the same input gives other values
GROUPS = ("a", "b", "pairs_a", "pairs_b")


@dataclass(frozen=True)
class PreparedCohort:
    """A prepared folder.

    Attributes:
        folder: where it lies.
        preparations: "a" and "b" -> how each of their channels was prepared, in order.
        cases: each of `GROUPS` -> its cases, sorted by id; `pairs_a` and `pairs_b` run in parallel.
        failed: "group/case" -> why it could not be prepared.
        warnings: what was suspicious, one line each.
        register_pairs: whether b of each pair was moved onto a.
        common: id of every patient in a and b on one grid -> the slices that both halves show.
        digest: of the record; changes with every preparation that changed anything.
    """

    folder: Path
    preparations: dict[str, tuple[Preparation, ...]]
    cases: dict[str, tuple[StoredCase, ...]]
    failed: dict[str, str]
    warnings: tuple[str, ...]
    register_pairs: bool = False
    common: dict[str, Slices] = field(default_factory=dict)
    digest: str = ""

    @property
    def spacing(self) -> tuple[float, ...]:
        """Of the working grid, which all cases share, along right, anterior, superior; mm."""
        return self.preparations["a"][0].spacing

    def channels(self, domain: str) -> tuple[str, ...]:
        """The names of the channels of "a" or "b"."""
        return tuple(preparation.name for preparation in self.preparations[domain])

    def fingerprint(self) -> str:
        """A digest of the training volumes and their preparation; the same for every copy of this cohort."""
        digest = hashlib.blake2b(digest_size=16)
        for group in ("a", "b"):
            for case in self.cases[group]:
                digest.update(json.dumps([group, case.id, case.key]).encode())
        return digest.hexdigest()

    def verify(self, progress: Progress) -> None:
        """Read every array and compare its checksum.

        Raises:
            InputError: naming every array that is not as it was written.
        """
        cases = [case for group in GROUPS for case in self.cases[group]]
        size = sum(case.size for case in cases) / 1e9
        watched = progress.track(cases, len(cases), f"checking {size:.1f} GB of prepared volumes")
        _refuse(self.folder, [line for case in watched for line in case.damage()])

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Lock this folder against preparation while the block runs.

        Raises:
            InputError: it is being prepared at this moment, or was since it was opened.
        """
        with _read_alone(self.folder):
            if opened(self.folder).digest != self.digest:
                raise InputError(f"{self.folder} was prepared anew a moment ago.", "Start again.")
            yield

    def typical_scaler(self, domain: str, channel: int = 0) -> Scaler:
        """The median of the training volumes' scalers: it scales translations into this domain back.

        Args:
            domain: "a" or "b".
            channel: which of its channels, from 0.
        """
        scalers = [case.channels[channel].scaler for case in self.cases[domain]]
        low, high = (float(np.median([getattr(s, end) for s in scalers])) for end in ("low", "high"))
        # A volume whose deciles coincided has fewer landmarks; those of the others say where they lie.
        most = max(len(s.landmarks) for s in scalers)
        bent = [s for s in scalers if len(s.landmarks) == most]
        shares = [share for _, share in bent[0].landmarks]
        places = [float(np.median([(s.landmarks[i][0] - s.low) / (s.high - s.low) for s in bent])) for i in range(most)]
        landmarks = tuple((low + place * (high - low), share) for place, share in zip(places, shares, strict=True))
        return Scaler(low, high, scalers[0].inverted, scalers[0].floor, landmarks)


def open_prepared(folder: Path) -> PreparedCohort:
    """Open a prepared folder; only headers and sizes of arrays are checked. `PreparedCohort.verify` reads them.

    Raises:
        InputError: if it is none, is being prepared, was made by another version, or holds a case that is damaged or of
            another preparation.
    """
    _own_record(folder)  # nothing is locked in a folder of something else
    with _read_alone(folder):
        return opened(folder)


def opened(folder: Path) -> PreparedCohort:
    """`open_prepared` for callers that hold the folder's lock."""
    content = _own_record(folder)
    digest = content.pop("digest", "")
    if digest != key_digest(content):
        _refuse(folder, [f"{folder / 'prepared.json'} is damaged or was changed: its digest is another."])
    cases = _opened_cases(folder, content["cases"])
    return PreparedCohort(
        folder=folder,
        preparations={
            domain: tuple(Preparation(**values) for values in channels)
            for domain, channels in content["preparations"].items()
        },
        cases=cases,
        failed=content["failed"],
        warnings=tuple(content["warnings"]),
        register_pairs=content["register_pairs"],
        common={
            case: Slices.from_dict(pair["slices"])
            for case, pair in content["common"].items()
            if pair["slices"] is not None
        },
        digest=digest,
    )


def read_own(folder: Path) -> dict[str, Any] | None:
    """The content of prepared.json without checking its digest; None if there is none or it is not of this program.

    Raises:
        InputError: it is there and cannot be read.
    """
    file = folder / "prepared.json"
    if not file.exists():
        return None
    content = read_json(file, f"record {file}")
    return content if isinstance(content, dict) and content.get("format") == FORMAT and "version" in content else None


def _own_record(folder: Path) -> dict[str, Any]:
    content = None
    try:
        content = read_own(folder)
    except InputError as error:
        _refuse(folder, [str(error)])
    if content is None:
        raise InputError(
            f"{folder} is not a prepared folder: it has no usable prepared.json.",
            "Its preparation was interrupted, it seems: run the same command again, which goes on where it stopped."
            if _is_ours(folder)
            else "Make one with `medcyclegan prepare --a MR_DIR --b CT_DIR -o PREPARED`.",
        )
    if content["version"] != VERSION:
        raise InputError(
            f"{folder} was prepared by another version of this program (format {content['version']}, now {VERSION}).",
            f"Prepare the same volumes into it again (`medcyclegan prepare ... -o {folder}`).",
        )
    return content


def _opened_cases(folder: Path, listed: dict[str, dict[str, str]]) -> dict[str, tuple[StoredCase, ...]]:
    """Every case of every group, with the key that is listed."""
    cases: dict[str, list[StoredCase]] = {group: [] for group in GROUPS}
    problems = []
    for group in GROUPS:
        for name, key in listed[group].items():
            try:
                case = open_case(folder / group / name)
            except InputError as error:
                problems.append(str(error))
                continue
            if case.key != key:
                problems.append(f"{group}/{name} is of another preparation, which was interrupted or failed.")
            cases[group].append(case)
    _refuse(folder, problems)
    return {group: tuple(found) for group, found in cases.items()}


def _refuse(folder: Path, problems: list[str], most: int = 10) -> None:
    more = [f"and {len(problems) - most} more"] if len(problems) > most else []
    raise_all(
        [*problems[:most], *more],
        f"{folder} cannot be used. What is damaged, missing or of another preparation is made anew, and the rest kept, "
        "when it is prepared again from the same volumes with the same settings (`medcyclegan prepare ... -o "
        f"{folder}`):",
    )


@contextmanager
def _read_alone(folder: Path) -> Iterator[None]:
    """Refuse to read a folder that is being prepared."""
    with ExitStack() as stack:
        try:
            stack.enter_context(folder_lock(folder, shared=True))
        except BlockingIOError:
            raise InputError(f"{folder} is being prepared by another process at this moment.", "Wait for it.") from None
        yield


@contextmanager
def kept_alone(output: Path) -> Iterator[None]:
    """Lock the folder, and remove what a killed preparation left half written."""
    new = not output.exists()
    try:
        with ExitStack() as stack:
            try:
                stack.enter_context(folder_lock(output))
            except BlockingIOError:
                raise InputError(
                    f"{output} is in use: another process prepares it or trains on it at this moment.",
                    "Wait for it, or give another folder as output.",
                ) from None
            check_output(output)  # once more, now that nobody else writes there
            for folder in (output, *(output / group for group in GROUPS)):
                sweep(folder)
            yield
    finally:
        # A refusal leaves no new folder behind.
        if new and output.is_dir() and [entry.name for entry in output.iterdir()] == [".lock"]:
            shutil.rmtree(output)


def check_output(output: Path) -> None:
    """Refuse folders of other content: preparing replaces and removes files in the folders of its groups."""
    if not output.exists():
        return
    if not output.is_dir():
        raise InputError(f"{output} is a file.", "Give a folder as output.")
    others = []
    if not _is_ours(output):
        others += [entry.name for entry in _visible(output) if entry.name not in (*GROUPS, "landmarks.json")]
    for group in GROUPS:
        folder = output / group
        if folder.is_dir():
            others += [f"{group}/{entry.name}" for entry in _visible(folder) if not _is_case(entry)]
        elif folder.exists():
            others.append(group)
    if others:
        raise InputError(
            f"{output} exists and holds something else ({', '.join(sorted(others)[:3])}).",
            "Give a new folder, or an earlier prepared one.",
        )


def _is_ours(output: Path) -> bool:
    """By its record or, where that is missing or damaged, by a case."""
    try:
        if read_own(output) is not None:
            return True
    except InputError:
        pass
    cases = (case for group in GROUPS if (output / group).is_dir() for case in _visible(output / group))
    return any((case / "case.json").exists() and (case / "image.npy").exists() for case in cases)


def _is_case(folder: Path) -> bool:
    return folder.is_dir() and {entry.name for entry in _visible(folder)} <= FILES


def _visible(folder: Path) -> Iterator[Path]:
    return (entry for entry in folder.iterdir() if not entry.name.startswith("."))


def remove_former_cases(output: Path, done: set[str]) -> None:
    """Delete prepared cases that are no longer in the cohort."""
    for group in GROUPS:
        if (output / group).is_dir():
            for folder in _visible(output / group):
                if f"{group}/{folder.name}" not in done:
                    shutil.rmtree(folder)
