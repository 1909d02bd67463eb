"""The prepared cache: every case once on the working grid, on disk, memory-mapped.

    PREPARED/prepared.json            what was prepared, how, and what failed
    PREPARED/a/<case>/case.json       grids, scaler, and the key that says what the case was made from
    PREPARED/a/<case>/image.npy       int16, [-1, 1] times 32767, (X, Y, Z), axial slices contiguous
    PREPARED/a/<case>/body.npy        bool, the same shape
                                      of several contrasts image.npy is (C, X, Y, Z), body.npy still (X, Y, Z)
    PREPARED/b/..., pairs_a/..., pairs_b/...    the same for domain b and for the validation pairs
    PREPARED/pairs_b/<case>/registration.png    how b lies on a, where pairs are registered

A case is made again exactly when its files' content or the settings have changed. Everything is written beside and then
renamed, so a crash leaves whole cases only.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from medcyclegan.atomic import atomic_folder, write_json
from medcyclegan.data.datalist import Case, Cohort, contrast_names
from medcyclegan.data.facts import measure_values
from medcyclegan.data.inspection import looks_like_hu, modality_suspicions
from medcyclegan.data.pairs import SAME_GRID_MM, SAME_GRID_VOXELS, on_one_grid
from medcyclegan.data.parallel import Crew
from medcyclegan.data.registered import register_onto, save_picture
from medcyclegan.data.stored_image import StoredImage, encode
from medcyclegan.data.suspicions import NOTE, Member, of_volume
from medcyclegan.errors import InputError, raise_all
from medcyclegan.io.dicom.files import split_choice
from medcyclegan.io.grid import Grid
from medcyclegan.io.headers import Header
from medcyclegan.io.pictures import PICTURE_SUFFIXES
from medcyclegan.io.reader import grid_of, read_mask, read_volume, volume_files
from medcyclegan.progress import Progress, Silent
from medcyclegan.transforms.contrasts import APART_MM, landmark_shares_of, prepare_contrasts
from medcyclegan.transforms.geometry import working_grid
from medcyclegan.transforms.intensity import CT_WINDOW, Scaler
from medcyclegan.transforms.pipeline import FurtherContrast, Preparation, PreparedCase
from medcyclegan.transforms.standardization import fit_landmarks

FORMAT = "medcyclegan-prepared"
VERSION = 3  # raise it when the preparation of the same input gives other values
GROUPS = ("a", "b", "pairs_a", "pairs_b")


@dataclass(frozen=True)
class StoredCase:
    """A prepared case on disk; its arrays are opened on use and not read into memory."""

    id: str
    folder: Path
    grid: Grid
    source_grid: Grid
    scaler: Scaler
    image_file: Path  # where the scan came from
    blanked_ml: float = 0.0  # of an MR that was defaced, mL
    further: tuple[FurtherContrast, ...] = ()  # contrasts after the first, in order

    @property
    def image(self) -> StoredImage:
        """(X, Y, Z), of several contrasts (C, X, Y, Z), float32 in [-1, 1] wherever it is indexed, memory-mapped."""
        return StoredImage(np.load(self.folder / "image.npy", mmap_mode="r"))

    @property
    def body(self) -> npt.NDArray[np.bool_]:
        """(X, Y, Z), memory-mapped."""
        return np.load(self.folder / "body.npy", mmap_mode="r")

    @property
    def scalers(self) -> tuple[Scaler, ...]:
        """Of all contrasts, in order."""
        return (self.scaler, *(contrast.scaler for contrast in self.further))


@dataclass(frozen=True)
class PreparedCohort:
    """A prepared folder.

    Attributes:
        folder: where it lies.
        preparations: "a" and "b" -> how their volumes were prepared.
        cases: each of `GROUPS` -> its cases, sorted by id; `pairs_a` and `pairs_b` run in parallel.
        failed: "group/case" -> why it could not be prepared.
        warnings: what was suspicious, one line each.
        register_pairs: whether b of each pair was moved onto a.
        contrasts: "a" and "b" -> the names of its contrasts in the order of the channels; of a domain with several.
        further: likewise, how the volumes of each contrast after the first were prepared.
    """

    folder: Path
    preparations: dict[str, Preparation]
    cases: dict[str, tuple[StoredCase, ...]]
    failed: dict[str, str]
    warnings: tuple[str, ...]
    register_pairs: bool = False
    contrasts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    further: dict[str, tuple[Preparation, ...]] = field(default_factory=dict)

    def of_contrasts(self, domain: str) -> tuple[Preparation, ...]:
        """How each contrast of a domain was prepared, in order; one, where it has a single one."""
        return (self.preparations[domain], *self.further.get(domain, ()))

    def fingerprint(self) -> str:
        """The same for every copy of this cohort, another one if any training volume or its preparation is another."""
        digest = hashlib.blake2b(digest_size=16)
        for group in ("a", "b"):
            for case in self.cases[group]:
                key = json.loads((case.folder / "case.json").read_text(encoding="utf-8"))["key"]
                digest.update(json.dumps([group, case.id, key], sort_keys=True).encode())
        return digest.hexdigest()

    def typical_scaler(self, domain: str, contrast: int = 0) -> Scaler:
        """The median of the training volumes' scalers: what a translation into this domain is scaled back with.

        Args:
            domain: "a" or "b".
            contrast: which of its contrasts, from 0.
        """
        scalers = [case.scalers[contrast] for case in self.cases[domain]]
        low, high = (float(np.median([getattr(s, end) for s in scalers])) for end in ("low", "high"))
        # A volume whose deciles coincided has fewer landmarks; those of the others say where they lie.
        most = max(len(s.landmarks) for s in scalers)
        bent = [s for s in scalers if len(s.landmarks) == most]
        shares = [share for _, share in bent[0].landmarks]
        places = [float(np.median([(s.landmarks[i][0] - s.low) / (s.high - s.low) for s in bent])) for i in range(most)]
        landmarks = tuple((low + place * (high - low), share) for place, share in zip(places, shares, strict=True))
        return Scaler(low, high, scalers[0].inverted, scalers[0].floor, landmarks)


def prepare_cohort(
    cohort: Cohort,
    output: Path,
    *,
    modalities: Mapping[str, str],
    spacing: tuple[float, float, float] | None = None,
    ct_window: tuple[float, float] = CT_WINDOW,
    mr_percentiles: tuple[float, float] = (0.5, 99.5),
    mr_inverted: bool = False,
    mr_floor: float = -1.0,
    interpolation: str = "linear",
    crop_margin: float | None = None,
    mr_n4_shrink: int = 0,
    mr_standardization: str = "percentile",
    mr_exclude_blanked: bool = True,
    register_pairs: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> PreparedCohort:
    """Prepare every case of a cohort into `output`, reusing what is already there and unchanged.

    Cases that fail are listed in the result and leave the others alone. The number of workers changes no value.

    Args:
        modalities: "a" and "b" -> "MR" or "CT".
        spacing: working spacing along right, anterior, superior in mm; None takes the median of all volumes per axis,
            rounded to 0.01 mm.
        ct_window: HU that become -1 and 1.
        mr_percentiles: percentiles inside the body that become -1 and 1.
        mr_inverted: they become 1 and -1 instead.
        mr_floor: lowest value inside the body, in [-1, 1).
        interpolation, crop_margin, mr_n4_shrink, mr_standardization, mr_exclude_blanked: as in
            `transforms.pipeline.Preparation`; the landmarks of "nyul" are fitted on the training volumes of each
            domain. Pairs are not cropped, so that both stay on one grid.
        register_pairs: move b of every pair onto a, see `data.registered`.
        workers: processes that work side by side, 0: one per core; with more than one, a script that calls this needs
            the usual `if __name__ == "__main__":`.

    Raises:
        InputError: if `output` holds something else, the domains seem swapped, or no case of a domain is usable.
    """
    _check_output(output)
    names = {
        domain: tuple(cohort.contrasts.get(domain) or contrast_names(count))
        for domain in ("a", "b")
        if (count := cohort.files_per_case(domain)) > 1
    }
    _refuse_impossible(names, modalities, register_pairs)
    jobs = _jobs(cohort)
    failed: dict[str, str] = {}
    known: dict[str, _Source] = {}
    with Crew(workers, progress or Silent()) as crew:
        looks = {name: (job, output / name, modalities[_domain(name)]) for name, job in jobs.items()}
        for name, found in crew.each(_examine, looks, "checking volumes"):
            if isinstance(found, InputError):
                failed[name] = str(found)
            else:
                known[name] = found
        known = {name: known[name] for name in jobs if name in known}  # they come as they are done
        warnings = [*_check_modalities(known, modalities), *(line for s in known.values() for line in s.suspicions)]
        _require_both(known, failed)
        chosen = spacing or _median_spacing([source.grid for source in known.values()])
        preparations = {
            domain: Preparation(
                modalities[domain],
                chosen,
                ct_window,
                mr_percentiles,
                mr_inverted,
                mr_floor,
                interpolation,
                crop_margin,
                mr_n4_shrink,
                mr_standardization,
                mr_exclude_blanked=mr_exclude_blanked,
            )
            for domain in ("a", "b")
        }
        further = {domain: (preparations[domain],) * (len(called) - 1) for domain, called in names.items()}
        _refuse_misfits(cohort, known, failed, chosen, register_pairs)
        if mr_standardization == "nyul":
            shares = _landmark_shares(crew, jobs, known, failed, preparations, output)
            for domain, rows in shares.items():
                fitted = [
                    replace(preparations[domain], mr_landmarks=fit_landmarks(list(of_contrast)))
                    for of_contrast in zip(*rows, strict=True)
                ]
                preparations[domain] = fitted[0]
                further |= {domain: tuple(fitted[1:])} if domain in names else {}
        tasks = {}
        for name, source in known.items():
            if name in failed:
                continue
            every = [preparations[_domain(name)], *further.get(_domain(name), ())]
            fixed = None
            if name.startswith("pairs_"):
                every = [replace(preparation, crop_margin=None) for preparation in every]
                if register_pairs and name.startswith("pairs_b/"):
                    partner = name.replace("pairs_b/", "pairs_a/", 1)
                    if partner not in known:
                        failed[name] = "its partner in a could not be read, so that there is nothing to move it onto."
                        continue
                    fixed = jobs[partner]
            key = {"version": VERSION, "content": source.content, "preparation": asdict(every[0])}
            if len(every) > 1:
                key["further"] = [asdict(preparation) for preparation in every[1:]]
            if fixed is not None:
                key["registered_to"] = known[f"pairs_a/{fixed.id}"].content
            if source.stored is None or source.stored.get("key") != json.loads(json.dumps(key)):
                called = names.get(_domain(name), ())
                tasks[name] = (jobs[name], every, called, key, source, output / name, fixed, modalities["a"])
        for name, error in crew.each(_store, tasks, "preparing volumes"):
            if isinstance(error, InputError):
                failed[name] = str(error)
    done = {name for name in known if name not in failed}
    _require_both(done, failed)
    _remove_strangers(output, done)
    cases = {group: sorted(n.split("/", 1)[1] for n in done if n.startswith(f"{group}/")) for group in GROUPS}
    both = set(cases["pairs_a"]) & set(cases["pairs_b"])
    cases |= {group: [case for case in cases[group] if case in both] for group in ("pairs_a", "pairs_b")}
    write_json(
        output / "prepared.json",
        {
            "format": FORMAT,
            "version": VERSION,
            "preparations": {domain: asdict(preparation) for domain, preparation in preparations.items()},
            "cases": cases,
            "failed": dict(sorted(failed.items())),
            "warnings": warnings + _blanked_lines(output, done) + _contrast_lines(output, done, names),
            "register_pairs": register_pairs,
            **(
                {
                    "contrasts": {domain: list(called) for domain, called in names.items()},
                    "further": {domain: [asdict(p) for p in every] for domain, every in further.items()},
                }
                if names
                else {}
            ),
        },
    )
    return open_prepared(output)


def open_prepared(folder: Path) -> PreparedCohort:
    """Open a prepared folder.

    Raises:
        InputError: if it is not one, or one of another version.
    """
    file = folder / "prepared.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise KeyError("format")
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{folder} is not a prepared folder: it has no usable prepared.json.",
            "Make one with `medcyclegan prepare --a MR_DIR --b CT_DIR -o PREPARED`.",
        ) from None
    if content["version"] != VERSION:
        raise InputError(
            f"{folder} was prepared by another version of this program (format {content['version']}, now {VERSION}).",
            "Run `medcyclegan prepare` on it again.",
        )
    return PreparedCohort(
        folder=folder,
        preparations={domain: Preparation(**values) for domain, values in content["preparations"].items()},
        cases={group: tuple(_open_case(folder / group / case) for case in content["cases"][group]) for group in GROUPS},
        failed=content["failed"],
        warnings=tuple(content["warnings"]),
        register_pairs=content["register_pairs"],
        contrasts={domain: tuple(names) for domain, names in content.get("contrasts", {}).items()},
        further={
            domain: tuple(Preparation(**values) for values in every)
            for domain, every in content.get("further", {}).items()
        },
    )


@dataclass(frozen=True)
class _Source:
    """What the first look at a case's files told."""

    content: dict[str, str | list[str] | None]  # hashes of the files
    grid: Grid
    hu: bool
    suspicions: tuple[str, ...]
    stored: dict[str, Any] | None  # case.json of an earlier preparation of the same content


