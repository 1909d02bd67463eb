"""Prepare a cohort into a folder: see `prepared_folder` for what it holds.

A case is made again exactly when its files' content or the settings have changed, or what is stored is damaged.
Everything is written beside and then renamed, so a crash leaves whole cases only; the next preparation goes on there.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from medcyclegan.atomic import atomic_folder
from medcyclegan.cohort.datalist import Case, Cohort, contrast_names
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
    remove_strangers,
)
from medcyclegan.data.registered import register_onto, save_picture
from medcyclegan.data.stored_case import (
    key_digest,
    open_case,
    read_record,
    save_arrays,
    write_record,
)
from medcyclegan.errors import InputError, raise_all
from medcyclegan.io.grid import SAME_GRID_MM, SAME_GRID_VOXELS, Grid, on_one_grid
from medcyclegan.io.reader import grid_of, read_mask, read_volume
from medcyclegan.process_pool import ProcessPool
from medcyclegan.progress import Progress, Silent
from medcyclegan.survey.features import features_of
from medcyclegan.survey.hounsfield import modality_findings
from medcyclegan.transforms.contrasts import APART_MM, landmark_shares_of, prepare_contrasts
from medcyclegan.transforms.geometry import working_grid
from medcyclegan.transforms.intensity import CT_WINDOW
from medcyclegan.transforms.pipeline import Preparation, PreparedCase
from medcyclegan.transforms.standardization import fit_landmarks

__all__ = ["PreparedCohort", "open_prepared", "prepare_cohort"]


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
        InputError: if `output` holds something else or is in use, the domains seem swapped, or no case of a domain is
            usable.
    """
    check_output(output)
    settings = {
        "ct_window": ct_window,
        "mr_percentiles": mr_percentiles,
        "mr_inverted": mr_inverted,
        "mr_floor": mr_floor,
        "interpolation": interpolation,
        "crop_margin": crop_margin,
        "mr_n4_shrink": mr_n4_shrink,
        "mr_standardization": mr_standardization,
        "mr_exclude_blanked": mr_exclude_blanked,
    }
    names = {
        domain: tuple(cohort.contrasts.get(domain) or contrast_names(count))
        for domain in ("a", "b")
        if (count := cohort.files_per_case(domain)) > 1
    }
    _refuse_impossible(names, modalities, register_pairs)
    with kept_alone(output), ProcessPool(workers, progress or Silent()) as pool:
        return _prepare(cohort, output, modalities, spacing, settings, names, register_pairs, pool)


