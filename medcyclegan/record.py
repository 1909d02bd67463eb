"""`run.json` of a conversion: inputs, outputs, model and settings, and unfinished cases.

    format, version, program     what this is, and the versions of the packages that wrote it
    model, settings              checkpoints by hash, direction; what else decides what a result is
    cases                        case id -> input, hashes, output, uncertainty maps, seconds, warnings, quality
    failed                       case id -> reason
    unfinished                   case id -> the file being written; its content belongs to no case yet
    earlier                      records of other models and settings whose results lie in the same folder
    device, seconds              of the process that ended last

A case is noted as unfinished before its files are touched, and becomes a case when they are whole. So, whenever a
process is killed, the record never claims a file of another model, and interrupted cases are known.
Several processes change the record one after another; a case that two of them write at the same time fails in both.
"""

from __future__ import annotations

import json
import platform
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medcyclegan import __version__
from medcyclegan.atomic import exclusive, is_locked, write_json
from medcyclegan.documents import read_json
from medcyclegan.errors import InputError

FORMAT = "medcyclegan-conversion"
VERSION = 2
_HEAD = ("program", "model", "settings", "cases", "unfinished")


@dataclass
class _Kept:
    """The content of the file for one model with its settings; `failed` is of the other processes."""

    cases: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    unfinished: dict[str, Any] = field(default_factory=dict)
    earlier: list[dict[str, Any]] = field(default_factory=list)


class Record:
    """The file, as one process sees and changes it.

    Args:
        path: of the file.
        others: the cases that other processes convert at the same time; None where there is one process.
        head: "model" and "settings", which all cases have in common.
        overwrite: replace a file that is no record, or a damaged one; not a record of another version.
    """

    def __init__(self, path: Path, others: set[str] | None, head: dict[str, Any], *, overwrite: bool = False) -> None:
        self.path = path
        self.others = others
        self.head = json.loads(json.dumps(head))
        self.overwrite = overwrite
        self.token = secrets.token_hex(8)

    def check(self) -> None:
        """Raise an `InputError` if the file is not ours or damaged, or if several processes cannot share it."""
        if self.others is not None or is_locked(self.path):  # by one that lives, or one that was killed
            with self._exclusive():
                pass
        self._kept()

    def finished(self) -> dict[str, Any]:
        """The cases that earlier runs, of any number of processes, finished with this model and these settings."""
        return self._kept().cases

    def unfinished(self) -> dict[str, Any]:
        """The cases that such runs were writing when they ended."""
        return self._kept().unfinished

    def begin(self, case: str, output: Path, uncertainty: Sequence[Path] = ()) -> None:
        """Record that a case's files are about to be written; existing files then belong to no case.

        Uncertainty maps of overwritten results are removed, since they do not belong to the new result.
        """
        with self._exclusive():
            kept = self._kept()
            stale = self._claim(kept, case, output, uncertainty)
            for name in stale:
                uncertainty_file(self.path, name).unlink(missing_ok=True)
            self._write(kept, {})

    def add(self, case: str, entry: dict[str, Any]) -> None:
        """Record that a case is finished.

        Raises:
            InputError: another process has begun to write the same file since; what it holds is not known.
        """
        with self._exclusive():
            kept = self._kept()
            if kept.unfinished.get(case, {}).get("by") != self.token:
                self._claim(kept, case, Path(entry["output"]), [Path(path) for path in entry["uncertainty"].values()])
                self._write(kept, {})
                raise InputError(
                    f"another process has written {entry['output']} at the same time: nobody knows whose it is.",
                    "Convert this case again with --resume or --overwrite, by one process.",
                )
            del kept.unfinished[case]
            kept.cases[case] = entry
            self._write(kept, {})

    def _claim(self, kept: _Kept, case: str, output: Path, uncertainty: Sequence[Path]) -> set[str]:
        """Remove the files from every case, of this model or another; gives the maps that then belong to no case."""
        written = {output.name, *(path.name for path in uncertainty)}
        stale: set[str] = set()
        every = [kept.cases, *(known["cases"] for known in kept.earlier)]
        for known in every:
            for replaced in [c for c, entry in known.items() if _files(entry) & written]:
                stale |= _uncertainty(known.pop(replaced))
        for unfinished in (kept.unfinished, *(known.get("unfinished", {}) for known in kept.earlier)):
            for replaced in [c for c, entry in unfinished.items() if _name(entry["output"]) == output.name]:
                del unfinished[replaced]
        kept.unfinished[case] = {"output": str(output), "by": self.token}
        return stale - written - {name for known in every for entry in known.values() for name in _uncertainty(entry)}

    def is_closed(self) -> bool:
        """Whether a process has ended since the last case was added."""
        return "device" in self._read()

    def close(self, failed: Mapping[str, str], tail: dict[str, Any]) -> None:
        """Add the final entries. With several processes, those of the last one to end stay, with its `tail`."""
        with self._exclusive():
            kept = self._kept()
            kept.failed |= failed
            # Cleanly failed cases left no files.
            kept.unfinished = {
                case: entry
                for case, entry in kept.unfinished.items()
                if entry.get("by") != self.token or Path(entry["output"]).exists()
            }
            self._write(kept, tail)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with ExitStack() as stack:
            try:
                stack.enter_context(exclusive(self.path))
            except OSError as error:
                if self.others is not None:  # one process by itself needs no locks
                    raise InputError(
                        f"several processes share {self.path}, and it cannot be locked ({error}).",
                        "Convert with one process, or give an output on another file system.",
                    ) from error
            yield

    def _kept(self) -> _Kept:
        kept = _Kept()
        content = self._read()
        for known in (content, *content.get("earlier", ())) if content else ():
            if _identity(known) == _identity(self.head):
                kept.cases |= known["cases"]
                kept.failed |= known.get("failed", {})
                kept.unfinished |= known.get("unfinished", {})
            else:
                kept.earlier.append({key: known[key] for key in _HEAD if key in known})
        kept.failed = {case: reason for case, reason in kept.failed.items() if case in (self.others or ())}
        return kept

    def _read(self) -> dict[str, Any]:
        """The file's content; empty where there is no file, or one that is to be replaced.

        Raises:
            InputError: the file cannot be read, or is no record of this program, or is damaged.
        """
        if not self.path.exists():
            return {}
        try:
            content = read_json(self.path, f"record {self.path}")
        except InputError as error:
            problem = str(error)
        else:
            found = _problem(content)
            if not found:
                return dict(content)
            problem = f"{self.path} {found}."
            if isinstance(content, dict) and content.get("format") == FORMAT and content.get("version") != VERSION:
                # Replacing it would leave maps beside new results that are not theirs.
                raise InputError(problem, "Convert into another folder, or remove this one's results first.")
        if self.overwrite:
            return {}
        raise InputError(problem, "Move it away, or write into another folder; with --overwrite it is replaced.")

    def _write(self, kept: _Kept, tail: dict[str, Any]) -> None:
        program = {"medcyclegan": __version__, "python": platform.python_version()}
        program |= {name: version(name) for name in ("torch", "monai", "nibabel", "SimpleITK", "numpy")}
        content = {"format": FORMAT, "version": VERSION, "program": program, **self.head}
        content |= {"cases": dict(sorted(kept.cases.items())), "failed": dict(sorted(kept.failed.items())), **tail}
        if kept.unfinished:
            content["unfinished"] = dict(sorted(kept.unfinished.items()))
        if earlier := [known for known in kept.earlier if known["cases"] or known.get("unfinished")]:
            content["earlier"] = earlier
        write_json(self.path, content)
        self.overwrite = False  # from now on the file is this record


