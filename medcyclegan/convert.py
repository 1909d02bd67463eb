"""Many volumes translated into files: reading, translating and writing at the same time, with a record of it all.

The output folder gets `<case>_sct.nii.gz` (`_smr` where the target is MR; .mha, .nrrd or a folder with a DICOM series
on request), trust maps in `trust/<case>_<map>.nii.gz` on request, and `run.json`: inputs and their hashes, model,
versions, settings, and per case the seconds and the quality record. It is rewritten after every case, so that an
interrupted conversion can be resumed. Results of other models or settings in the same folder keep their records there,
under `earlier`, until they are written over.

Under `torchrun` every process takes its own cases, and all write them into the one `run.json`. They are not connected:
a connection ends with the first process that dies, and a lock on the file does not. What a process finished is in the
record from then on, so there is nothing to be put together in the end, by whichever process may be left.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
from monai.data import MetaTensor

from medcyclegan import __version__
from medcyclegan.atomic import alone, write_json
from medcyclegan.build import choose_checkpoint, load_translator
from medcyclegan.data.inspection import looks_like_hu
from medcyclegan.errors import InputError, raise_all
from medcyclegan.inference.ensemble import Ensemble
from medcyclegan.inference.statistics import Statistics
from medcyclegan.inference.translator import Prediction, Source, Translation, Translator
from medcyclegan.io.dicom.ct_series import write_ct_series
from medcyclegan.io.dicom.files import split_choice
from medcyclegan.io.reader import VOLUME_SUFFIXES, case_id, list_volumes, read_volume
from medcyclegan.progress import Progress, Silent
from medcyclegan.ranks import own_device, place
from medcyclegan.training.checkpoint import FILE_NAME

T = TypeVar("T")
OTHER_ENDINGS = (
    ".csv",
    ".dcm",
    ".html",
    ".jpg",
    ".json",
    ".npy",
    ".npz",
    ".pdf",
    ".png",
    ".pt",
    ".tif",
    ".txt",
    ".zip",
)
ENDINGS = {"nifti": ".nii.gz", "mha": ".mha", "nrrd": ".nrrd", "dicom": ""}
FORMAT = "medcyclegan-conversion"
VERSION = 1
# Voxels of a volume above which the next one is not read ahead: three of them in memory are too many.
LARGE = 64_000_000
TRUST_MAPS = ("spread", "structure", "cycle", "combined")
# What may be wrong with one case and not with the next one.
CASE_ERRORS = (InputError, OSError, MemoryError)


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote, and what it could not.

    Attributes:
        written: case id -> file; those of an earlier run that `resume` left alone are not in it.
        failed: case id -> reason.
        skipped: case id -> file that an earlier run had finished.
        quality: case id -> quality record, for the cases written.
        model: which checkpoint translated.
    """

    written: dict[str, Path]
    failed: dict[str, str]
    skipped: dict[str, Path] = field(default_factory=dict)
    quality: dict[str, dict[str, Any]] = field(default_factory=dict)
    model: str = ""


