"""The only place where a config becomes objects: prepared cohorts, networks, trainings, translators."""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medcyclegan import __version__, config
from medcyclegan.config import Experiment
from medcyclegan.data.augment import Augmentation
from medcyclegan.data.datalist import Cohort, from_folders, from_json
from medcyclegan.data.patches import PLANES, Shape, UnpairedPatches, crop_or_pad, stack_of_slices
from medcyclegan.data.prepared import PreparedCohort, StoredCase, open_prepared, prepare_cohort
from medcyclegan.errors import InputError, raise_all
from medcyclegan.inference.ensemble import Ensemble
from medcyclegan.inference.planes import translate_volume
from medcyclegan.inference.quality import features
from medcyclegan.inference.statistics import Statistics
from medcyclegan.inference.translator import Translator
from medcyclegan.networks.discriminators.windowed import Windowed
from medcyclegan.progress import Progress, Silent
from medcyclegan.registry import (
    ADVERSARIAL_LOSSES,
    DISCRIMINATORS,
    GENERATORS,
    OBJECTIVES,
    RECONSTRUCTION_LOSSES,
    STRUCTURE_LOSSES,
)
from medcyclegan.training.checkpoint import FILE_NAME, CheckpointHandler, load_checkpoint
from medcyclegan.training.objectives import Objective
from medcyclegan.training.recorder import RunRecorder
from medcyclegan.training.trainer import CycleGANTrainer, bf16_is_safe
from medcyclegan.transforms.intensity import Scaler
from medcyclegan.transforms.pipeline import Preparation

NETWORKS = {"gen_ab": GENERATORS, "gen_ba": GENERATORS, "disc_a": DISCRIMINATORS, "disc_b": DISCRIMINATORS}
LARGEST_WINDOW = {2: 256, 3: 96}  # voxels; spatial dimensions -> what fits a small GPU
DESCRIBED = 64  # volumes of a domain whose features a checkpoint keeps
MR_FLOOR = -0.5  # of inverted MR: fat, the brightest, then lies near soft tissue of CT and not near air
DISPLAY_HU = (-250.0, 1250.0)  # shown black and white in picture panels: soft tissue and bone both visible


@dataclass(frozen=True)
class TrainingResult:
    """What a training left; `left_out` is the share of the slices of "a" and "b" that were never shown."""

    run: Path
    checkpoint: Path
    step: int
    steps: int
    seconds: float
    precision: str
    interrupted: bool
    left_out: dict[str, float]


