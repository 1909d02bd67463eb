"""Convert many volumes to files: reading, translating and writing overlap, and a record is kept.

The output folder gets `<case>_sct.nii.gz` (`_smr` where the target is MR; .mha, .nrrd or a folder with a DICOM series
on request), uncertainty maps in `uncertainty/<case>_<map>.nii.gz` on request, and `run.json`: inputs and their hashes,
model, versions, settings, and per case the seconds and the quality record. It is rewritten after every case, so that an
interrupted conversion can be resumed; see `medcyclegan.record`. What is read is found by `medcyclegan.cohort.inputs`.

Under `torchrun` every process takes its own cases, and all write them into the one `run.json`. They are not connected:
a connection ends with the first process that dies, a file lock does not. Finished cases are recorded at once, so
nothing has to be merged in the end.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from monai.data import MetaTensor

from medcyclegan.atomic import sweep
from medcyclegan.cohort.cases import Case
from medcyclegan.cohort.inputs import find_inputs
from medcyclegan.errors import InputError, raise_all, show_traceback
from medcyclegan.factory import choose_checkpoint, load_translator
from medcyclegan.inference.ensemble import Ensemble
from medcyclegan.inference.statistics import Statistics, check_statistics
from medcyclegan.inference.translator import Prediction, Source, Translation, Translator
from medcyclegan.io.dicom.ct_series import write_ct_series
from medcyclegan.io.reader import VOLUME_SUFFIXES, case_id, grid_of, read_mask, read_volume
from medcyclegan.progress import Progress, Silent
from medcyclegan.ranks import env_rank, own_device
from medcyclegan.record import Record as _Record
from medcyclegan.record import uncertainty_file
from medcyclegan.survey.hounsfield import looks_like_hu
from medcyclegan.training.checkpoint import FILE_NAME

T = TypeVar("T")
OTHER_ENDINGS = re.compile(r"\.(csv|dcm|html|jpg|json|npy|npz|pdf|png|pt|tif|txt|zip)", re.IGNORECASE)
ENDINGS = {"nifti": ".nii.gz", "mha": ".mha", "nrrd": ".nrrd", "dicom": ""}
# Voxels of a volume above which the next one is not read ahead: three of them in memory are too many.
LARGE = 64_000_000
UNCERTAINTY_MAPS = ("spread", "structure", "cycle", "combined")


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion.

    Attributes:
        written: case id -> file; without those of an earlier run, see `skipped`.
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


@dataclass(frozen=True)
class Options:
    """How volumes are converted.

    Attributes:
        direction: "ab" or "ba".
        which: checkpoint of a run, "last" or "best", as in `load_translator`.
        ensemble: planes, flips and how they are fused.
        norm_statistics: of instance norms, see `inference.statistics`.
        masks: folder of body masks with the same case ids, or one mask for a single volume; each on the grid of its
            (first) volume. Without them the body is found from the intensities.
        uncertainty: write uncertainty maps too.
        file_format: "nifti", "mha" or "nrrd", of no meaning where the output is a file; "dicom" for a CT series in the
            folder `<case>_sct`, with uncertainty maps as NIfTI.
        overwrite: replace files that exist; without it they are refused before anything is computed. So is a
            `run.json` that is another program's, or damaged.
        resume: leave out cases that `run.json` in the output says were finished by the same model with the same
            settings from the same voxels and masks; their files may exist, and so may those that such a run was
            writing when it ended.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        allow: as in `load_translator`.
    """

    direction: str = "ab"
    which: str = "last"
    ensemble: Ensemble = field(default_factory=Ensemble)
    norm_statistics: Statistics = "window"
    masks: Path | None = None
    uncertainty: bool = False
    file_format: str = "nifti"
    overwrite: bool = False
    resume: bool = False
    device: str = "auto"
    allow: Iterable[str] = ()


DEFAULTS = Options()


def convert(
    checkpoint: Path | Sequence[Path],
    inputs: Sequence[Path],
    output: Path,
    options: Options = DEFAULTS,
    progress: Progress | None = None,
) -> Conversion:
    """Translate files and folders of volumes; a case that fails is listed and does not stop the others.

    Args:
        checkpoint: a run or a checkpoint file; several are an ensemble, whose results are fused.
        inputs: volumes, or folders of which every volume is taken; in the SynthRAD layout the volumes that the model
            takes, with their masks as bodies. For a model of several channels exactly one input per channel, in the
            model's order: a volume each, or a folder each, whose volumes are matched by case id (nnU-Net's suffix
            `_0000` and a contrast's own name at the end aside).
        output: a folder for `<case>_sct.nii.gz` (`_smr` where the target is MR), or a file for a single volume.
        options: how.
        progress: watches the slices.

    Raises:
        InputError: nothing can be converted as asked; nothing is written then.
        OSError: the disk is full; what was finished before stays, and is in the record.
    """
    rank, processes = env_rank()
    overwrite, resume, uncertainty = options.overwrite, options.resume, options.uncertainty
    check_statistics(options.norm_statistics)
    if overwrite and resume:
        raise InputError("overwrite converts everything again and resume keeps finished cases.", "Choose one of them.")
    given = [checkpoint] if isinstance(checkpoint, Path) else checkpoint
    checkpoints = [choose_checkpoint(path, options.which) for path in given]
    translator = load_translator(
        checkpoints,
        direction=options.direction,
        device=own_device(options.device),
        ensemble=options.ensemble,
        norm_statistics=options.norm_statistics,
        allow=options.allow,
    )
    files = find_inputs(
        inputs,
        options.masks,
        channels=translator.channels,
        modality=translator.source.preparations[0].modality,
        domain=options.direction[0],
    )
    targets = _targets(files, output, options.file_format, translator.modality)
    _refuse_own_inputs(files, targets)
    chosen = list(files)[rank::processes]
    others = set(files) - set(chosen) if processes > 1 else None
    record = _Record(_record_path(output), others, _made_by(checkpoints, options, output), overwrite=overwrite)
    record.check()
    finished = record.finished() if resume else {}
    unfinished = record.unfinished() if resume else {}
    interrupted = {
        case for case, entry in unfinished.items() if case in targets and _is_same_file(entry["output"], targets[case])
    }
    if not overwrite:
        remedy = "write somewhere else, or allow --overwrite or --resume"
        raise_all(
            [
                f"{path}" + (", written with another model or settings" if resume else "")
                for case in chosen
                for path in (
                    targets[case],
                    *(_uncertainty_files(targets[case], translator.modality) if uncertainty else ()),
                )
                if path.exists() and case not in finished and case not in interrupted
            ],
            f"these files exist already; {remedy}:",
        )
    started = time.monotonic()
    file = checkpoints[0] / FILE_NAME if checkpoints[0].is_dir() else checkpoints[0]
    result = Conversion({}, {}, model=f"{file} ({translator.description.rpartition(', ')[2]})")
    reader, writer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
    pending: list[tuple[str, Future[dict[str, Any]]]] = []

    done: dict[str, tuple[list[str], str | None]] = {
        case: (entry["voxels_sha256"], entry.get("mask_sha256"))
        for case, entry in finished.items()
        if case in targets
        and _is_same_file(entry["output"], targets[case])
        and targets[case].exists()
        and all(uncertainty_file(targets[case], Path(path).name).exists() for path in entry["uncertainty"].values())
    }

    if not set(chosen) <= set(done):
        _require_writable(record.path.parent)
    for folder in (record.path.parent, record.path.parent / "uncertainty"):
        sweep(folder)
    caught = _CaseWarnings()

    def read_case(case: str) -> _Read:
        with caught.during(case):
            return _read(files[case], translator, done.get(case))

    def start(case: str) -> Future[_Read]:
        return reader.submit(read_case, case)

    def write(case: str, finish: _Finish, prediction: Prediction) -> dict[str, Any]:
        """Recorded at once and not with the next case, since the process may be killed in between."""
        with caught.during(case):
            translation = finish.translation(prediction)
            record.begin(case, targets[case], list(finish.maps(translation).values()))
            entry = finish.save(translation)
        entry |= {"warnings": caught.texts[case]} if caught.texts[case] else {}
        record.add(case, entry)
        return entry

    def attempt(case: str, work: Callable[[], T]) -> T | None:
        try:
            with caught.during(case):
                return work()
        except Exception as error:
            result.failed[case] = _reason(error)
            return None

    def collect() -> None:
        while pending:
            case, writing = pending.pop()
            if (entry := attempt(case, writing.result)) is not None:
                result.written[case], result.quality[case] = targets[case], entry["quality"]

    try:
        with caught.recording():
            ahead: Future[_Read] | None = None
            for number, case in enumerate(chosen):
                reading = ahead or start(case)
                ahead = None
                begun = time.monotonic()
                if (read := attempt(case, reading.result)) is None:
                    continue
                if read.source is None:
                    result.skipped[case] = targets[case]
                    continue
                if case in done:
                    what = str(files[case]) if read.digests != done[case][0] else f"the mask of {case}"
                    result.failed[case] = f"{what} has changed since {targets[case]} was written. Allow --overwrite."
                    continue
                if number + 1 < len(chosen) and read.source.case.image.size <= LARGE:
                    ahead = start(chosen[number + 1])
                watch = _CaseProgress(progress or Silent(), f"{case} ({number + 1}/{len(chosen)})")
                predict = partial(translator.predict, read.source, uncertainty=uncertainty, progress=watch)
                if (prediction := attempt(case, predict)) is None:
                    continue
                collect()
                finish = _Finish(translator, files[case], targets[case], read, read.source, begun)
                pending.append((case, writer.submit(write, case, finish, prediction)))
                del read, reading, predict, prediction
            collect()
    finally:
        reader.shutdown(cancel_futures=True)
        writer.shutdown()
    if result.written or result.failed or (result.skipped and not record.is_closed()):
        seconds = round(time.monotonic() - started, 3)
        record.close(result.failed, {"device": str(translator.window.device), "seconds": seconds})
    return result


@dataclass(frozen=True)
class _Read:
    """A volume that was read and, unless it is done already, prepared."""

    source: Source | None
    digests: list[str]  # of each channel's voxels and affine, whatever the file's format
    mask: str | None = None  # digest of the body mask, where one was given
    wrong_modality: str | None = None


def _read(given: Case, translator: Translator, done: tuple[list[str], str | None] | None) -> _Read:
    """Read the files of a case; leave out the preparation where volumes and mask are those of the digests `done`."""
    files = given.images
    volumes = [read_volume(file) for file in files]
    body = None if given.body is None else read_mask(given.body, grid_of(volumes[0]))
    digests = [_digest(volume) for volume in volumes]
    mask = None if body is None else hashlib.sha256(np.packbits(body).data).hexdigest()
    if (digests, mask) == done:
        return _Read(None, digests, mask)
    hu = [str(file) for file, volume in zip(files, volumes, strict=True) if looks_like_hu(volume.numpy()[0])]
    expected, wrong = translator.source.preparations[0].modality, None
    if hu and expected == "MR":
        wrong = "the values look like a CT in Hounsfield units, and the model takes MR"
        if len(files) > 1:
            raise InputError(f"{', '.join(hu)}: {wrong}: {', '.join(translator.channels)}.")
    if not hu and expected == "CT":
        wrong = "the values do not look like Hounsfield units, and the model takes CT"
    return _Read(translator.read(volumes, body), digests, mask, wrong)


def _digest(volume: MetaTensor) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(volume.numpy()[0]).data)
    digest.update(np.round(volume.affine.numpy().astype(np.float64), 4).tobytes())
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    """Why a case failed, whatever a library raised for it. On a full disk every case would, so that is raised again."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise error
    show_traceback(error)
    if isinstance(error, InputError | OSError):
        return str(error)
    if isinstance(error, MemoryError):
        return "there is not enough memory."
    if isinstance(error, torch.OutOfMemoryError):
        return f"the device has not enough memory ({str(error).partition('.')[0]})."
    return f"{type(error).__name__}: {error}"