def convert(
    checkpoint: Path,
    inputs: Sequence[Path],
    output: Path,
    *,
    direction: str = "ab",
    overwrite: bool = False,
    resume: bool = False,
    file_format: str = "nifti",
    trust: bool = False,
    ensemble: Ensemble | None = None,
    others: Sequence[Path] = (),
    statistics: Statistics = "window",
    device: str = "auto",
    progress: Progress | None = None,
    allow: Iterable[str] = (),
    which: str = "last",
) -> Conversion:
    """Translate files and folders of volumes; a case that fails is listed and the others go on.

    Args:
        checkpoint: a run or a checkpoint file.
        inputs: volumes, or folders of which every volume is taken. For a model of several contrasts exactly one input
            per contrast, in the model's order: a volume each, or a folder each, whose volumes are matched by case id
            (nnU-Net's suffix `_0000` and a contrast's own name at the end aside).
        output: a folder for `<case>_sct.nii.gz` (`_smr` where the target is MR), or a file for a single volume.
        direction: "ab" or "ba".
        overwrite: replace files that exist; without it they are refused before anything is computed.
        resume: leave out cases that `run.json` in `output` says were finished by the same model with the same settings
            from the same voxels; their files may exist.
        file_format: "nifti", "mha" or "nrrd", of no meaning where `output` is a file; "dicom" for a CT series in the
            folder `<case>_sct`, with trust maps as NIfTI.
        trust: write trust maps too.
        ensemble: planes, flips and how they are fused.
        others: further runs or checkpoints of the ensemble.
        statistics: of instance norms, see `inference.statistics`.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        progress: watches the slices.
        allow: as in `load_translator`.
        which: checkpoint of a run, "last" or "best", as in `load_translator`.

    Raises:
        InputError: nothing can be converted as asked; nothing is written then.
        OSError: the disk is full; what was finished before stays, and is in the record.
    """
    rank, processes = place()
    ensemble = ensemble or Ensemble()
    if overwrite and resume:
        raise InputError("overwrite makes everything anew and resume keeps what is finished.", "Choose one of them.")
    checkpoint, *others = (choose_checkpoint(path, which) for path in (checkpoint, *others))
    translator = load_translator(
        checkpoint,
        direction=direction,
        device=own_device(device),
        ensemble=ensemble,
        others=others,
        statistics=statistics,
        allow=allow,
    )
    contrasts = translator.contrasts
    raise_all([f"{path}" for path in inputs if not split_choice(path)[0].exists()], "these inputs do not exist:")
    files = _inputs_of_contrasts(inputs, contrasts) if contrasts else _inputs(inputs)
    targets = _targets(files, output, file_format, translator.modality)
    _refuse_own_inputs(files, targets)
    chosen = list(files)[rank::processes]
    record = _Record(
        _record_path(output),
        set(files) - set(chosen) if processes > 1 else None,
        {
            "model": {
                "checkpoints": [
                    {"path": str(path), "sha256": _sha256(path / FILE_NAME if path.is_dir() else path)}
                    for path in (checkpoint, *others)
                ],
                "direction": direction,
            },
            "settings": {
                "planes": list(ensemble.planes),
                "flips": ensemble.flips,
                "fuse": ensemble.fuse,
                "statistics": statistics,
                "trust": trust,
                "format": _format(output, file_format),
            },
        },
    )
    finished = record.finished() if resume else {}
    if not overwrite:
        remedy = "write somewhere else, or allow --overwrite or --resume"
        raise_all(
            [
                f"{path}" + (", written with another model or settings" if resume else "")
                for case in chosen
                for path in (targets[case], *(_trust_files(targets[case], translator.modality) if trust else ()))
                if path.exists() and case not in finished
            ],
            f"these files exist already; {remedy}:",
        )
    record.check()
    started = time.monotonic()
    file = checkpoint / FILE_NAME if checkpoint.is_dir() else checkpoint
    result = Conversion({}, {}, model=f"{file} ({translator.description.rpartition(', ')[2]})")
    reader, writer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
    pending: list[tuple[str, Future[dict[str, Any]]]] = []

    done: dict[str, str | list[str]] = {
        case: entry["voxels_sha256"]
        for case, entry in finished.items()
        if case in targets
        and targets[case].exists()
        and all(_trust_file(targets[case], _name(path)).exists() for path in entry["trust"].values())
    }

    if not set(chosen) <= set(done):
        _require_writable(record.path.parent)

    def start(case: str) -> Future[_Read]:
        return reader.submit(_read, files[case], translator, done.get(case))

    def write(case: str, finish: _Finish, prediction: Prediction) -> dict[str, Any]:
        """Recorded at once, not when the next case is done, during which the process may be killed."""
        entry = finish(prediction)
        record.add(case, entry)
        return entry

    def collect() -> None:
        case, writing = pending.pop(0)
        try:
            entry = writing.result()
        except CASE_ERRORS as error:
            result.failed[case] = _reason(error)
        else:
            result.written[case] = targets[case]
            result.quality[case] = entry["quality"]

    try:
        ahead: Future[_Read] | None = None
        for number, case in enumerate(chosen):
            reading = ahead or start(case)
            ahead = None
            begun = time.monotonic()
            try:
                read = reading.result()
            except CASE_ERRORS as error:
                result.failed[case] = _reason(error)
                continue
            if read.source is None:
                result.skipped[case] = targets[case]
                continue
            if case in done:
                result.failed[case] = (
                    f"{_named(files[case])} has changed since {targets[case]} was written. Allow --overwrite."
                )
                continue
            if number + 1 < len(chosen) and read.source.case.image.size <= LARGE:
                ahead = start(chosen[number + 1])
            name = f"{case} ({number + 1}/{len(chosen)})"
            try:
                prediction = translator.predict(read.source, trust=trust, progress=_Named(progress or Silent(), name))
            except CASE_ERRORS as error:
                result.failed[case] = _reason(error)
                continue
            while pending:
                collect()
            finish = _Finish(translator, files[case], targets[case], read, read.source, begun)
            pending.append((case, writer.submit(write, case, finish, prediction)))
            del read, reading, prediction
        while pending:
            collect()
    finally:
        reader.shutdown(cancel_futures=True)
        writer.shutdown()
    record.close(result, translator, time.monotonic() - started)
    return result