def _prepare(
    cohort: Cohort,
    output: Path,
    modalities: Mapping[str, str],
    spacing: tuple[float, float, float] | None,
    settings: Mapping[str, Any],
    names: Mapping[str, tuple[str, ...]],
    register_pairs: bool,
    pool: ProcessPool,
) -> PreparedCohort:
    jobs = _jobs(cohort)
    failed: dict[str, str] = {}
    known: dict[str, Source] = {}
    looks = {name: (job, output / name, modalities[_domain(name)]) for name, job in jobs.items()}
    for name, found in pool.each(examine, looks, "checking volumes"):
        if isinstance(found, InputError):
            failed[name] = str(found)
        else:
            known[name] = found
    known = {name: known[name] for name in jobs if name in known}  # they come as they are done
    told = [*_check_modalities(known, modalities), *(line for s in known.values() for line in s.findings)]
    _require_both(known, failed)
    chosen = spacing or _median_spacing([source.grid for source in known.values()])
    preparations = {domain: Preparation(modalities[domain], chosen, **settings) for domain in ("a", "b")}
    further = {domain: (preparations[domain],) * (len(called) - 1) for domain, called in names.items()}
    _refuse_misfits(cohort, known, failed, chosen, register_pairs)
    if settings["mr_standardization"] == "nyul":
        shares = _landmark_shares(pool, jobs, known, failed, preparations, output)
        for domain, rows in shares.items():
            fitted = [
                replace(preparations[domain], mr_landmarks=fit_landmarks(list(of_contrast)))
                for of_contrast in zip(*rows, strict=True)
            ]
            preparations[domain] = fitted[0]
            further |= {domain: tuple(fitted[1:])} if domain in names else {}
    tasks: dict[str, tuple[Any, ...]] = {}
    keys: dict[str, dict[str, Any]] = {}
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
        key: dict[str, Any] = {"version": VERSION, "content": source.content, "preparation": asdict(every[0])}
        if len(every) > 1:
            key["further"] = [asdict(preparation) for preparation in every[1:]]
        if fixed is not None:
            key["registered_to"] = known[f"pairs_a/{fixed.id}"].content
        keys[name] = json.loads(json.dumps(key))
        called = names.get(_domain(name), ())
        tasks[name] = (jobs[name], every, called, keys[name], source, output / name, fixed, modalities["a"])
    same = {n: (output / n,) for n in tasks if (known[n].stored or {}).get("key") == keys[n]}
    for name, damaged in pool.each(_damage, same, "checking prepared volumes"):
        if damaged:
            warnings.warn(f"made anew: {damaged}", stacklevel=4)
        else:
            del tasks[name]
    for name, error in pool.each(_store, tasks, "preparing volumes"):
        if isinstance(error, InputError):
            failed[name] = str(error)
    done = {name for name in known if name not in failed}
    _require_both(done, failed)
    cases = {group: sorted(n.split("/", 1)[1] for n in done if n.startswith(f"{group}/")) for group in GROUPS}
    both = set(cases["pairs_a"]) & set(cases["pairs_b"])
    cases |= {group: [case for case in cases[group] if case in both] for group in ("pairs_a", "pairs_b")}
    write_record(
        output / "prepared.json",
        {
            "format": FORMAT,
            "version": VERSION,
            "preparations": {domain: asdict(preparation) for domain, preparation in preparations.items()},
            "cases": {g: {case: key_digest(keys[f"{g}/{case}"]) for case in cases[g]} for g in GROUPS},
            "failed": dict(sorted(failed.items())),
            "warnings": told + _blanked_lines(output, done) + _contrast_lines(output, done, names),
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
    remove_strangers(output, done)
    return opened(output)


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


def _refuse_misfits(
    cohort: Cohort,
    known: Mapping[str, Source],
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
    pool: ProcessPool,
    jobs: Mapping[str, Case],
    known: Mapping[str, Source],
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
        kept = read_record(file)
    except InputError:
        kept = {}
    # Of a single contrast there are nine numbers, of several a list of them for each.
    shares = {
        n: found if isinstance((found := kept[key])[0], list) else [found] for n, key in keys.items() if key in kept
    }
    tasks = {n: (jobs[n], preparations[n[0]]) for n in names if n not in shares}
    for name, found in pool.each(_shares_of, tasks, "fitting landmarks"):
        if isinstance(found, InputError):
            failed[name] = str(found)
        else:
            shares[name] = found
    _require_both({n for n in known if n not in failed}, failed)
    write_record(file, {keys[n]: shares[n] if jobs[n].further else shares[n][0] for n in sorted(shares)})
    return {d: rows for d in ("a", "b") if (rows := [shares[n] for n in sorted(shares) if n[0] == d])}


def _shares_of(job: Case, preparation: Preparation) -> list[list[float]]:
    volumes = [read_volume(image, job.levels) for image in job.images]
    body = read_mask(job.body, grid_of(volumes[0])) if job.body else None
    shares = landmark_shares_of(volumes, [preparation] * len(volumes), body)
    return [[float(share) for share in of_contrast] for of_contrast in shares]


def _contrast_lines(output: Path, done: set[str], names: Mapping[str, tuple[str, ...]]) -> list[str]:
    lines = []
    for name in sorted(name for name in done if _domain(name) in names):
        content = read_record(output / name / "case.json")
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
        blanked = float(read_record(output / name / "case.json")["blanked_ml"])
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
    source: Source,
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
    images = prepared.image if prepared.image.ndim == 4 else prepared.image[None]
    with atomic_folder(folder) as temporary:
        checksums = save_arrays(prepared, temporary)
        if picture is not None:
            save_picture(picture, temporary / "registration.png")
        write_record(
            temporary / "case.json",
            {
                "id": job.id,
                "image_file": str(job.image),
                "key": key,
                "checksums": checksums,
                "features": features_of(source.surveys[0], images, prepared.body, prepared.grid).to_dict(),
                "surveys": [survey.to_dict() for survey in source.surveys],
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


def _damage(folder: Path) -> str:
    """What is wrong with a stored case, or nothing."""
    try:
        return " ".join(open_case(folder).damage())
    except InputError as error:
        return str(error)


def _check_modalities(known: Mapping[str, Source], modalities: Mapping[str, str]) -> list[str]:
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
    return [line for d in ("a", "b") for line in modality_findings(hu[d], modalities[d])]


def _require_both(known: Mapping[str, Any] | set[str], failed: Mapping[str, str]) -> None:
    for domain in ("a", "b"):
        if not any(name.startswith(f"{domain}/") for name in known):
            raise_all(
                [f"{name}: {reason}" for name, reason in failed.items() if name.startswith(f"{domain}/")],
                f"no volume of domain {domain} can be used:",
            )


def _median_spacing(grids: list[Grid]) -> tuple[float, float, float]:
    """Median spacing along right, anterior, superior over all volumes, mm."""
    reordered = [grid.spacing[grid.ras_order] for grid in grids]
    x, y, z = np.median(reordered, axis=0).round(2)
    return float(x), float(y), float(z)
