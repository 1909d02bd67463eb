"""Files and folders that are either whole or absent, whatever happens while they are written.

The content is written under a temporary name in the same folder and moved into place with one rename, so a crash,
a full disk or an interruption leaves what was there before. `exclusive` is for files that several processes read,
change and write again.

A process that is killed leaves its temporary file or folder behind. Beside each lies a lock file, whose lock the system
releases when its process ends, on whatever machine it ran; so leftovers differ from what is being written. They are
removed when the same thing is written again, and by `sweep`; without locks (some file systems, Windows) they stay.

    .partial-<token>-<name>     what will be <name>
    .former-<token>-<name>      the folder that was <name>, between two renames
    .locked-<token>-<name>      locked while either is in use
"""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

_FULL_BYTES = 1 << 20  # less free space than this after a failed write: the disk is full
_LEFT = re.compile(r"\.(?:partial|former|locked)-([0-9a-f]{8})-(.+)", re.DOTALL)


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path with the same suffixes; on success it becomes `path`, on failure it is removed."""
    with _temporary(Path(path)) as (temporary, target):
        temporary.touch(exist_ok=False)
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(target)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary folder; on success it replaces `path`, on failure it is removed."""
    with _temporary(Path(path)) as (temporary, target):
        temporary.mkdir()
        yield temporary
        former = temporary.with_name(temporary.name.replace(".partial-", ".former-", 1))
        if target.exists():
            target.replace(former)
        try:
            temporary.replace(target)
        except BaseException:
            if former.exists():
                former.replace(target)
            raise
        shutil.rmtree(former, ignore_errors=True)


@contextmanager
def _temporary(target: Path) -> Iterator[tuple[Path, Path]]:
    """A free temporary path beside `target`, for this process alone; whatever is left there is removed at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent, target.name)
    while True:
        token = secrets.token_hex(4)
        lock = target.with_name(f".locked-{token}-{target.name}")
        with _locked(lock, os.O_CREAT | os.O_EXCL, wait=True, without=True) as held:
            if not held:  # another process mistook the new file for a leftover, and swept it
                continue
            # The whole name stays at the end, because writers pick their format by ".nii.gz" and the like.
            temporary = target.with_name(f".partial-{token}-{target.name}")
            try:
                with _full_disk_named(target):
                    yield temporary, target
            finally:
                _remove(temporary)
            return


@contextmanager
def exclusive(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let only one process at a time run the block for the same `path`; the others wait.

    A process that dies releases it. The lock is on `.<name>.lock` beside `path`, because `path` is another
    file after an atomic write.

    Raises:
        OSError: the system or the file system has no locks.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with _locked(_lock_of(target), os.O_CREAT, wait=True) as held:
            if held:
                yield
                return


def is_locked(path: str | os.PathLike[str]) -> bool:
    """Whether there is a lock file of `exclusive`: a process is in the block, or was killed in it."""
    return _lock_of(Path(path)).exists()


def _lock_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.lock")


def sweep(folder: str | os.PathLike[str], name: str | None = None) -> None:
    """Remove half-written leftovers of ended processes from a folder, and restore what they had moved away.

    Args:
        folder: nothing below it is looked at.
        name: of the one file or folder that was to be written; None: of all.
    """
    try:
        found = {(match[1], match[2]) for entry in Path(folder).iterdir() if (match := _LEFT.fullmatch(entry.name))}
    except OSError:
        return
    for token, written in sorted(found):
        if name not in (None, written):
            continue
        target = Path(folder, written)
        partial, former, lock = (Path(folder, f".{kind}-{token}-{written}") for kind in ("partial", "former", "locked"))
        with suppress(OSError), _locked(lock, 0, wait=False) as held:
            if held:
                _remove(partial)
                if former.exists() and not target.exists():
                    former.replace(target)
                _remove(former)


def is_temporary(path: Path) -> bool:
    """Whether a name is that of a temporary file or folder of this module."""
    return bool(_LEFT.fullmatch(path.name))


@contextmanager
def _locked(lock: Path, flags: int, *, wait: bool, without: bool = False) -> Iterator[bool]:
    """Hold a lock file, and remove it in the end; False if another process holds it, or has just removed it.

    Args:
        lock: the file.
        flags: with which it is opened, besides for reading and writing.
        wait: until another process that holds it lets go of it.
        without: go on where there are no locks.

    Raises:
        OSError: there are no locks, or the file cannot be opened.
    """
    if sys.platform == "win32":
        if not without:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK), str(lock))
        yield True
        return
    import fcntl

    descriptor = os.open(lock, os.O_RDWR | flags, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # The previous holder has removed it: a lock on a removed file excludes nobody.
            held = _is_at(descriptor, lock)
        except BlockingIOError:
            held = False
        except OSError:
            if not without:
                raise
            held = True
        try:
            yield held
        finally:
            if held:
                lock.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    # Opened anew and not only looked at: on network file systems that asks the server.
    try:
        other = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return os.path.samestat(os.fstat(descriptor), os.fstat(other))
    finally:
        os.close(other)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def folder_lock(folder: str | os.PathLike[str], *, shared: bool = False) -> Iterator[None]:
    """Lock a folder for this process while the block runs, without waiting; the folder is made if missing.

    The lock is on `.lock` in the folder; a process that dies releases it. Without locks (some file systems, Windows),
    or for a reader without write permission, nothing is locked.

    Args:
        shared: for readers, who exclude only writers.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    target = Path(folder)
    if not shared:
        target.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(_lockable(target / ".lock", shared))
            _lock(stream, shared)
        except BlockingIOError:
            raise
        except OSError:
            pass
        yield


def _lockable(path: Path, shared: bool) -> IO[str]:
    try:
        return path.open("a")
    except OSError:
        if not shared:
            raise
        return path.open()  # enough for a reader


def _lock(stream: IO[str], shared: bool) -> None:
    if sys.platform == "win32":
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    import fcntl

    fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


@contextmanager
def _full_disk_named(target: Path) -> Iterator[None]:
    """Replace a library's error by a clear one if the disk is full."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if shutil.disk_usage(target.parent).free < _FULL_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
        raise


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` as indented, strictly valid JSON (no NaN), atomically."""
    text = json.dumps(content, indent=2, allow_nan=False)
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_table(path: str | os.PathLike[str], columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a CSV in UTF-8 with a header, atomically; a cell that a row does not have is empty."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
