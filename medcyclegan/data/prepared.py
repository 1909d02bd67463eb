"""Prepare a cohort into a folder: see `prepared_folder` for what it holds.

A case is prepared again only if its files' content or the settings have changed, or the stored case is damaged.
Writes are atomic, so a crash leaves complete cases only, and the next preparation continues from there.
A case is named by its place in the folder, "a/001" for example.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medcyclegan.atomic import atomic_folder
from medcyclegan.cohort.cases import Case, Cohort
from medcyclegan.data.examination import Source, examine
from medcyclegan.data.prepared_folder import (
    FORMAT,
    GROUPS,
    VERSION,
    PreparedCohort,
    check_output,
    kept_alone,
    open_prepared,
    opened,
    remove_former_cases,
)
from medcyclegan.data.registered import register_onto, save_picture
from medcyclegan.data.slices import measure_slices
from medcyclegan.data.stored_case import key_digest, open_case, read_record, save_case, write_record
from medcyclegan.errors import InputError, raise_all
from medcyclegan.io.grid import SAME_GRID_MM, SAME_GRID_VOXELS, Grid, on_one_grid
from medcyclegan.io.reader import grid_of, read_mask, read_volume
from medcyclegan.process_pool import ProcessPool
from medcyclegan.progress import Progress, Silent
from medcyclegan.survey.features import features_of
from medcyclegan.survey.hounsfield import modality_findings
from medcyclegan.transforms.geometry import working_grid
from medcyclegan.transforms.pipeline import Preparation, landmark_shares, misplaced, prepare
from medcyclegan.transforms.standardization import fit_landmarks

__all__ = ["PreparedCohort", "open_prepared", "prepare_cohort"]

Preparations = Mapping[str, tuple[Preparation, ...]]  # "a", "b" -> of each channel
Failed = dict[str, str]  # case -> why it cannot be used


@dataclass(frozen=True)
class Job:
    """One case to be prepared.

    Attributes:
        case: its files.
        source: the examined files.
        preparations: of each channel.
        folder: where it goes.
        fixed: for b of a registered pair: the case of a that stays fixed, and its modality.
        key: everything that its values depend on; a stored case with this key is reused.
    """

    case: Case
    source: Source
    preparations: tuple[Preparation, ...]
    folder: Path
    fixed: tuple[Case, str] | None
    key: dict[str, Any]


def prepare_cohort(
    cohort: Cohort,
    output: Path,
    preparations: Mapping[str, Sequence[Preparation]],
    *,
    register_pairs: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> PreparedCohort:
    """Prepare every case of a cohort into `output`, reusing what is already there and unchanged.

    Cases that fail are listed in the result and do not stop the others. The number of workers changes no value.

    Args:
        cohort: the cases.
        output: a new folder, or an earlier prepared one.
        preparations: "a" and "b" -> how each of its channels is prepared. The cohort decides what they leave open: the
            spacing, the median of all volumes per axis rounded to 0.01 mm, and the landmarks of "nyul", fitted on the
            training volumes of each domain. Pairs are not cropped, so that both stay on one grid.
        register_pairs: move b of every pair onto a, see `data.registered`.
        workers: processes that work side by side, 0: one per core; with more than one, a script that calls this needs
            the usual `if __name__ == "__main__":`.

    Raises:
        InputError: if `output` holds something else or is in use, the domains seem swapped, or no case of a domain is
            usable.
    """
    check_output(output)
    wanted = {domain: tuple(channels) for domain, channels in preparations.items()}
    _refuse_impossible(wanted, register_pairs)
    with kept_alone(output), ProcessPool(workers, progress or Silent()) as pool:
        return _prepare(cohort, output, wanted, register_pairs, pool)


def _prepare(
    cohort: Cohort, output: Path, preparations: Preparations, register_pairs: bool, pool: ProcessPool
) -> PreparedCohort:
    cases, failed = _cases(cohort), Failed()
    modalities = {domain: channels[0].modality for domain, channels in preparations.items()}
    looks = {name: (case, output / name, modalities[_domain(name)]) for name, case in cases.items()}
    sources = _succeeded(pool.each(examine, looks, "checking volumes"), failed)
    sources = {name: sources[name] for name in cases if name in sources}  # they come as they are done
    messages = [*_check_modalities(sources, modalities), *(line for s in sources.values() for line in s.findings)]
    _require_both(sources, failed)
    preparations = _with_spacing(preparations, [source.grid for source in sources.values()])
    failed |= _lone_halves(sources) if register_pairs else _pairs_apart(cohort, sources, preparations)
    preparations = _with_landmarks(preparations, cases, sources, output, pool, failed)
    jobs = {
        name: _job(name, cases, sources, preparations, output, register_pairs) for name in sources if name not in failed
    }
    _store_changed(jobs, pool, failed)
    done = [name for name in jobs if name not in failed]
    _require_both(done, failed)
    listed = {group: sorted(n.split("/", 1)[1] for n in done if n.startswith(f"{group}/")) for group in GROUPS}
    both = set(listed["pairs_a"]) & set(listed["pairs_b"])
    listed |= {group: [case for case in listed[group] if case in both] for group in ("pairs_a", "pairs_b")}
    keys = {name: key_digest(jobs[name].key) for name in done}
    common = _common_slices(output, listed, keys, pool)
    write_record(
        output / "prepared.json",
        {
            "format": FORMAT,
            "version": VERSION,
            "preparations": {domain: [asdict(p) for p in channels] for domain, channels in preparations.items()},
            "cases": {g: {case: keys[f"{g}/{case}"] for case in listed[g]} for g in GROUPS},
            "common": common,
            "failed": dict(sorted(failed.items())),
            "warnings": [*messages, *(line for name in sorted(done) for line in _warnings(name, output))],
            "register_pairs": register_pairs,
        },
    )
    remove_former_cases(output, set(done))
    return opened(output)


def _cases(cohort: Cohort) -> dict[str, Case]:
    """Every case by its place in the prepared folder."""
    return {f"{group}/{case.id}": case for group, cases in cohort.groups.items() for case in cases}


def _domain(name: str) -> str:
    return name.split("/", 1)[0][-1]


def _partner(name: str) -> str:
    """The half in a of a pair's half in b."""
    return name.replace("pairs_b/", "pairs_a/", 1)