def options(*, planes: str | None, flips: bool, fuse: str, statistics: str) -> dict[str, Any]:
    """The arguments `ensemble` and `statistics` of `convert` from words, for example "axial,coronal" and "mean".

    Raises:
        InputError: for a word that is not allowed.
    """
    if statistics not in get_args(Statistics):
        raise InputError(f"statistics are one of {', '.join(get_args(Statistics))}, got '{statistics}'.")
    named = tuple(word.strip() for word in planes.split(",")) if planes else ()
    # What is in these strings is checked by Ensemble.
    return {"ensemble": Ensemble(named, flips, fuse), "statistics": statistics}  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Read:
    """A volume that was read and, unless it is done already, prepared."""

    source: Source | None
    digest: str | list[str]  # of its voxels and affine, whatever the file's format; of several contrasts one each
    wrong_modality: str | None


def _read(files: tuple[Path, ...], translator: Translator, done: str | list[str] | None) -> _Read:
    """Read the files of a case; leave out the preparation where their voxels are those of the digests `done`."""
    volumes = [read_volume(file) for file in files]
    digests = [_digest(volume) for volume in volumes]
    told: str | list[str] = digests if translator.contrasts else digests[0]
    if told == done:
        return _Read(None, told, None)
    looks = [looks_like_hu(volume.numpy()[0]) for volume in volumes]
    if translator.contrasts:
        wrong_files = [str(file) for file, hu in zip(files, looks, strict=True) if hu]
        if wrong_files:
            raise InputError(
                f"{', '.join(wrong_files)}: the values look like a CT in Hounsfield units, and the model takes MR: "
                f"{', '.join(translator.contrasts)}."
            )
        return _Read(translator.read(volumes), told, None)
    (hu,) = looks
    expected = translator.preparation.modality
    wrong = None
    if hu and expected == "MR":
        wrong = "the values look like a CT in Hounsfield units, and the model takes MR"
    if not hu and expected == "CT":
        wrong = "the values do not look like Hounsfield units, and the model takes CT"
    return _Read(translator.read(volumes[0]), told, wrong)


def _digest(volume: MetaTensor) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(volume.numpy()[0]).data)
    digest.update(np.round(volume.affine.numpy().astype(np.float64), 4).tobytes())
    return digest.hexdigest()


