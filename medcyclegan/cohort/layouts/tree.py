"""What lies under a folder, by name: read once and sorted, so that no machine's listing order is seen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from medcyclegan.errors import InputError
from medcyclegan.io.pictures import PICTURE_SUFFIXES
from medcyclegan.io.reader import VOLUME_SUFFIXES

_MOST = 2_000_000  # files; links that lead to each other multiply what they show
_SHOWN = 8


class Tree:
    """The names of the files and folders below `root`, hidden ones (leading dot) left out.

    Places are relative to `root`, with `/` between the parts; "" is `root` itself. Links are followed, except to a
    folder that they lie in: what such a circle shows is in the tree already.

    Raises:
        InputError: a folder cannot be listed, a name is not text, or there are more than two million files.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders: dict[str, list[str]] = {}
        self._files: dict[str, list[str]] = {}
        self._count = 0
        if root.is_dir():
            self._list("", root, (root.resolve(),))
        elif root.exists():
            self._files[""] = [root.name]
        else:
            raise InputError(f"{root} does not exist.", "Give a folder that holds volumes, or a CSV that lists them.")

    def folders(self, place: str = "") -> list[str]:
        """The names of the folders directly in `place`."""
        return self._folders.get(place, [])

    def files(self, place: str = "") -> list[str]:
        """The names of the files directly in `place`."""
        return self._files.get(place, [])

    def every_folder(self, place: str = "") -> Iterator[str]:
        """`place` and every folder below it."""
        yield place
        for name in self.folders(place):
            yield from self.every_folder(join(place, name))

    def path(self, place: str) -> Path:
        return self.root / place if place else self.root

    def shown(self) -> str:
        """What lies directly in the root, for messages."""
        names = [f"{name}/" for name in self.folders()] + self.files()
        return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")

    def _list(self, place: str, folder: Path, above: tuple[Path, ...]) -> None:
        try:
            with os.scandir(folder) as entries:
                found = sorted((entry.name, _is_folder(entry)) for entry in entries if not entry.name.startswith("."))
        except OSError as error:
            raise InputError(
                f"the folder {folder} cannot be listed: {error.strerror}.",
                "Allow reading it, or move it away from this root: it could hold volumes of a patient.",
            ) from None
        for name, _ in found:
            try:
                name.encode()
            except UnicodeEncodeError:
                raise InputError(f"a name in {folder} is not text: {name!a}.", "Rename it.") from None
        self._files[place] = [name for name, is_folder in found if not is_folder]
        self._folders[place] = []
        self._count += len(found)
        if self._count > _MOST:
            raise InputError(f"{self.root} holds more than {_MOST} files.", "Give a narrower folder.")
        for name, is_folder in found:
            if not is_folder:
                continue
            real = (folder / name).resolve()
            if real not in above:
                self._folders[place].append(name)
                self._list(join(place, name), folder / name, (*above, real))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself: a file that cannot be read, if anybody wants it


def join(*parts: str) -> str:
    """One place from its parts; empty ones are left out."""
    return "/".join(part for part in parts if part)


def is_volume(name: str) -> bool:
    """True for the name of a volume in one file."""
    return name.lower().endswith(VOLUME_SUFFIXES) and not name.startswith(".")


def is_picture(name: str) -> bool:
    """True for the name of a 2D image."""
    return name.lower().endswith(PICTURE_SUFFIXES) and not name.startswith(".")
