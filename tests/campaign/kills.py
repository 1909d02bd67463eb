"""Verbs that are killed, meet a full disk, or meet each other, and the run that follows.

Every file that a process opens for writing, renames, makes or removes below a folder is one *event*, seen by an audit
hook (PEP 578) in a child process: the child dies there, or is told that the disk is full. A limit on the size of files
ends it in the middle of a write.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, BinaryIO

import pydicom
import torch

from campaign.records import difference, flat
from campaign.scenarios import Scenario, Words
from campaign.workplace import Said, verb

_EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
_LIMIT_S = 300
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# What tells of the moment and the machine, not of the result.
_MOMENT = re.compile(r"second|time|date|speed|per_s|created|duration|memory")


def started(words: Words, at_start: Callable[[], None] = lambda: None) -> tuple[int, BinaryIO]:
    """The verb in a child process, and the file that will hold what it said."""
    stream = tempfile.TemporaryFile()  # noqa: SIM115 (`ended` closes it)
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        signal.alarm(_LIMIT_S)
        at_start()
        said = verb(*words)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
        os.write(stream.fileno(), json.dumps([said.code, said.out, said.error]).encode("utf-8", "replace"))
        os._exit(0)
    return pid, stream


def ended(pid: int, stream: BinaryIO) -> Said | None:
    """What it said; None where it was killed, or too slow."""
    _, status = os.waitpid(pid, 0)
    with stream:
        stream.seek(0)
        content = stream.read()
    return Said(*json.loads(content)) if status == 0 and content else None


def child(words: Words, at_start: Callable[[], None] = lambda: None) -> Said | None:
    return ended(*started(words, at_start))


def hook(root: Path, act: Callable[[int, str], None]) -> Callable[[], None]:
    """Call `act` with the number, from 0, and the name of every event below `root`."""
    place, count = f"{root}/", 0

    def see(event: str, given: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in _EVENTS or not isinstance(given[0], str | bytes | os.PathLike):
            return
        if event == "open" and not (isinstance(given[2], int) and given[2] & _WRITES):
            return
        if os.fsdecode(given[0]).startswith(place):
            count += 1
            act(count - 1, event)

    return lambda: sys.addaudithook(see)


def count_events(scenario: Scenario, out: Path) -> int:
    """How many events an undisturbed run has, whose results are then in `out`."""
    seen = mmap.mmap(-1, 8)  # shared with the child

    def note(number: int, event: str) -> None:
        seen[:8] = (number + 1).to_bytes(8)

    said = child(scenario.words(out), hook(out, note))
    if said is None or said.code != 0:
        raise RuntimeError(f"{scenario.words(out)}: {said}")
    return int.from_bytes(seen[:8])


def killed_at(number: int) -> Callable[[int, str], None]:
    def act(seen: int, event: str) -> None:
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def full_from(number: int) -> Callable[[int, str], None]:
    def act(seen: int, event: str) -> None:
        if seen >= number and event in ("open", "os.mkdir"):  # to rename and to remove needs no room
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return act


def small_files(size: int, killed: bool) -> Callable[[], None]:
    """No file may grow beyond `size` bytes: the write fails, or kills."""

    def begin() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if killed else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    return begin


def completed(scenario: Scenario, out: Path) -> str:
    """Run the command once more, or what completes it; a fault in words, or nothing."""
    said = child(scenario.words(out))
    if (said is None or said.code != 0) and scenario.again is not None:
        first, said = said, child(scenario.again(out))
        if said is None or said.code != 0:
            return f"again: {_end(first)}; and with --resume: {_end(said)}"
    if said is None or said.code != 0:
        return f"again: {_end(said)}"
    left = [path.name for path in out.rglob(".*") if path.name.startswith((".partial-", ".former-"))]
    return f"left behind: {', '.join(sorted(left)[:3])}" if left else ""


def _end(said: Said | None) -> str:
    return "killed, or too slow" if said is None else f"exit {said.code}: {said.error.strip()[-200:]}"


def refusal(said: Said | None) -> str:
    """A fault in how a verb ended that could not do its work, or nothing."""
    if said is None:
        return "it died"
    if said.code is None:
        return f"traceback: {said.error[-200:]}"
    if said.code != 0 and "error:" not in said.error and "failed" not in said.error:
        return f"no message: exit {said.code}: {said.error[-200:]}"
    return ""


def contents(out: Path) -> dict[str, Any]:
    """What two runs of the same command must have in common: file by file, without what tells of the moment."""
    known: dict[str, str] = {}  # identifiers that are drawn anew, by the order in which they first stand
    return {
        path.relative_to(out).as_posix(): _content(path, out, known)
        for path in sorted(out.rglob("*"))
        if path.is_file() and not path.name.startswith((".", "events.out."))
    }


def _content(path: Path, out: Path, known: dict[str, str]) -> Any:
    data = path.read_bytes()
    if path.suffix == ".pt":
        try:
            tree = _timeless(flat(torch.load(path, weights_only=True)), out)
            # Of a run without a checkpoint it is not known what was given: what it was resolved to stands for it.
            return {key: value for key, value in tree.items() if key != "given"}
        except Exception:
            return len(data)
    if path.suffix == ".pt2" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return [(member.filename, member.CRC) for member in archive.infolist()]
    if path.suffix == ".dcm":
        dataset = pydicom.dcmread(path)
        text = "\n".join(str(e) for e in dataset.iterall() if e.VR not in ("DA", "TM", "DT"))
        return re.sub(r"2\.25\.\d+|SCT-\d+", lambda m: known.setdefault(m[0], f"id {len(known)}"), text)
    if path.suffix == ".json":
        return _timeless(json.loads(data), out)
    if path.suffix == ".csv":
        rows = [line.split(",") for line in data.decode().splitlines()]
        kept = [i for i, name in enumerate(rows[0]) if not _MOMENT.search(name)] if rows else []
        return [[row[i] for i in kept if i < len(row)] for row in rows]
    if path.suffix in (".html", ".yaml", ".md", ".txt"):
        text = re.sub(
            r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?|\d+(\.\d+)? (s|min|h|seconds|minutes)\b", "", data.decode()
        )
        return text.replace(str(out), "OUT")
    return zlib.crc32(zlib.decompress(data, 31) if path.suffix == ".gz" else data)


def _timeless(tree: Any, out: Path) -> Any:
    if isinstance(tree, dict):
        return {key: _timeless(value, out) for key, value in tree.items() if not _MOMENT.search(key)}
    if isinstance(tree, list):
        return [_timeless(value, out) for value in tree]
    return tree.replace(str(out), "OUT") if isinstance(tree, str) else tree


def differing(found: dict[str, Any], expected: dict[str, Any]) -> str:
    if found.keys() != expected.keys():
        return f"other files than an undisturbed run: {sorted(found.keys() ^ expected.keys())[:4]}"
    found_difference = difference(found, expected)
    return f"differs from an undisturbed run: {found_difference}" if found_difference else ""


def faults(name: str, scenario: Scenario, root: Path, *, seed: int = 0, most: int = 8) -> Iterator[str]:
    """Disturb a verb in every way, at up to `most` moments each, and say what was not as it must be."""
    rng = Random(f"{name}/{seed}")
    (clean := root / "clean").mkdir()
    events = count_events(scenario, clean)
    expected = contents(clean)
    largest = max(path.stat().st_size for path in clean.rglob("*") if path.is_file())
    moments = sorted(rng.sample(range(events), min(most, events)))
    sizes = sorted({rng.randrange(1, largest) for _ in range(max(1, most // 4))})
    disturbances: list[tuple[str, Callable[[Path], Callable[[], None]], bool]] = [
        *((f"killed at event {n} of {events}", lambda out, n=n: hook(out, killed_at(n)), True) for n in moments),
        *((f"killed as a file has {n} bytes", lambda out, n=n: small_files(n, True), True) for n in sizes),
        *((f"disk full at event {n}", lambda out, n=n: hook(out, full_from(n)), False) for n in moments[::2]),
        *((f"no file beyond {n} bytes", lambda out, n=n: small_files(n, False), False) for n in sizes),
    ]
    for what, begin, dies in disturbances:
        (out := root / "out").mkdir()
        said = child(scenario.words(out), begin(out))
        wrong = "" if dies else refusal(said)
        done = said is not None and said.code == 0  # it was through before it noticed
        wrong = wrong or ("" if done else completed(scenario, out)) or differing(contents(out), expected)
        if wrong:
            yield f"{name}, {what}: {wrong}"
        shutil.rmtree(out)
    (out := root / "out").mkdir()
    both = [ended(*one) for one in [started(scenario.words(out)) for _ in range(2)]]
    wrong = next(filter(None, map(refusal, both)), "")
    if not wrong and all(said is None or said.code != 0 for said in both):
        wrong = completed(scenario, out)
    if wrong := wrong or differing(contents(out), expected):
        yield f"{name}, two at once (exit {[said and said.code for said in both]}): {wrong}"