def _jobs(cohort: Cohort) -> dict[str, Case]:
    """Every volume by its place in the prepared folder, for example "a/001"."""
    jobs = {
        f"{domain}/{case.id}": replace(case, levels=cohort.levels.get(domain))
        for domain in ("a", "b")
        for case in getattr(cohort, domain)
    }
    for pair in cohort.pairs:
        for domain, (first, *further) in pair.images.items():
            jobs[f"pairs_{domain}/{pair.id}"] = Case(
                pair.id, first, pair.body, cohort.levels.get(domain), tuple(further)
            )
    return jobs


def _refuse_impossible(names: Mapping[str, tuple[str, ...]], modalities: Mapping[str, str], register: bool) -> None:
    problems = [
        f"domain {domain} is {modalities[domain]} and has {len(called)} contrasts ({', '.join(called)}); several are "
        "for MR"
        for domain, called in names.items()
        if modalities[domain] != "MR"
    ]
    if register and "b" in names:
        problems.append(
            f"preparation.register_pairs moves one volume of b onto a, and b has {len(names['b'])} contrasts "
            f"({', '.join(names['b'])}); register them beforehand"
        )
    raise_all(problems, "the contrasts cannot be prepared:")


def _domain(name: str) -> str:
    return name.split("/", 1)[0][-1]


