"""The cohort of an experiment: finding and preparing it, and completing the experiment from it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

from medcyclegan import config
from medcyclegan.cohort.assembly import Assembly, assemble
from medcyclegan.cohort.cases import Cohort, contrast_names, from_folders
from medcyclegan.cohort.datalist import from_json
from medcyclegan.cohort.domains import Selection
from medcyclegan.cohort.recognition import Kind, recognize
from medcyclegan.cohort.splits import AS_IN_LAYOUT, SplitPlan
from medcyclegan.config import Experiment
from medcyclegan.data.patches import PLANES, PatchSpec, Sampling, TrainingPatches
from medcyclegan.data.prepared import PreparedCohort, open_prepared, prepare_cohort
from medcyclegan.errors import InputError, raise_all
from medcyclegan.io.pictures import GrayLevels
from medcyclegan.progress import Progress
from medcyclegan.registry import OBJECTIVES
from medcyclegan.transforms.pipeline import Preparation

LARGEST_WINDOW = {2: 256, 3: 96}  # voxels; spatial dimensions -> what fits a small GPU
MR_FLOOR = -0.5  # of inverted MR: fat, the brightest, then lies near soft tissue of CT and not near air


def cohort(experiment: Experiment, progress: Progress | None = None) -> Cohort:
    """The volumes that `experiment.data` names."""
    data, kind = experiment.data, source_kind(experiment)
    if kind is Kind.PREPARED:
        raise InputError(
            f"the volumes themselves are needed, and {data.source} is a prepared folder.",
            "Give the folders, the datalist or the layout that it was prepared from.",
        )
    if kind is Kind.DATALIST and data.source is not None:
        found = from_json(data.source, data.fold)
    elif kind is Kind.LAYOUT:
        assembly = assembled(experiment, progress)
        for note in assembly.notes:
            warnings.warn(note, stacklevel=2)
        found = assembly.cohort()
    elif data.a is not None and data.b is not None:
        found = from_folders(data.a, data.b, masks_a=data.masks_a, masks_b=data.masks_b, pairs=data.pairs)
    else:
        raise InputError(
            "the experiment names no data.",
            "Give DATA, or --a DIR and --b DIR, or name it in the config as data.source, or data.a and data.b.",
        )
    found = replace(found, contrasts=_contrasts(experiment, found))
    modalities = {key: domain.modality for key, domain in experiment.domains}
    windows = {domain: data.picture_window if modality == "CT" else None for domain, modality in modalities.items()}
    return found.with_levels({domain: GrayLevels(window, data.picture_gray) for domain, window in windows.items()})


def source_kind(experiment: Experiment) -> Kind | None:
    """The kind of `data.source`; None if there is none.

    Raises:
        InputError: it is of no known kind, or a key of `data` is for another kind.
    """
    data = experiment.data
    given = {key: getattr(data, key) for key in config.OF_SOURCE}
    return None if data.source is None else recognize(data.source, given)


def assembled(experiment: Experiment, progress: Progress | None = None, split: SplitPlan = AS_IN_LAYOUT) -> Assembly:
    """The cohort in the layout that `experiment.data` names."""
    data, kind = experiment.data, source_kind(experiment)
    if data.source is None or kind is not Kind.LAYOUT:
        given = "no data, or two folders" if kind is None else f"{data.source}, which is {kind.value}"
        raise InputError(f"a folder or table in a known layout is needed, and given is {given}.")
    modalities = {key: domain.modality for key, domain in experiment.domains}
    contrasts = {"a": data.contrast_a, "b": data.contrast_b}
    return assemble(Selection(data.source, modalities, data.layout, contrasts, data.patient), split, progress)


def _contrasts(experiment: Experiment, found: Cohort) -> dict[str, tuple[str, ...]]:
    """Domain -> the names of its contrasts, of domains whose cases have several.

    Raises:
        InputError: the config and the data do not agree about them.
    """
    names, problems = {}, []
    for key, domain in experiment.domains:
        count, named = len(found.groups[key][0].images), found.contrasts.get(key, ())
        if domain.contrasts and domain.volumes != count:
            problems.append(
                f"domains.{key}.contrasts names {domain.volumes} ({', '.join(domain.contrasts)}), but a case of {key} "
                f"has {count} file{'s' * (count > 1)}" + f" ({', '.join(named)})" * bool(named)
            )
        elif domain.contrasts and named and domain.contrasts != named:
            problems.append(
                f"domains.{key}.contrasts is {', '.join(domain.contrasts)}, but the files are {', '.join(named)}, in "
                "this order"
            )
        if count > 1:
            names[key] = domain.contrasts or named or contrast_names(count)
    raise_all(problems, "the config and the data name different contrasts; leave domains.*.contrasts out, or mend one:")
    return names


def prepare(experiment: Experiment, output: Path, progress: Progress | None = None, workers: int = 1) -> PreparedCohort:
    """Prepare the cohort that `experiment.data` names into `output`, in `workers` processes."""
    found = cohort(experiment, progress)
    return prepare_cohort(
        found,
        output,
        preparations(experiment, found),
        register_pairs=experiment.preparation.register_pairs,
        workers=workers,
        progress=progress,
    )


def preparations(experiment: Experiment, found: Cohort) -> dict[str, tuple[Preparation, ...]]:
    """Domain -> how each of its channels is prepared; a channel without a name has that of its domain."""
    settings = experiment.preparation.model_dump(exclude={"register_pairs"})
    domains = dict(experiment.domains)
    if settings["mr_inverted"] is None:
        settings["mr_inverted"] = {domain.modality for domain in domains.values()} == {"MR", "CT"}
    if settings["mr_floor"] is None:
        settings["mr_floor"] = MR_FLOOR if settings["mr_inverted"] else -1.0
    settings["spacing"] = settings["spacing"] or ()
    return {
        key: tuple(
            Preparation(modality=domain.modality, name=name, **settings)
            for name in found.contrasts.get(key, (domain.name,))
        )
        for key, domain in domains.items()
    }


def left_out(experiment: Experiment, prepared: PreparedCohort) -> dict[str, float]:
    """Domain -> share of the slices with body that a training of `experiment` would never show, see `data.patches`."""
    patches = experiment.patches
    sampling = Sampling(
        PatchSpec((16,) * patches.spatial_dims, patches.plane),
        minimum_body=patches.minimum_body,
        matching=patches.matching,
        spacing=prepared.spacing,
    )
    common = prepared.common if OBJECTIVES.class_of(experiment.objective).paired else None
    return TrainingPatches(prepared.cases["a"], prepared.cases["b"], sampling, common=common).left_out


def is_prepared(experiment: Experiment) -> bool:
    """Whether `experiment.data` names a prepared folder; else a run prepares its own."""
    return source_kind(experiment) is Kind.PREPARED


def prepared_folder(experiment: Experiment, run: Path) -> Path:
    """The prepared folder that a run trains on."""
    source = experiment.data.source
    return source if source is not None and is_prepared(experiment) else run / "prepared"


def prepare_or_open(experiment: Experiment, run: Path, progress: Progress, workers: int) -> PreparedCohort:
    """The prepared cohort, every array of it checked; for one process, see `PreparedCohort.verify`."""
    folder = prepared_folder(experiment, run)
    return verified(folder, progress) if is_prepared(experiment) else prepare(experiment, folder, progress, workers)


def verified(folder: Path, progress: Progress) -> PreparedCohort:
    """Open a prepared folder and compare every array with its checksum."""
    prepared = open_prepared(folder)
    prepared.verify(progress)
    return prepared


def resolve(experiment: Experiment, prepared: PreparedCohort) -> Experiment:
    """Fill in the settings that the prepared cohort determines, and refuse contradictions."""
    problems, contrasts = [], {}
    settings = experiment.preparation
    for domain in ("a", "b"):
        done = prepared.preparations[domain][0]
        wanted = getattr(experiment.domains, domain).modality
        if wanted != done.modality:
            problems.append(
                f"domains.{domain}.modality is {wanted}, but {prepared.folder} was prepared as {done.modality}"
            )
        named, made = getattr(experiment.domains, domain).contrasts, prepared.channels(domain)
        # The name of an only channel does not matter.
        if named and named != made and max(len(named), len(made)) > 1:
            problems.append(
                f"domains.{domain}.contrasts is {', '.join(named)}, but {prepared.folder} was prepared with "
                f"{', '.join(made) if len(made) > 1 else 'a single one'}"
            )
        contrasts[domain] = made if len(made) > 1 else named
    done = prepared.preparations["a"][0]  # all channels share all but the modality
    made_with = {
        field: getattr(prepared if field == "register_pairs" else done, field)
        for field in config.Preparation.model_fields
    }
    for field in settings.model_fields_set:
        value, made = getattr(settings, field), made_with[field]
        if value is not None and value != made:
            problems.append(f"preparation.{field} is {value}, but {prepared.folder} was prepared with {made}")
    raise_all(problems, "the config does not fit the prepared data; change it, or prepare again:")
    if prepared.failed and not experiment.data.skip_failed:
        raise_all(
            [f"{name}: {reason}" for name, reason in prepared.failed.items()],
            "some volumes could not be prepared; mend or remove them and prepare again, or train without them with "
            "data.skip_failed: true (--set data.skip_failed=true):",
        )
    for name, reason in prepared.failed.items():
        warnings.warn(f"{name}: not trained on, because it could not be prepared: {reason}", stacklevel=2)
    for line in prepared.warnings:
        warnings.warn(line, stacklevel=2)
    return experiment.model_copy(
        update={
            "data": config.Data(source=prepared.folder.resolve(), skip_failed=experiment.data.skip_failed),
            "domains": config.Domains(
                **{key: domain.model_copy(update={"contrasts": contrasts[key]}) for key, domain in experiment.domains}
            ),
            "preparation": config.Preparation(**made_with),
            "patches": experiment.patches.model_copy(
                update={"size": experiment.patches.size or _window_for(prepared, experiment.patches)}
            ),
        }
    )


def _window_for(prepared: PreparedCohort, patches: config.Patches) -> tuple[int, ...]:
    """The smallest window, in multiples of 16 voxels up to a limit, that holds every body."""
    extents = []
    for case in (*prepared.cases["a"], *prepared.cases["b"]):
        occupied = [case.slices.with_body(axis) for axis in range(3)]
        extents.append([int(indices[-1] - indices[0]) + 1 for indices in occupied])
    limit = LARGEST_WINDOW[patches.spatial_dims]
    window = [int(min(limit, -(-largest // 16) * 16)) for largest in np.max(extents, axis=0)]
    if patches.spatial_dims == 2:
        del window[PLANES[patches.plane]]
    return tuple(window)