def _reason(error: InputError | OSError | MemoryError) -> str:
    """Why a case failed. On a full disk every case would, so that is raised again."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise error
    return str(error) or "there is not enough memory."


def _trust_files(target: Path, modality: str) -> list[Path]:
    """Where the trust maps of a result lie, in the order of `TRUST_MAPS`."""
    ending = next((e for e in (".nii.gz", *VOLUME_SUFFIXES) if target.name.lower().endswith(e)), "")
    stem = target.name[: len(target.name) - len(ending)].removesuffix(f"_s{modality.lower()}")
    return [_trust_file(target, f"{stem}_{name}{ending or '.nii.gz'}") for name in TRUST_MAPS]


def _trust_file(target: Path, name: str) -> Path:
    return target.parent / "trust" / name


def _named(files: tuple[Path, ...]) -> str:
    return " or ".join(map(str, files))


@dataclass(frozen=True)
class _Finish:
    """The last stage of a case: back to its grid, and into files."""

    translator: Translator
    files: tuple[Path, ...]
    target: Path
    read: _Read
    source: Source
    begun: float

    def __call__(self, prediction: Prediction) -> dict[str, Any]:
        translation = self.translator.finish(self.source, prediction)
        quality = translation.quality
        if self.read.wrong_modality:
            quality["flags"].insert(0, self.read.wrong_modality)
        maps = self._save(translation)
        return {
            "input": [str(file) for file in self.files] if self.translator.contrasts else str(self.files[0]),
            "voxels_sha256": self.read.digest,
            "output": str(self.target),
            "trust": maps,
            "seconds": round(time.monotonic() - self.begun, 3),
            "quality": quality,
        }

    def _save(self, translation: Translation) -> dict[str, str]:
        every = dict(zip(TRUST_MAPS, _trust_files(self.target, self.translator.modality), strict=True))
        maps = {name: every[name] for name in translation.trust}
        for name, path in maps.items():
            translation.save_trust(name, path)
        # Last, so that a result that exists is complete.
        if self.target.name.lower().endswith(VOLUME_SUFFIXES):
            translation.save(self.target)
        else:
            write_ct_series(
                self.target,
                translation.array,
                translation.grid,
                source=self.files[0],
                description=translation.description,
            )
        return {name: str(path) for name, path in maps.items()}


class _Record:
    """run.json: what was made of what, by what.

    Args:
        path: of the file.
        others: the cases that other processes convert at the same time; None where there is one process.
        head: what all cases have in common.
    """

    def __init__(self, path: Path, others: set[str] | None, head: dict[str, Any]) -> None:
        self.path = path
        self.others = others
        self.head = json.loads(json.dumps(head))

    def check(self) -> None:
        """Raise an `InputError` if several processes cannot share this file."""
        with self._alone():
            pass

    def finished(self) -> dict[str, Any]:
        """The cases that earlier runs, of any number of processes, finished with this model and these settings."""
        return self._kept()[0]

    def add(self, case: str, entry: dict[str, Any]) -> None:
        with self._alone():
            cases, failed, earlier = self._kept()
            # What was written over is of no earlier case any more, be it of this model or of another.
            stale: set[str] = set()
            every = (cases, *(other["cases"] for other in earlier))
            for known in every:
                for replaced in [c for c, old in known.items() if _name(old["output"]) == _name(entry["output"])]:
                    stale |= {_name(path) for path in known.pop(replaced)["trust"].values()}
            used = {_name(path) for known in every for e in (*known.values(), entry) for path in e["trust"].values()}
            for name in stale - used:
                _trust_file(self.path, name).unlink(missing_ok=True)
            self._write(cases | {case: entry}, failed, earlier, {})

    def close(self, result: Conversion, translator: Translator, seconds: float) -> None:
        """Add what is known in the end. Of several processes the last one to end has it there, with its device."""
        if not result.written and not result.failed:
            return
        tail = {"device": str(translator.device), "seconds": round(seconds, 3)}
        with self._alone():
            cases, failed, earlier = self._kept()
            self._write(cases, failed | result.failed, earlier, tail)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if self.others is None:
            yield
            return
        with ExitStack() as stack:
            try:
                stack.enter_context(alone(self.path))
            except OSError as error:
                raise InputError(
                    f"several processes share {self.path}, and it cannot be locked ({error}).",
                    "Convert with one process, or give an output on another file system.",
                ) from error
            yield

    def _kept(self) -> tuple[dict[str, Any], dict[str, str], list[dict[str, Any]]]:
        """What the record in the same place says.

        Returns:
            The cases of this model with these settings, failures of the other processes, and the records of other
            models and settings, whose results may lie in the same folder.
        """
        cases: dict[str, Any] = {}
        failed: dict[str, str] = {}
        earlier: list[dict[str, Any]] = []
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                return {}, {}, []
            for known in (content, *content.get("earlier", ())):
                if _identity(known) == _identity(self.head):
                    cases |= known["cases"]
                    failed |= known.get("failed", {})
                else:
                    earlier.append({key: known[key] for key in ("program", "model", "settings", "cases")})
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return {}, {}, []  # not a record of ours: it finishes nothing, and existing files are refused
        return cases, {case: reason for case, reason in failed.items() if case in (self.others or ())}, earlier

    def _write(
        self, cases: dict[str, Any], failed: dict[str, str], earlier: list[dict[str, Any]], tail: dict[str, Any]
    ) -> None:
        program = {"medcyclegan": __version__, "python": platform.python_version()}
        program |= {name: version(name) for name in ("torch", "monai", "nibabel", "SimpleITK", "numpy")}
        content = {"format": FORMAT, "version": VERSION, "program": program, **self.head}
        content |= {"cases": dict(sorted(cases.items())), "failed": dict(sorted(failed.items())), **tail}
        if earlier := [known for known in earlier if known["cases"]]:
            content["earlier"] = earlier
        write_json(self.path, content)


def _identity(content: dict[str, Any]) -> Any:
    """What two runs share that give the same files: weights and settings, wherever the checkpoint lies."""
    model = content["model"]
    return [c["sha256"] for c in model["checkpoints"]], model["direction"], content["settings"]


def _name(path: str) -> str:
    """Of a result: its folder may have been moved since it was recorded."""
    return Path(path).name


def _inputs(inputs: Sequence[Path]) -> dict[str, tuple[Path, ...]]:
    files: dict[str, tuple[Path, ...]] = {}
    for path in inputs:
        for case, file in list_volumes(path).items() if path.is_dir() else [(case_id(path), path)]:
            if case in files:
                raise InputError(
                    f"the case id '{case}' occurs twice: {files[case][0]} and {file}.", "Convert them apart."
                )
            files[case] = (file,)
    return files


def _inputs_of_contrasts(inputs: Sequence[Path], contrasts: Sequence[str]) -> dict[str, tuple[Path, ...]]:
    """Case id -> its file of every contrast, in order.

    Raises:
        InputError: the wrong number of inputs, files beside folders, or a case that lacks a contrast.
    """
    order = f"the model takes {len(contrasts)} contrasts, in this order: {', '.join(contrasts)}"
    if len(inputs) != len(contrasts):
        raise InputError(
            f"{len(inputs)} input{'s' * (len(inputs) != 1)} given, and {order}.",
            "Give one file or one folder for each.",
        )
    if len({path.resolve() for path in inputs}) < len(inputs):
        raise InputError(f"an input is given twice ({', '.join(map(str, inputs))}), and {order}.")
    found = [list_volumes(path) if path.is_dir() else {case_id(path): path} for path in inputs]
    # A file, or a folder that is one DICOM series, is the case itself, whatever it is called.
    single = [
        not path.is_dir() or list(volumes.values()) == [path] for path, volumes in zip(inputs, found, strict=True)
    ]
    named = [_short_ids(volumes, contrast) for volumes, contrast in zip(found, contrasts, strict=True)]
    raise_all(_misnamed(inputs, found, contrasts), f"the inputs are in another order; {order}:")
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
            f"case '{case}': no {contrast} in {path}"
            for contrast, path, own in zip(contrasts, inputs, named, strict=True)
            if case not in own
        ]
    raise_all(problems, f"the inputs do not fit each other; {order}, and cases are matched by id:")
    return {case: tuple(own[case] for own in named) for case in sorted(named[0])}


def _misnamed(inputs: Sequence[Path], found: Sequence[Mapping[str, Path]], contrasts: Sequence[str]) -> Iterator[str]:
    """Inputs all of whose names end with the name of another contrast than the one they were given as."""
    for path, volumes, contrast in zip(inputs, found, contrasts, strict=True):
        for other in contrasts:
            ending = re.compile(rf"(?:^|.*[_\-. ]){re.escape(other)}", re.IGNORECASE)
            if other != contrast and all(ending.fullmatch(case) for case in volumes):
                yield f"{path} was given as {contrast}, and its name says {other}"


def _short_ids(volumes: Mapping[str, Path], contrast: str) -> dict[str, Path]:
    """Case ids without what all of a contrast end with: its name, or nnU-Net's number of a channel."""
    for ending in (re.escape(contrast), r"\d{4}"):
        found = [re.fullmatch(rf"(.+)[_\-. ]({ending})", case, re.IGNORECASE) for case in volumes]
        if all(found) and len({match.group(2).lower() for match in found if match}) == 1:
            return {match.group(1): file for match, file in zip(found, volumes.values(), strict=True) if match}
    return dict(volumes)