def _examine(job: Case, folder: Path, modality: str) -> _Source:
    content: dict[str, str | list[str] | None] = {
        "image": _content_hash(job.image),
        "body": _content_hash(job.body) if job.body else None,
    }
    if job.further:
        content["further"] = [_content_hash(image) for image in job.further]
    if job.levels is not None and job.image.name.lower().endswith(PICTURE_SUFFIXES):
        content["levels"] = repr(job.levels)
    try:
        stored = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        if stored["key"]["content"] == content:
            told = tuple(stored.get("suspicions", ()))
            return _Source(content, Grid.from_dict(stored["source_grid"]), stored["hu"], told, stored)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing usable is stored: the case is made anew
    first: Grid | None = None
    hu: list[bool] = []
    suspicions: list[str] = []
    for number, image in enumerate(job.images):
        volume = read_volume(image, job.levels)
        grid, values = grid_of(volume), volume.numpy()[0]
        first = first or grid
        hu.append(looks_like_hu(values))
        one = replace(job, id=f"{job.id} (contrast {number + 1})", image=image) if job.further else job
        suspicions += _suspicions(one, values, grid, modality)
    if job.further and any(hu) and modality == "MR":
        files = ", ".join(str(image) for image, is_hu in zip(job.images, hu, strict=True) if is_hu)
        raise InputError(
            f"{files}: a contrast is MR, and these values look like a CT in Hounsfield units.",
            "Take the file out of the list, or put the right one in its place.",
        )
    assert first is not None  # a case has an image
    return _Source(content, first, hu[0], tuple(suspicions), None)