class _CaseWarnings:
    """Records warnings by the case that the thread works on; they are shown too."""

    def __init__(self) -> None:
        self.texts: dict[str, list[str]] = defaultdict(list)
        self._here = threading.local()

    @contextmanager
    def recording(self) -> Iterator[None]:
        with warnings.catch_warnings():
            show = warnings.showwarning

            def record_warning(message: Warning | str, *rest: Any, **more: Any) -> None:
                if (case := getattr(self._here, "case", None)) is not None:
                    self.texts[case].append(str(message))
                show(message, *rest, **more)

            warnings.showwarning = record_warning
            yield

    @contextmanager
    def during(self, case: str) -> Iterator[None]:
        self._here.case = case
        try:
            yield
        finally:
            self._here.case = None


def _uncertainty_files(target: Path, modality: str) -> list[Path]:
    """Where the uncertainty maps of a result lie, in the order of `UNCERTAINTY_MAPS`."""
    ending = next((e for e in (".nii.gz", *VOLUME_SUFFIXES) if target.name.lower().endswith(e)), "")
    stem = target.name[: len(target.name) - len(ending)].removesuffix(f"_s{modality.lower()}")
    return [uncertainty_file(target, f"{stem}_{name}{ending or '.nii.gz'}") for name in UNCERTAINTY_MAPS]