def _targets(files: Mapping[str, object], output: Path, file_format: str, modality: str) -> dict[str, Path]:
    if file_format not in ENDINGS:
        raise InputError(f"there is no format '{file_format}'; allowed are {', '.join(ENDINGS)}.")
    if file_format == "dicom" and modality != "CT":
        raise InputError(f"only CT is written as DICOM, and this direction gives {modality}.", "Leave out --format.")
    if output.name.lower().endswith(VOLUME_SUFFIXES):
        if file_format == "dicom":
            raise InputError(f"{output} is the name of a file, and DICOM needs a folder.", "Give a folder as output.")
        if len(files) != 1:
            raise InputError(f"{output} is one file, but {len(files)} volumes are to be converted.", "Give a folder.")
        return dict.fromkeys(files, output)
    if not output.is_dir() and (output.exists() or output.suffix.lower() in OTHER_ENDINGS):
        raise InputError(
            f"{output} is a file of another kind, or ends like one.",
            "Give a folder, or a name that ends in .nii.gz; DICOM is --format dicom and a folder.",
        )
    return {case: output / f"{case}_s{modality.lower()}{ENDINGS[file_format]}" for case in files}


def _format(output: Path, file_format: str) -> str:
    name = output.name.lower()
    return next((ending for ending in (".nii.gz", *VOLUME_SUFFIXES) if name.endswith(ending)), file_format)


