"""A folder for one writer, or for many readers."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO


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

    Only for who has claimed it: nobody else writes there.
    """
    for pattern in (".partial-*", ".former-*", ".locked-*"):
        for left in Path(folder).glob(pattern):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink(missing_ok=True)