def _succeeded(results: Iterable[tuple[str, Any]], failed: Failed) -> dict[str, Any]:
    """The results of tasks that succeeded; the reasons of the others go into `failed`."""
    found = {}
    for name, result in results:
        if isinstance(result, InputError):
            failed[name] = str(result)
        else:
            found[name] = result
    return found


def _refuse_impossible(preparations: Preparations, register: bool) -> None:
    problems = [
        f"domain {domain} is {channels[0].modality} and has {len(channels)} contrasts ({_names(channels)}); several "
        "are for MR"
        for domain, channels in preparations.items()
        if len(channels) > 1 and any(channel.modality != "MR" for channel in channels)
    ]
    if register and len(preparations["b"]) > 1:
        problems.append(
            f"preparation.register_pairs moves one volume of b onto a, and b has {len(preparations['b'])} contrasts "
            f"({_names(preparations['b'])}); register them beforehand"
        )
    raise_all(problems, "the contrasts cannot be prepared:")


def _names(channels: Sequence[Preparation]) -> str:
    return ", ".join(channel.name for channel in channels)


def _with_spacing(preparations: Preparations, grids: Sequence[Grid]) -> Preparations:
    """If no spacing is set, set the median over all volumes, along right, anterior, superior, mm."""
    median = tuple(float(s) for s in np.median([grid.spacing[grid.ras_order] for grid in grids], axis=0).round(2))
    return {
        domain: tuple(replace(channel, spacing=channel.spacing or median) for channel in channels)
        for domain, channels in preparations.items()
    }


def _lone_halves(sources: Mapping[str, Source]) -> Failed:
    """Halves of b whose half of a is missing for the registration."""
    reason = "its partner in a could not be read, so that there is nothing to move it onto."
    return {name: reason for name in sources if name.startswith("pairs_b/") and _partner(name) not in sources}