@dataclass(frozen=True)
class _Finish:
    """The last stage of a case: back to its grid, and into files."""

    translator: Translator
    given: Case
    target: Path
    read: _Read
    source: Source
    begun: float

    def translation(self, prediction: Prediction) -> Translation:
        translation = self.translator.finish(self.source, prediction)
        if self.read.wrong_modality:
            translation.quality["flags"].insert(0, self.read.wrong_modality)
        return translation

    def maps(self, translation: Translation) -> dict[str, Path]:
        """Uncertainty map by name -> its file."""
        every = dict(zip(UNCERTAINTY_MAPS, _uncertainty_files(self.target, self.translator.modality), strict=True))
        return {name: every[name] for name in translation.uncertainty}

    def save(self, translation: Translation) -> dict[str, Any]:
        """Write all files of the case; gives its entry in the record."""
        maps = self.maps(translation)
        for name, path in maps.items():
            translation.save_uncertainty(name, path)
        files = self.given.images
        # Last, so that a result that exists is complete.
        if self.target.name.lower().endswith(VOLUME_SUFFIXES):
            translation.save(self.target)
        else:
            write_ct_series(
                self.target,
                translation.array,
                translation.grid,
                source=files[0],
                description=translation.description,
            )
        mask = {} if self.given.body is None else {"mask": str(self.given.body), "mask_sha256": self.read.mask}
        return {
            "inputs": [str(file) for file in files],
            "voxels_sha256": self.read.digests,
            **mask,
            "output": str(self.target),
            "uncertainty": {name: str(path) for name, path in maps.items()},
            "seconds": round(time.monotonic() - self.begun, 3),
            "quality": translation.quality,
        }


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
    if not output.is_dir() and (output.exists() or OTHER_ENDINGS.fullmatch(output.suffix)):
        raise InputError(
            f"{output} is a file of another kind, or ends like one.",
            "Give a folder, or a name that ends in .nii.gz; DICOM is --format dicom and a folder.",
        )
    return {case: output / f"{case}_s{modality.lower()}{ENDINGS[file_format]}" for case in files}