def uncertainty_file(target: Path, name: str) -> Path:
    """Where an uncertainty map of that name lies, of a result or record beside it."""
    return target.parent / "uncertainty" / name


def _problem(content: Any) -> str:
    """What is wrong with a record, with the field; empty where it is sound."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return f"is no record of a conversion: it does not have format '{FORMAT}'"
    if not isinstance(content.get("version"), int) or content["version"] != VERSION:
        found = f"{content.get('version')!r}"
        return f"is a record of version {found:.20}, and this program goes on with those of version {VERSION} only"
    earlier = content.get("earlier", [])
    if not isinstance(earlier, list):
        return "is damaged: earlier is no list"
    for number, known in enumerate((content, *earlier)):
        place = f"earlier[{number - 1}]." if number else ""
        if not isinstance(known, dict):
            return f"is damaged: {place.rstrip('.')} is no object"
        if field := _wrong(known):
            return f"is damaged: {place}{field}"
    return ""


def _wrong(known: dict[str, Any]) -> str:
    """The first field of one model's part that is missing or of another type."""
    for name in ("program", "model", "settings", "cases"):
        if not isinstance(known.get(name), dict):
            return f"{name} is missing or no object"
    checkpoints = known["model"].get("checkpoints")
    if not isinstance(checkpoints, list) or not all(
        isinstance(c, dict) and isinstance(c.get("sha256"), str) for c in checkpoints
    ):
        return "model.checkpoints is no list with a sha256 each"
    if not isinstance(known["model"].get("direction"), str):
        return "model.direction is missing or no text"
    for name in ("failed", "unfinished"):
        if not isinstance(known.get(name, {}), dict):
            return f"{name} is no object"
    for case, reason in known.get("failed", {}).items():
        if not isinstance(reason, str):
            return f"failed.{case} is no text"
    for name in ("unfinished", "cases"):
        for case, entry in known.get(name, {}).items():
            if not isinstance(entry, dict) or not _is_path(entry.get("output")):
                return f"{name}.{case}.output is missing or no text"
    for case, entry in known["cases"].items():
        uncertainty, hashes = entry.get("uncertainty"), entry.get("voxels_sha256")
        if not isinstance(uncertainty, dict) or not all(map(_is_path, uncertainty.values())):
            return f"cases.{case}.uncertainty is no object of paths"
        if not isinstance(hashes, list) or not all(isinstance(h, str) for h in hashes):
            return f"cases.{case}.voxels_sha256 is missing or no list of texts"
        if not isinstance(entry.get("mask_sha256", ""), str):
            return f"cases.{case}.mask_sha256 is no text"
    return ""


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and bool(Path(value).name) and "\0" not in value


def _identity(content: dict[str, Any]) -> Any:
    """What determines the files: weights and settings, wherever the checkpoint is stored."""
    model = content["model"]
    return [c["sha256"] for c in model["checkpoints"]], model["direction"], content["settings"]


def _files(entry: dict[str, Any]) -> set[str]:
    return {_name(entry["output"])} | _uncertainty(entry)


def _uncertainty(entry: dict[str, Any]) -> set[str]:
    return {_name(path) for path in entry["uncertainty"].values()}


def _name(path: str) -> str:
    """Of a result: its folder may have been moved since it was recorded."""
    return Path(path).name