def _pairs_apart(cohort: Cohort, sources: Mapping[str, Source], preparations: Preparations) -> Failed:
    """Pairs whose two files lie on different grids."""
    failed, spacing = {}, preparations["a"][0].spacing
    for halves in cohort.pairs:
        names = [f"pairs_a/{halves[0].id}", f"pairs_b/{halves[1].id}"]
        if all(name in sources for name in names):
            a, b = (sources[name].grid for name in names)
            if not (on_one_grid(a, b) and on_one_grid(*(working_grid(grid, spacing) for grid in (a, b)))):
                failed[names[1]] = (
                    f"{halves[1].images[0]} does not lie on the grid of {halves[0].images[0]}: shapes {b.shape} and "
                    f"{a.shape}, up to {a.distance(b):.1f} mm apart (at most {SAME_GRID_MM:g} mm and "
                    f"{SAME_GRID_VOXELS:g} of a voxel are allowed). Resample one onto the other, or set "
                    "preparation.register_pairs."
                )
    return failed


def _with_landmarks(
    preparations: Preparations,
    cases: Mapping[str, Case],
    sources: Mapping[str, Source],
    output: Path,
    pool: ProcessPool,
    failed: Failed,
) -> Preparations:
    """Set the landmarks of channels that are standardized by "nyul"; other preparations stay unchanged.

    The shares of every training case are stored in `output` for the next time.
    """
    fitted = {d: p for d, p in preparations.items() if (p[0].modality, p[0].mr_standardization) == ("MR", "nyul")}
    if not fitted:
        return preparations
    keys = {
        name: json.dumps(
            {"version": VERSION, "content": source.content, "preparations": [asdict(p) for p in fitted[name[0]]]}
        )
        for name, source in sources.items()
        if name.split("/", 1)[0] in fitted
    }
    file = output / "landmarks.json"
    try:
        kept = read_record(file)
    except InputError:
        kept = {}
    shares = {name: kept[key] for name, key in keys.items() if key in kept}
    tasks = {name: (cases[name], fitted[name[0]]) for name in keys if name not in shares}
    shares |= _succeeded(pool.each(_shares_of, tasks, "fitting landmarks"), failed)
    _require_both([name for name in sources if name not in failed], failed)
    write_record(file, {keys[name]: shares[name] for name in sorted(shares)})
    result = dict(preparations)
    for domain, channels in fitted.items():
        rows = [shares[name] for name in sorted(shares) if name[0] == domain]
        result[domain] = tuple(
            replace(channel, mr_landmarks=fit_landmarks(list(of_channel)))
            for channel, of_channel in zip(channels, zip(*rows, strict=True), strict=True)
        )
    return result


def _shares_of(case: Case, preparations: Sequence[Preparation]) -> list[list[float]]:
    volumes = [read_volume(image, case.levels) for image in case.images]
    body = read_mask(case.body, grid_of(volumes[0])) if case.body else None
    return [[float(share) for share in channel] for channel in landmark_shares(volumes, preparations, body)]


def _job(
    name: str,
    cases: Mapping[str, Case],
    sources: Mapping[str, Source],
    preparations: Preparations,
    output: Path,
    register_pairs: bool,
) -> Job:
    channels, fixed = preparations[_domain(name)], None
    if name.startswith("pairs_"):
        channels = tuple(replace(channel, crop_margin=None) for channel in channels)
    key = {"version": VERSION, "content": sources[name].content, "preparations": [asdict(p) for p in channels]}
    if register_pairs and name.startswith("pairs_b/"):
        fixed = cases[_partner(name)], preparations["a"][0].modality
        key["registered_to"] = sources[_partner(name)].content
    return Job(cases[name], sources[name], channels, output / name, fixed, json.loads(json.dumps(key)))


def _store_changed(jobs: Mapping[str, Job], pool: ProcessPool, failed: Failed) -> None:
    """Prepare and store the cases that are not stored yet, or are stored with another key or damaged."""
    same = {name: (job.folder,) for name, job in jobs.items() if (job.source.stored or {}).get("key") == job.key}
    tasks = {name: (job,) for name, job in jobs.items()}
    for name, damaged in pool.each(_damage, same, "checking prepared volumes"):
        if damaged:
            warnings.warn(f"made anew: {damaged}", stacklevel=5)
        else:
            del tasks[name]
    _succeeded(pool.each(_store, tasks, "preparing volumes"), failed)