def _refuse_own_inputs(files: Mapping[str, tuple[Path, ...]], targets: Mapping[str, Path]) -> None:
    """Refuse to write over what is to be read: volumes would be lost, or results translated once more."""
    inputs = {path.resolve() for paths in files.values() for path in paths}
    raise_all(
        [f"{target}, from {_named(files[case])}" for case, target in targets.items() if target.resolve() in inputs],
        "these files would be written and are inputs themselves; write into another folder:",
    )


def _require_writable(folder: Path) -> None:
    """Refuse before hours of work and not after."""
    existing = next((path for path in (folder, *folder.absolute().parents) if os.access(path, os.F_OK)), None)
    if existing is not None and not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise InputError(
            f"{folder} cannot be written: '{existing.absolute()}' is no folder that you may write into.",
            "Give another output.",
        )


def _record_path(output: Path) -> Path:
    """run.json in the folder, or beside a single file under its name."""
    if output.name.lower().endswith(VOLUME_SUFFIXES):
        return output.with_name(f"{case_id(output)}.run.json")
    return output / "run.json"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class _Named:
    """Progress that says which case it is about."""

    progress: Progress
    name: str

    def track(self, items: Iterable[T], total: int, description: str) -> Iterator[T]:
        yield from self.progress.track(items, total, f"{self.name}: {description}")