def _suspicions(job: Case, values: npt.NDArray[np.float32], grid: Grid, modality: str) -> tuple[str, ...]:
    """What `inspect` would say of this volume by itself, notes and what is told elsewhere aside."""
    if job.image.name.lower().endswith(PICTURE_SUFFIXES):
        return ()  # one slice says too little
    facts = measure_values(values, grid, Header(grid, str(values.dtype)), job.image)
    told = of_volume(Member("", job.id, modality, facts))
    return tuple(str(s) for s in told if s.severity != NOTE and s.code not in ("modality", "no_body"))


def _refuse_misfits(
    cohort: Cohort,
    known: Mapping[str, _Source],
    failed: dict[str, str],
    spacing: tuple[float, float, float],
    register_pairs: bool,
) -> None:
    """Pairs whose two files lie on different grids fail, unless one is going to be moved onto the other."""
    for pair in cohort.pairs:
        names = [f"pairs_a/{pair.id}", f"pairs_b/{pair.id}"]
        if all(name in known for name in names) and not register_pairs:
            a, b = (known[name].grid for name in names)
            if not (on_one_grid(a, b) and on_one_grid(*(working_grid(grid, spacing) for grid in (a, b)))):
                failed[names[1]] = (
                    f"{pair.b} does not lie on the grid of {pair.a}: shapes {b.shape} and {a.shape}, up to "
                    f"{a.distance(b):.1f} mm apart (at most {SAME_GRID_MM:g} mm and {SAME_GRID_VOXELS:g} of a voxel "
                    "are allowed). Resample one onto the other, or set preparation.register_pairs."
                )