def _made_by(checkpoints: Sequence[Path], options: Options, output: Path) -> dict[str, Any]:
    """Model and settings that determine the results, for the record; other results are not resumed.

    Raises:
        InputError: an ensemble holds a model twice.
    """
    digests = [_sha256(path / FILE_NAME if path.is_dir() else path) for path in checkpoints]
    if len(set(digests)) < len(digests):
        raise InputError(
            f"a model is given twice ({', '.join(map(str, checkpoints))}). It agrees with itself everywhere, so that "
            "what it is unsure of would count as certain.",
            "Give each model of an ensemble once.",
        )
    return {
        "model": {
            "checkpoints": [
                {"path": str(path), "sha256": digest} for path, digest in zip(checkpoints, digests, strict=True)
            ],
            "direction": options.direction,
        },
        "settings": {
            "planes": list(options.ensemble.planes),
            "flips": options.ensemble.flips,
            "fuse": options.ensemble.fuse,
            "norm_statistics": options.norm_statistics,
            "uncertainty": options.uncertainty,
            "format": _format(output, options.file_format),
        },
    }


def _is_same_file(recorded: str, target: Path) -> bool:
    """Whether the recorded file is this one; its folder may have been moved."""
    return Path(recorded).name == target.name


def _format(output: Path, file_format: str) -> str:
    name = output.name.lower()
    return next((ending for ending in (".nii.gz", *VOLUME_SUFFIXES) if name.endswith(ending)), file_format)


def _refuse_own_inputs(files: Mapping[str, Case], targets: Mapping[str, Path]) -> None:
    """Refuse to overwrite inputs: volumes would be lost, or results translated again."""
    inputs = {path.resolve() for given in files.values() for path in (*given.images, given.body) if path}
    raise_all(
        [f"{target}, from {files[case]}" for case, target in targets.items() if target.resolve() in inputs],
        "these files would be written and are inputs themselves; write into another folder:",
    )


def _require_writable(folder: Path) -> None:
    """Check before hours of work that the folder can be written."""
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
class _CaseProgress:
    """Progress that names the case."""

    progress: Progress
    name: str

    def track(self, items: Iterable[T], total: int, description: str) -> Iterator[T]:
        yield from self.progress.track(items, total, f"{self.name}: {description}")