def choose_device(name: str) -> torch.device:
    """The device of a `--device` argument; "auto" takes a GPU if there is one.

    Raises:
        InputError: for an unknown name, or a device that this machine does not have.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), *(["mps"] if mps else [])]
    known = name in ("cpu", "cuda", "mps") or (name.startswith("cuda:") and name[5:].isdigit())
    if not known:
        raise InputError(f"there is no device '{name}'; allowed are auto, cpu, cuda, cuda:N and mps.")
    if name not in here and not (name == "cuda" and cuda):
        raise InputError(
            f"this machine has no usable device '{name}'; it has: {', '.join(here)}.", "Use --device auto."
        )
    return torch.device(name)


def prepare(experiment: Experiment, output: Path, progress: Progress | None = None, workers: int = 1) -> PreparedCohort:
    """Prepare the cohort that `experiment.data` names into `output`, in `workers` processes."""
    settings = experiment.preparation
    modalities = {"a": experiment.domains.a.modality, "b": experiment.domains.b.modality}
    inverted = set(modalities.values()) == {"MR", "CT"} if settings.mr_inverted is None else settings.mr_inverted
    return prepare_cohort(
        _cohort(experiment),
        output,
        modalities=modalities,
        spacing=settings.spacing,
        ct_window=settings.ct_window,
        mr_percentiles=settings.mr_percentiles,
        mr_inverted=inverted,
        mr_floor=(MR_FLOOR if inverted else -1.0) if settings.mr_floor is None else settings.mr_floor,
        interpolation=settings.interpolation,
        crop_margin=settings.crop_margin,
        mr_n4_shrink=settings.mr_n4_shrink,
        mr_standardization=settings.mr_standardization,
        mr_exclude_blanked=settings.mr_exclude_blanked,
        register_pairs=settings.register_pairs,
        workers=workers,
        progress=progress,
    )


def left_out(experiment: Experiment, prepared: PreparedCohort) -> dict[str, float]:
    """Domain -> share of the slices with body that a training of `experiment` would never show, see `data.patches`."""
    patches = experiment.patches
    shape = Shape((16,) * patches.spatial_dims, patches.plane)
    dataset = UnpairedPatches(
        prepared.cases["a"],
        prepared.cases["b"],
        shape=shape,
        batch_size=1,
        steps=1,
        seed=experiment.seed,
        minimum_body=patches.minimum_body,
        matching=patches.matching,
        spacing=prepared.preparations["a"].spacing,
    )
    return dataset.left_out


def train(
    experiment: Experiment,
    run: Path,
    *,
    device: str = "auto",
    progress: Progress | None = None,
    handlers: Any = (),
    workers: int = 1,
) -> TrainingResult:
    """Train from the beginning into a new run folder; `workers` processes prepare what is not prepared yet.

    Raises:
        InputError: if the run folder holds something already, or the experiment cannot be carried out.
    """
    # A preparation that was interrupted in a new run goes on where it stopped.
    if run.exists() and (not run.is_dir() or {entry.name for entry in run.iterdir()} - {"prepared"}):
        remedy = "Continue it with `medcyclegan train --resume RUN`, or give" if (run / FILE_NAME).exists() else "Give"
        raise InputError(f"{run} exists and is not empty.", f"{remedy} a new folder as output.")
    where = choose_device(device)
    prepared = _prepared(experiment, run, progress or Silent(), workers)
    experiment = _resolve(experiment, prepared)
    run.mkdir(parents=True, exist_ok=True)
    config.save(experiment, run / "config.yaml")
    trainer = make_trainer(experiment, prepared, run, where, handlers=handlers)
    return _run(trainer, experiment, run)


def resume(run: Path, *, device: str = "auto", handlers: Any = (), allow: Iterable[str] = ()) -> TrainingResult:
    """Continue a training from its last checkpoint as if it had not stopped; `allow` as in `load_translator`."""
    checkpoint = load_checkpoint(run, allow)
    if "optimizers" not in checkpoint:
        raise InputError(f"{run} was imported and holds no state of a training to continue.", "It can only convert.")
    experiment = config.parse(checkpoint["experiment"], f"the config in {run / FILE_NAME}")
    prepared = open_prepared(Path(str(experiment.data.prepared)))
    _resolve(experiment, prepared)
    trainer = make_trainer(experiment, prepared, run, choose_device(device), checkpoint, handlers)
    return _run(trainer, experiment, run)


def make_networks(experiment: Experiment) -> nn.ModuleDict:
    """The objective's networks with fresh weights; the same seed gives the same weights."""
    torch.manual_seed(experiment.seed)
    objective = OBJECTIVES.class_of(experiment.objective)
    return nn.ModuleDict({name: _make_network(name, experiment, objective.paired) for name in objective.required})


def make_objective(experiment: Experiment, windows: dict[str, tuple[float, float] | None]) -> Objective:
    """The objective with fresh networks.

    Args:
        windows: domain -> the HU that are -1 and 1; None for a domain that is not CT.
    """
    losses = experiment.losses
    structure = {
        leaf["_target_"].rpartition(".")[2]: STRUCTURE_LOSSES.build(leaf, windows=windows) for leaf in losses.structure
    }
    example = torch.full((1, 2 * experiment.patches.neighbors + 1, *[32] * experiment.patches.spatial_dims), -1.0)
    objective: Objective = OBJECTIVES.build(
        experiment.objective,
        networks=make_networks(experiment),
        adversarial=ADVERSARIAL_LOSSES.build(losses.adversarial),
        reconstruction=RECONSTRUCTION_LOSSES.build(losses.reconstruction),
        structure=structure,
        example={"a": example, "b": example},
        seed=experiment.seed,
    )
    return objective