def _landmark_shares(
    crew: Crew,
    jobs: Mapping[str, Case],
    known: Mapping[str, _Source],
    failed: dict[str, str],
    preparations: Mapping[str, Preparation],
    output: Path,
) -> dict[str, list[list[list[float]]]]:
    """Per MR domain, what every training case contributes to the landmarks of each of its contrasts.

    It is kept in `output` for the next time.
    """
    names = [n for n in known if n[0] in "ab" and n[1] == "/" and preparations[_domain(n)].modality == "MR"]
    file = output / "landmarks.json"
    keys = {
        n: json.dumps({"version": VERSION, "content": known[n].content, "preparation": asdict(preparations[n[0]])})
        for n in names
    }
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        kept = {}
    # Of a single contrast there are nine numbers, of several a list of them for each.
    shares = {
        n: found if isinstance((found := kept[key])[0], list) else [found] for n, key in keys.items() if key in kept
    }
    tasks = {n: (jobs[n], preparations[n[0]]) for n in names if n not in shares}
    for name, found in crew.each(_shares_of, tasks, "fitting landmarks"):
        if isinstance(found, InputError):
            failed[name] = str(found)
        else:
            shares[name] = found
    _require_both({n for n in known if n not in failed}, failed)
    write_json(file, {keys[n]: shares[n] if jobs[n].further else shares[n][0] for n in sorted(shares)})
    return {d: rows for d in ("a", "b") if (rows := [shares[n] for n in sorted(shares) if n[0] == d])}


