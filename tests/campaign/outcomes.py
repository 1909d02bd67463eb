"""What the program makes of a changed input, told in one word, in a process that may crash, hang or eat memory.

refused           an `InputError` (or exit code 2, or 1) whose message names the file
right             what the format's definition gives for these bytes
warned            likewise, with a warning
differs, warned   something else, with a warning
silent            something else without a word: the fault that this program must never have
unnamed           refused by a message that does not say which file
traceback, crash, hang, memory
"""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from campaign.meaning import Meaning, apart
from medcyclegan.errors import InputError

GOOD = ("refused", "right", "warned", "differs, warned")
LIMIT_S = 20.0
MEMORY = 3 << 30  # beyond what the process has as it starts


@dataclass(frozen=True)
class Outcome:
    """One trial: which, what was done to the input, what came of it, and the words that came with it."""

    format: str
    seed: int
    change: str
    word: str
    detail: str


def attempt(read: Callable[[], object], name: str) -> tuple[str, str, object]:
    """(word, detail, result); the word is "refused", "accepted", "warned", or a fault."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            result = read()
        except InputError as error:
            return ("refused" if name in str(error) else "unnamed"), str(error)[:300], None
        except MemoryError as error:
            return "memory", str(error)[:300], None
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            return (
                "traceback",
                f"{type(error).__name__}: {str(error)[:200]} ({Path(where.filename).name}:{where.lineno})",
                None,
            )
    spoken = [str(w.message) for w in said if w.category is UserWarning]
    return ("warned" if spoken else "accepted"), " | ".join(spoken)[:300], result


def judged_volume(
    word: str, detail: str, shape: tuple[int, ...], affine: np.ndarray, values: np.ndarray | None, meant: Meaning | str
) -> tuple[str, str]:
    """Compare an accepted volume with its meaning; `values` None: only its header was read."""
    if values is None and not isinstance(meant, str) and meant.doubts:
        return "right", detail  # `read_volume` is asked what it says of them
    wrong = ""
    if isinstance(meant, str):
        wrong = f"accepted what has no meaning: {meant}"
    elif tuple(shape) != meant.shape:
        wrong = f"shape {tuple(shape)} instead of {meant.shape}"
    elif meant.affine is not None and apart(meant.shape, meant.affine, np.asarray(affine), 1e-3):
        wrong = "another place"
    elif values is not None and meant.values is None:
        wrong = "accepted damaged data"
    elif values is not None and meant.values is not None:
        with np.errstate(all="ignore"):
            meant32 = meant.values.astype(np.float32)
            off = np.abs(values - meant32).max()
            if not off <= 1e-6 * np.abs(meant32).max():
                wrong = f"other values, by up to {off:g}"
    if wrong:
        return ("differs, warned" if word == "warned" else "silent"), f"{wrong} {detail}"
    if word == "accepted" and not isinstance(meant, str) and meant.doubts and values is not None:
        return "silent", f"doubtful and no warning: {'; '.join(meant.doubts)}"
    return ("warned" if word == "warned" else "right"), detail


Trial = Callable[[str, int, Path], tuple[str, str, str]]


def run(trial: Trial, todo: Sequence[tuple[str, int]]) -> Iterator[Outcome]:
    """Make every trial (format, seed, folder) -> (change, word, detail) in a child, which is replaced when it dies."""
    at = 0
    with tempfile.TemporaryDirectory(prefix="campaign-") as root:
        while at < len(todo):
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(reading)
                _work(trial, todo[at:], Path(root), writing)
            os.close(writing)
            for said in _said(reading, child):
                yield Outcome(*todo[at], *said)
                at += 1
            os.close(reading)


def _said(pipe: int, child: int) -> Iterator[tuple[str, str, str]]:
    """What the child tells of each trial; at its end, if it did not leave by itself, what became of it."""
    rest = b""
    while True:
        ready, _, _ = select.select([pipe], [], [], LIMIT_S)
        chunk = os.read(pipe, 1 << 16) if ready else b""
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield tuple(json.loads(line))
        if not chunk:
            if not ready:
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if status != 0:
                yield "?", ("crash" if ready else "hang"), f"wait status {status}"
            return


def _work(trial: Trial, todo: Sequence[tuple[str, int]], root: Path, pipe: int) -> None:
    """The child: a line for each trial; never returns."""
    torch.set_num_threads(1)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, in_use + MEMORY))
    for name, seed in todo:
        folder = Path(tempfile.mkdtemp(dir=root))
        try:
            change, word, detail = trial(name, seed, folder)
        except BaseException:
            change, word, detail = "?", "traceback", f"of the campaign itself: {traceback.format_exc()[-400:]}"
        shutil.rmtree(folder, ignore_errors=True)
        os.write(pipe, json.dumps([change[:200], word, detail[:500]]).encode() + b"\n")
    os._exit(0)