def make_trainer(
    experiment: Experiment,
    prepared: PreparedCohort,
    run: Path,
    device: torch.device,
    checkpoint: dict[str, Any] | None = None,
    handlers: Any = (),
) -> CycleGANTrainer:
    """The trainer of a resolved experiment, at its beginning or where `checkpoint` was saved.

    Args:
        handlers: further MONAI or ignite handlers to attach.
    """
    settings, patches = experiment.training, experiment.patches
    if patches.size is None:
        raise ValueError("make_trainer takes a resolved experiment, whose patches.size is set")
    shape = Shape(patches.size, patches.plane, patches.neighbors)
    windows = {d: p.ct_window if p.modality == "CT" else None for d, p in prepared.preparations.items()}
    objective = make_objective(experiment, windows)
    _require_large_enough(objective, patches.size)
    if objective.paired and prepared.preparations["a"].crop_margin is not None:
        raise InputError(
            "paired training needs both volumes of a patient on one grid, and preparation.crop_margin cuts each to its "
            "own body.",
            "Prepare without crop_margin.",
        )
    dataset = UnpairedPatches(
        prepared.cases["a"],
        prepared.cases["b"],
        shape=shape,
        batch_size=settings.batch_size,
        steps=settings.steps,
        seed=experiment.seed,
        minimum_body=patches.minimum_body,
        flip=patches.flip,
        matching=patches.matching,
        paired=objective.paired,
        augmentation=_augmentation(experiment, prepared),
        spacing=prepared.preparations["a"].spacing,
    )
    start = checkpoint["step"] if checkpoint else 0
    trainer = CycleGANTrainer(
        device=device,
        objective=objective,
        loader=dataset.loader(start, workers=settings.workers, pin_memory=device.type == "cuda"),
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        betas=settings.betas,
        decay_start=settings.decay_start,
        ema_decay=settings.ema_decay,
        bf16=_wants_bf16(settings.precision, device),
    )
    if checkpoint:
        trainer.restore(checkpoint)
    domains = _describe_domains(experiment, prepared)
    RunRecorder(
        run,
        log_every=settings.log_every,
        picture_every=settings.picture_every,
        picture_batch=_picture_batch(prepared, shape),
        window={domain: _display_window(domains[domain]) for domain in ("a", "b")},
        validate=_validation(prepared, trainer, shape, domains["b"]),
    ).attach(trainer)
    header = {"program": _versions(), "experiment": experiment.to_dict(), "domains": domains}
    CheckpointHandler(run / FILE_NAME, header, settings.checkpoint_every).attach(trainer)
    for handler in handlers:
        handler.attach(trainer)
    return trainer


def load_translator(
    path: str | Path,
    *,
    direction: str = "ab",
    device: str = "auto",
    ensemble: Ensemble | None = None,
    others: Sequence[str | Path] = (),
    statistics: Statistics = "window",
    allow: Iterable[str] = (),
) -> Translator:
    """Load a run or checkpoint as a function from volume to volume.

    Args:
        path: the output folder of `medcyclegan train`, or a checkpoint file.
        direction: "ab" (source to target, MR to CT by default) or "ba".
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        ensemble: planes and flips to fuse; default: one translation along the plane of the training.
        others: further runs or checkpoints to fuse with.
        statistics: of instance norms, see `inference.statistics`.
        allow: modules or packages of your own from which the checkpoint may name a network; importing runs their code.

    Raises:
        InputError: if the path holds no checkpoint of ours, or names a network from elsewhere.

    Examples:
        >>> sct = load_translator("runs/brain")("mr.nii.gz")  # doctest: +SKIP
        >>> sct.save("sct.nii.gz")  # doctest: +SKIP
    """
    if direction not in ("ab", "ba"):
        raise InputError(f"direction is 'ab' or 'ba', got '{direction}'.")
    where = choose_device(device)
    content = load_checkpoint(Path(path), allow)
    experiment = config.parse(content["experiment"], f"the config in {path}")
    name = f"gen_{direction}"
    if name not in content["ema"]:
        raise InputError(
            f"{path} holds no generator for the direction '{direction}'; it has {', '.join(content['ema'])}."
        )
    generator = _make_network(name, experiment)
    generator.load_state_dict(content["ema"][name])
    source, target = (content["domains"][domain] for domain in direction)
    if experiment.patches.size is None:
        raise InputError(f"{path}: the checkpoint's config has no patches.size; it is damaged.")
    back = f"gen_{direction[::-1]}"
    backward = None
    if back in content["ema"]:
        backward = _make_network(back, experiment)
        backward.load_state_dict(content["ema"][back])
        backward.eval().requires_grad_(False).to(where)
    return Translator(
        generator.eval().requires_grad_(False).to(where),
        preparation=Preparation(**source["preparation"]),
        scaler=Scaler.from_dict(target["scaler"]),
        modality=target["preparation"]["modality"],
        window=experiment.patches.size,
        device=where,
        description=_description(target["name"], Path(path), content["step"]),
        spatial_dims=experiment.patches.spatial_dims,
        plane=experiment.patches.plane,
        neighbors=experiment.patches.neighbors,
        statistics=statistics,
        bf16=bf16_is_safe(where),
        ensemble=ensemble,
        backward=backward,
        cohort=source.get("cohort"),
        others=[
            load_translator(other, direction=direction, device=device, statistics=statistics, allow=allow)
            for other in others
        ],
    )


def _description(target: str, path: Path, step: int) -> str:
    """What the header of a result says; NIfTI has 79 characters, and what matters most comes first."""
    run = path.resolve() if path.is_dir() else path.resolve().parent
    return f"synthetic {target}, not for clinical use, medcyclegan {__version__}, model {run.name} step {step}"