def _shares_of(job: Case, preparation: Preparation) -> list[list[float]]:
    volumes = [read_volume(image, job.levels) for image in job.images]
    body = read_mask(job.body, grid_of(volumes[0])) if job.body else None
    shares = landmark_shares_of(volumes, [preparation] * len(volumes), body)
    return [[float(share) for share in of_contrast] for of_contrast in shares]


def _contrast_lines(output: Path, done: set[str], names: Mapping[str, tuple[str, ...]]) -> list[str]:
    lines = []
    for name in sorted(name for name in done if _domain(name) in names):
        content = json.loads((output / name / "case.json").read_text(encoding="utf-8"))
        first, *others = names[_domain(name)]
        for called, told in zip(others, content["further"], strict=True):
            if told["covered"] < 0.995:
                lines.append(
                    f"{name}: {called} covers {100 * told['covered']:.0f} % of the body; the rest of it is background "
                    "to the network"
                )
            if told["apart_mm"] is not None and told["apart_mm"] > APART_MM:
                lines.append(
                    f"{name}: {called} and {first} seem to lie {told['apart_mm']:.1f} mm apart (a rigid registration's "
                    "estimate); did the patient move? Register them, or leave the case out"
                )
    return lines


def _blanked_lines(output: Path, done: set[str]) -> list[str]:
    lines = []
    for name in sorted(done):
        blanked = float(json.loads((output / name / "case.json").read_text(encoding="utf-8"))["blanked_ml"])
        if blanked:
            lines.append(
                f"{name}: {blanked:.0f} mL at the body were overwritten (defaced?); they are left out of the body, and "
                "what the network learns of this case has no face there"
            )
    return lines


def _store(
    job: Case,
    preparations: Sequence[Preparation],
    names: Sequence[str],
    key: dict[str, Any],
    source: _Source,
    folder: Path,
    fixed: Case | None = None,
    fixed_modality: str = "MR",
) -> None:
    volume, *others = [read_volume(image, job.levels) for image in job.images]
    record: dict[str, Any] = {}
    covered = picture = None
    if fixed is not None:
        modalities = (fixed_modality, preparations[0].modality)
        volume, covered, picture, record = register_onto(read_volume(fixed.image, fixed.levels), volume, modalities)
    body = read_mask(job.body, grid_of(volume)) if job.body else None
    body = body if covered is None or body is None else body & covered
    prepared = prepare_contrasts([volume, *others], preparations, body, names=names)
    with atomic_folder(folder) as temporary:
        _save(prepared, temporary)
        if picture is not None:
            save_picture(picture, temporary / "registration.png")
        write_json(
            temporary / "case.json",
            {
                "id": job.id,
                "image_file": str(job.image),
                "key": key,
                "hu": source.hu,
                "suspicions": list(source.suspicions),
                "grid": prepared.grid.to_dict(),
                "source_grid": prepared.source_grid.to_dict(),
                "scaler": prepared.scaler.to_dict(),
                "blanked_ml": prepared.blanked_ml,
                "registration": record,
                **({"further": _further(job, prepared)} if job.further else {}),
            },
        )


def _further(job: Case, prepared: PreparedCase) -> list[dict[str, Any]]:
    return [
        {
            "image_file": str(image),
            "scaler": contrast.scaler.to_dict(),
            "covered": round(contrast.covered, 4),
            "apart_mm": round(contrast.apart_mm, 2) if math.isfinite(contrast.apart_mm) else None,
        }
        for image, contrast in zip(job.further, prepared.further, strict=True)
    ]


def _save(prepared: PreparedCase, folder: Path) -> None:
    # Fortran order makes an axial slice [..., k], with all its contrasts, one contiguous piece of the file.
    np.save(folder / "image.npy", np.asfortranarray(encode(prepared.image)))
    np.save(folder / "body.npy", np.asfortranarray(prepared.body))


