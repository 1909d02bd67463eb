"""Files and folders that are either whole or absent, whatever happens while they are written.

The content is written under a temporary name in the same folder and moved into place with one rename, so a crash,
a full disk or an interruption leaves what was there before. What several processes read, change and write again, they
change `alone`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

_FULL_BYTES = 1 << 20  # less free space than this after a failed write is the reason why it failed


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path with the same suffixes; on success it becomes `path`, on failure it is removed."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The whole name stays at the end, because writers pick their format by ".nii.gz" and the like.
    descriptor, name = tempfile.mkstemp(prefix=".partial-", suffix=f"-{target.name}", dir=target.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        with _full_disk_named(target):
            yield temporary
        # mkstemp makes files that only the owner may read; give what an ordinary open() would have given.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary folder; on success it replaces `path`, on failure it is removed."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".partial-{target.name}-", dir=target.parent))
    try:
        with _full_disk_named(target):
            yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
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
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def alone(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let one process at a time run the block, among all that name the same `path`; the others wait.

    A process that dies leaves the block, too. The lock is on `.<name>.lock` beside `path`, which stays there: after an
    atomic write `path` is another file, and a lock file that is removed can be locked twice.

    Raises:
        OSError: the system or the file system has no locks.
    """
    target = Path(path)
    if sys.platform == "win32":
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK), str(target))
    import fcntl

    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f".{target.name}.lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # closing the stream ends it
        yield


@contextmanager
def claimed(folder: str | os.PathLike[str], *, shared: bool = False) -> Iterator[None]:
    """Keep a folder for this process while the block runs, without waiting; it is made where it is missing.

    The lock is on `.lock` in the folder; a process that dies leaves it. Where there are no locks (some file systems,
    Windows), or a reader may not write, nothing is kept.

    Args:
        shared: readers keep it together, and a writer out.

    Raises:
        BlockingIOError: another process keeps it.
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


def sweep(folder: str | os.PathLike[str]) -> None:
    """Remove what `atomic_file` and `atomic_folder` were writing in a folder when their process was killed.

    Only for who keeps others from writing there: see `claimed`.
    """
    for pattern in (".partial-*", ".former-*"):
        for left in Path(folder).glob(pattern):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink(missing_ok=True)


@contextmanager
def _full_disk_named(target: Path) -> Iterator[None]:
    """Libraries report a failed write in words of their own; if the disk is full, say that and where."""
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