def load_untrained(path: str | Path, *, device: str = "auto") -> Translator:
    """The translator that a run began with: the same preparation and network with its initial weights."""
    translator = load_translator(path, device=device)
    experiment = config.parse(load_checkpoint(Path(path))["experiment"], f"the config in {path}")
    translator.generator.load_state_dict(make_networks(experiment)["gen_ab"].state_dict())
    return translator


def _cohort(experiment: Experiment) -> Cohort:
    data = experiment.data
    if data.datalist is not None:
        return from_json(data.datalist)
    if data.a is None or data.b is None:
        raise InputError(
            "the experiment names no data.",
            "Set data.prepared, or data.a and data.b, or data.datalist (in the config or with --set).",
        )
    return from_folders(data.a, data.b, masks_a=data.masks_a, masks_b=data.masks_b, pairs=data.pairs)


def _prepared(experiment: Experiment, run: Path, progress: Progress, workers: int) -> PreparedCohort:
    if experiment.data.prepared is not None:
        return open_prepared(experiment.data.prepared)
    return prepare(experiment, run / "prepared", progress, workers)


def _resolve(experiment: Experiment, prepared: PreparedCohort) -> Experiment:
    """Fill in what the prepared cohort decides, and refuse what contradicts it."""
    problems = []
    settings = experiment.preparation
    for domain in ("a", "b"):
        done = prepared.preparations[domain]
        wanted = getattr(experiment.domains, domain).modality
        if wanted != done.modality:
            problems.append(
                f"domains.{domain}.modality is {wanted}, but {prepared.folder} was prepared as {done.modality}"
            )
    done = prepared.preparations["a"]  # both domains share all but the modality
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
        warnings.warn(f"not trained on, because it could not be prepared: {name}: {reason}", stacklevel=2)
    for line in prepared.warnings:
        warnings.warn(line, stacklevel=2)
    return experiment.model_copy(
        update={
            "data": config.Data(prepared=prepared.folder.resolve(), skip_failed=experiment.data.skip_failed),
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
        body = case.body
        occupied = [np.flatnonzero(body.any(axis=tuple(i for i in range(3) if i != axis))) for axis in range(3)]
        extents.append([int(indices[-1] - indices[0]) + 1 for indices in occupied])
    limit = LARGEST_WINDOW[patches.spatial_dims]
    window = [int(min(limit, -(-largest // 16) * 16)) for largest in np.max(extents, axis=0)]
    if patches.spatial_dims == 2:
        del window[PLANES[patches.plane]]
    return tuple(window)


def _require_large_enough(objective: Objective, size: tuple[int, ...]) -> None:
    for name in objective.discriminators:
        network = objective.networks[name]
        smallest = getattr(network.discriminator if isinstance(network, Windowed) else network, "smallest", 1)
        if min(size) < smallest:
            raise InputError(
                f"patches.size is {list(size)}, and {name} needs at least {smallest} voxels along every axis.",
                "Give it fewer layers, or take larger patches.",
            )


def _augmentation(experiment: Experiment, prepared: PreparedCohort) -> dict[str, Augmentation]:
    """How each domain's patches are varied; empty if not at all."""
    settings = experiment.augmentation
    if settings == config.Augmentation():
        return {}
    varied = {}
    for domain, preparation in prepared.preparations.items():
        spacing = list(preparation.spacing)
        if experiment.patches.spatial_dims == 2:
            del spacing[PLANES[experiment.patches.plane]]
        chosen = settings.model_dump()
        if preparation.modality != "MR":
            chosen |= {"bias_field": 0.0, "gamma": 0.0, "noise": 0.0}
        varied[domain] = Augmentation(
            spacing=tuple(spacing), inverted=preparation.mr_inverted, floor=preparation.mr_floor, **chosen
        )
    return varied


def _make_network(name: str, experiment: Experiment, paired: bool = False) -> nn.Module:
    """One network with fresh weights; the discriminator of a paired objective sees the source too."""
    channels = 2 * experiment.patches.neighbors + 1
    dims = experiment.patches.spatial_dims
    network: nn.Module
    if name.startswith("gen"):
        leaf = experiment.model.generator
        network = NETWORKS[name].build(leaf, in_channels=channels, out_channels=channels, spatial_dims=dims)
        return network
    judged = channels * (2 if paired else 1)
    leaf, windows = experiment.model.discriminator, experiment.model.discriminator_windows
    if not windows or getattr(experiment.domains, name[-1]).modality != "CT":
        network = NETWORKS[name].build(leaf, in_channels=judged, spatial_dims=dims)
        return network
    scaled = Scaler(*experiment.preparation.ct_window).apply(np.array(windows))
    seen = judged + channels * len(windows)
    network = NETWORKS[name].build(leaf, in_channels=seen, spatial_dims=dims)
    return Windowed(network, [(float(low), float(high)) for low, high in scaled], channels)


def _wants_bf16(precision: str, device: torch.device) -> bool:
    return precision == "bf16" or (precision == "auto" and bf16_is_safe(device))


def _describe_domains(experiment: Experiment, prepared: PreparedCohort) -> dict[str, dict[str, Any]]:
    """What a checkpoint says of each domain, so that converting needs nothing else."""
    return {
        domain: {
            "name": getattr(experiment.domains, domain).name,
            "preparation": asdict(prepared.preparations[domain]),
            "scaler": prepared.typical_scaler(domain).to_dict(),
            "cohort": _features(prepared.cases[domain]),
        }
        for domain in ("a", "b")
    }


def _features(cases: Sequence[StoredCase]) -> list[dict[str, Any]]:
    """What the training volumes are like, of at most `DESCRIBED` of them, so that conversion can tell strangers."""
    every = max(1, -(-len(cases) // DESCRIBED))
    return [features(case) for case in cases[::every]]


def _display_window(domain: dict[str, Any]) -> tuple[float, float]:
    if domain["preparation"]["modality"] != "CT":
        return (-1.0, 1.0)
    low, high = Scaler.from_dict(domain["scaler"]).apply(np.array(DISPLAY_HU))
    return float(low), float(high)


def _picture_batch(prepared: PreparedCohort, shape: Shape) -> dict[str, Tensor]:
    """Two patches of each domain's first case, around 40 and 65 % of the body's extent across the slices."""
    batch = {}
    axis = PLANES[shape.plane]
    for domain in ("a", "b"):
        case = (prepared.cases[f"pairs_{domain}"] or prepared.cases[domain])[0]
        image, body = np.asarray(case.image), np.asarray(case.body)
        slices = np.flatnonzero(body.any(axis=tuple(i for i in range(3) if i != axis)))
        chosen = [int(slices[int(share * (len(slices) - 1))]) for share in (0.4, 0.65)]
        random = np.random.default_rng(0)
        if shape.spatial_dims == 3:
            patches = [crop_or_pad(image[None], body[None], shape.size, random)]
        else:
            stacks = [
                (stack_of_slices(image, axis, k, shape.neighbors), stack_of_slices(body, axis, k, shape.neighbors))
                for k in chosen
            ]
            patches = [crop_or_pad(values, inside, shape.size, random) for values, inside in stacks]
        batch[domain] = torch.from_numpy(np.stack(patches))
    return batch


def _validation(
    prepared: PreparedCohort, trainer: CycleGANTrainer, shape: Shape, target: dict[str, Any]
) -> Callable[[], dict[str, float]] | None:
    """Mean absolute error of the averaged generator over the pairs, inside the body, in the target's unit."""
    pairs = list(zip(prepared.cases["pairs_a"], prepared.cases["pairs_b"], strict=True))
    if not pairs:
        return None
    scaler = Scaler.from_dict(target["scaler"])

    def error(a: StoredCase, b: StoredCase) -> float:
        device = trainer.state.device
        values = translate_volume(
            trainer.ema.averages["gen_ab"],
            np.asarray(a.image),
            np.asarray(a.body),
            window=shape.size,
            device=device,
            spatial_dims=shape.spatial_dims,
            plane=shape.plane,
            neighbors=shape.neighbors,
        )
        inside = np.asarray(b.body)
        return float(np.abs(scaler.undo(values[inside]) - b.scaler.undo(b.image[inside])).mean())

    return lambda: {"mae": float(np.mean([error(a, b) for a, b in pairs]))}


def _run(trainer: CycleGANTrainer, experiment: Experiment, run: Path) -> TrainingResult:
    loader: Any = trainer.data_loader
    started = time.monotonic()
    trainer.run()
    return TrainingResult(
        run=run,
        checkpoint=run / FILE_NAME,
        step=trainer.state.iteration,
        steps=experiment.training.steps,
        seconds=time.monotonic() - started,
        precision="bf16" if trainer.bf16 else "float32",
        interrupted=trainer.interrupted,
        left_out=loader.dataset.left_out,
    )


def _versions() -> dict[str, str]:
    packages = ("torch", "monai", "nibabel", "SimpleITK", "numpy")
    return {"medcyclegan": __version__, "python": platform.python_version(), **{p: version(p) for p in packages}}