def _open_case(folder: Path) -> StoredCase:
    try:
        content = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        return StoredCase(
            id=content["id"],
            folder=folder,
            grid=Grid.from_dict(content["grid"]),
            source_grid=Grid.from_dict(content["source_grid"]),
            scaler=Scaler.from_dict(content["scaler"]),
            image_file=Path(content["image_file"]),
            blanked_ml=float(content["blanked_ml"]),
            further=tuple(
                FurtherContrast(
                    Scaler.from_dict(told["scaler"]),
                    float(told["covered"]),
                    math.nan if told["apart_mm"] is None else float(told["apart_mm"]),
                )
                for told in content.get("further", ())
            ),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the prepared case {folder} is damaged ({error}).", "Delete it and run `medcyclegan prepare` again."
        ) from None


def _check_output(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file.", "Give a folder as output.")
    if output.is_dir() and not (output / "prepared.json").exists():
        others = [entry.name for entry in _visible(output) if entry.name not in (*GROUPS, "landmarks.json")]
        if others:
            raise InputError(
                f"{output} exists and holds something else ({', '.join(sorted(others)[:3])}).",
                "Give a new folder, or an earlier prepared one.",
            )


def _visible(folder: Path) -> Iterator[Path]:
    return (entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _check_modalities(known: Mapping[str, _Source], modalities: Mapping[str, str]) -> list[str]:
    """Refuse domains that are swapped as a whole; warn of single cases."""
    hu = {d: {n: s.hu for n, s in known.items() if _domain(n) == d} for d in ("a", "b")}
    if modalities["a"] != modalities["b"] and all(hu.values()):
        mr, ct = ("a", "b") if modalities["b"] == "CT" else ("b", "a")
        if all(hu[mr].values()) and not any(hu[ct].values()):
            raise InputError(
                f"the domains seem to be swapped: every volume of {mr} (declared MR) looks like a CT in Hounsfield "
                f"units and none of {ct} (declared CT) does.",
                "Exchange the folders a and b, or declare the modalities.",
            )
    return [line for d in ("a", "b") for line in modality_suspicions(hu[d], modalities[d])]


def _require_both(known: Mapping[str, Any] | set[str], failed: Mapping[str, str]) -> None:
    for domain in ("a", "b"):
        if not any(name.startswith(f"{domain}/") for name in known):
            raise_all(
                [f"{name}: {reason}" for name, reason in failed.items() if name.startswith(f"{domain}/")],
                f"no volume of domain {domain} can be used:",
            )


def _median_spacing(grids: list[Grid]) -> tuple[float, float, float]:
    """Median spacing along right, anterior, superior over all volumes, mm."""
    # The first column of an orientation says which world axis each voxel axis runs along.
    reordered = [grid.spacing[np.argsort(nib.orientations.io_orientation(grid.affine)[:, 0])] for grid in grids]
    x, y, z = np.median(reordered, axis=0).round(2)
    return float(x), float(y), float(z)


def _remove_strangers(output: Path, done: set[str]) -> None:
    """Delete prepared cases that the cohort does not have any more."""
    for group in GROUPS:
        if (output / group).is_dir():
            for folder in _visible(output / group):
                if f"{group}/{folder.name}" not in done:
                    shutil.rmtree(folder)


def _content_hash(path: Path) -> str:
    """BLAKE2b of a volume's files, of the data file of a detached header (.mhd, .nrrd), of the choice of a series."""
    digest = hashlib.blake2b(split_choice(path)[1].encode(), digest_size=16)
    for file in (*(volume_files(path) or [path]), *_detached_data(path)):
        try:
            with file.open("rb") as stream:
                while block := stream.read(1 << 22):
                    digest.update(block)
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror}.") from None
    return digest.hexdigest()


def _detached_data(path: Path) -> list[Path]:
    key = {".mhd": b"elementdatafile", ".nrrd": b"data file"}.get(path.suffix.lower())
    if key is None or not path.is_file():
        return []
    with path.open("rb") as stream:
        header = stream.read(1 << 16)
    for line in header.splitlines():
        name, _, value = line.replace(b"=", b":", 1).partition(b":")
        if name.strip().lower() == key:
            file = path.parent / value.strip().decode(errors="replace")
            return [file] if file.is_file() else []
    return []