def _damage(folder: Path) -> str:
    """The damage of a stored case, or an empty string."""
    try:
        return " ".join(open_case(folder).damage())
    except InputError as error:
        return str(error)


def _store(job: Job) -> None:
    case = job.case
    volumes = [read_volume(image, case.levels) for image in case.images]
    registration: dict[str, Any] = {}
    covered = picture = None
    if job.fixed is not None:
        fixed, modality = job.fixed
        volumes[0], covered, picture, registration = register_onto(
            read_volume(fixed.images[0], fixed.levels), volumes[0], (modality, job.preparations[0].modality)
        )
    body = read_mask(case.body, grid_of(volumes[0])) if case.body else None
    body = body if covered is None or body is None else body & covered
    prepared = prepare(volumes, job.preparations, body)
    about = {
        "id": case.id,
        "image_files": [str(image) for image in case.images],
        "key": job.key,
        "features": features_of(job.source.surveys[0], prepared.image, prepared.body, prepared.grid).to_dict(),
        "surveys": [survey.to_dict() for survey in job.source.surveys],
        "registration": registration,
    }
    with atomic_folder(job.folder) as temporary:
        if picture is not None:
            save_picture(picture, temporary / "registration.png")
        save_case(prepared, temporary, about)


def _warnings(name: str, output: Path) -> list[str]:
    """Warnings about a prepared case."""
    case = open_case(output / name)
    messages = [f"{name}: {line}" for line in misplaced(case.channels)]
    if case.blanked_ml:
        messages.append(
            f"{name}: {case.blanked_ml:.0f} mL at the body were overwritten (defaced?); they are left out of the "
            "body, and what the network learns of this case has no face there"
        )
    return messages


def _check_modalities(sources: Mapping[str, Source], modalities: Mapping[str, str]) -> list[str]:
    """Refuse domains that are swapped as a whole; warn of single cases."""
    hu = {d: {n: s.hu for n, s in sources.items() if _domain(n) == d} for d in ("a", "b")}
    if modalities["a"] != modalities["b"] and all(hu.values()):
        mr, ct = ("a", "b") if modalities["b"] == "CT" else ("b", "a")
        if all(hu[mr].values()) and not any(hu[ct].values()):
            raise InputError(
                f"the domains seem to be swapped: every volume of {mr} (declared MR) looks like a CT in Hounsfield "
                f"units and none of {ct} (declared CT) does.",
                "Exchange the folders a and b, or declare the modalities.",
            )
    return [line for d in ("a", "b") for line in modality_findings(hu[d], modalities[d])]


def _common_slices(
    output: Path, cases: Mapping[str, Sequence[str]], keys: Mapping[str, str], pool: ProcessPool
) -> dict[str, dict[str, Any]]:
    """The common slices of every patient in a and b on one grid, measured again only if a half has changed."""
    try:
        known = read_record(output / "prepared.json").get("common", {})
    except InputError:
        known = {}
    halves = {case: [keys[f"{domain}/{case}"] for domain in ("a", "b")] for case in cases["a"] if case in cases["b"]}
    found = {case: known[case] for case, of in halves.items() if known.get(case, {}).get("of") == of}
    tasks = {case: (output / "a" / case, output / "b" / case) for case in halves if case not in found}
    for case, slices in pool.each(_measure_common, tasks, "comparing pairs"):
        if isinstance(slices, InputError):
            raise slices
        found[case] = {"of": halves[case], "slices": slices}
    return dict(sorted(found.items()))


def _measure_common(*folders: Path) -> dict[str, Any] | None:
    a, b = map(open_case, folders)
    if not on_one_grid(a.grid, b.grid):
        return None
    return measure_slices([np.asarray(half.image) for half in (a, b)], a.body & b.body).to_dict()


def _require_both(usable: Iterable[str], failed: Mapping[str, str]) -> None:
    domains = {name.split("/", 1)[0] for name in usable}
    for domain in ("a", "b"):
        if domain not in domains:
            raise_all(
                [f"{name}: {reason}" for name, reason in failed.items() if name.startswith(f"{domain}/")],
                f"no volume of domain {domain} can be used:",
            )
