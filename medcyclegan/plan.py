"""From a look at the volumes and at the machine to an experiment, with a reason for every choice.

The rules are few and meant to be read; each is a function that fills in one section and says why. What a rule rests on
is said in its reason: a measurement on this machine, what fits into memory, the papers, or judgment.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from medcyclegan import __version__, build, config
from medcyclegan.atomic import atomic_file
from medcyclegan.config import Experiment
from medcyclegan.data.fingerprint import Fingerprint, fingerprint
from medcyclegan.errors import InputError
from medcyclegan.machine import cores, free_memory
from medcyclegan.progress import Progress

GIB = 2**30
USABLE = 0.85  # share of the memory that may be planned for: other programs, and the error of the prediction
MULTIPLE = 16  # patch sizes, so that every network's halvings divide them
LARGEST_SLICE = {"cuda": 256, "cpu": 128}  # voxels across; larger bodies get coarser voxels, not cut slices
CPU_SPACING = 2.0  # mm; half the voxel size costs four times as long, which a processor does not have
THICK = 2.5  # slices so many times thicker than their voxels are wide are not interpolated into boxes
BOX_VOLUMES = 30  # of each domain, from which on boxes are considered: a volume gives few different ones
BOX_MEMORY = 40 * GIB
BOX = (128, 128, 64)  # voxels, at most
STACK_MM = 3.0  # neighboring slices further apart than this show other anatomy
EPOCHS = 200  # of the CycleGAN paper (its section 7.1), an epoch being all slices of the larger domain
STEPS = (20_000, 200_000)
MEASURED_STEPS = 3


@dataclass(frozen=True)
class Machine:
    """Where a training would run.

    Attributes:
        kind: "cpu" or "cuda".
        name: for people.
        memory: bytes that the training may take.
        bf16: whether bfloat16 is computed by the hardware.
        cores: of the processor.
        device: to measure on; None for a machine that is not this one.
    """

    kind: str
    name: str
    memory: float
    bf16: bool
    cores: int
    device: torch.device | None = None


def this_machine(device: str = "auto") -> Machine:
    """The machine that runs this, with the device of a `--device` argument."""
    where = build.choose_device(device)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else f"processor with {cores()} cores"
    kind = "cuda" if where.type == "cuda" else "cpu"
    return Machine(kind, name, free_memory(where), build.bf16_is_safe(where), cores(), where)


def pretended_gpu(gibibytes: float) -> Machine:
    """A GPU of so much memory that need not be here; bfloat16 is taken for granted, as on any of the last years."""
    if not math.isfinite(gibibytes) or gibibytes <= 0:
        raise InputError(f"the memory of a GPU is a number of GiB above 0, got {gibibytes}.")
    return Machine("cuda", f"GPU of {gibibytes:g} GiB", gibibytes * GIB, True, cores())


@dataclass
class Plan:
    """An experiment that grows.

    Attributes:
        purpose: the data and the machine, for people.
        content: what the experiment's YAML says, sections of keys.
        reasons: "section.key" -> why.
        memory: expected, bytes; None where it could not be told.
        seconds: expected for the whole training; None where nothing was measured.
        warnings: what the user should look at before training.
    """

    purpose: str
    content: dict[str, dict[str, Any]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    memory: float | None = None
    seconds: float | None = None
    warnings: list[str] = field(default_factory=list)

    def choose(self, key: str, value: Any, reason: str) -> None:
        section, name = key.split(".")
        self.content.setdefault(section, {})[name] = value
        self.reasons[key] = reason

    def experiment(self) -> Experiment:
        return config.parse(self.content, "the plan")


def make_plan(
    experiment: Experiment, machine: Machine, *, hours: float = 12.0, progress: Progress | None = None
) -> Plan:
    """Look at the data that `experiment` names and plan a training on it.

    Args:
        experiment: its `data` and `domains` are read; the rest is what the plan decides.
        machine: where the training would run.
        hours: that a training on a processor may take; elsewhere the number of steps follows from the data.

    Raises:
        InputError: if the data cannot be used, or nothing fits into the memory.
    """
    if not hours > 0:
        raise InputError(f"hours must be above 0, got {hours}.")
    cohort, domains = build.cohort(experiment, progress), experiment.domains
    a, b = (
        fingerprint(
            [replace(case, levels=cohort.levels.get(key)) for case in cases], getattr(domains, key).modality, progress
        )
        for key, cases in (("a", cohort.a), ("b", cohort.b))
    )
    named = {key: domain.model_copy(update={"contrasts": cohort.contrasts.get(key, ())}) for key, domain in domains}
    plan = decide(a, b, machine, named)
    _choose_steps(plan, a, b, machine, hours)
    return plan


def decide(
    a: Fingerprint, b: Fingerprint, machine: Machine, domains: Mapping[str, config.Domain] | None = None
) -> Plan:
    """Everything but the number of steps, from what is known of the domains and the machine.

    Args:
        a, b: of both domains; of several contrasts, of the first.
        machine: where it would run.
        domains: "a", "b" -> name, modality and contrasts; by default the modality is the name, with one contrast.

    Raises:
        InputError: if not even the smallest experiment fits into the memory.
    """
    plan = Plan(f"{a.volumes} {a.modality} and {b.volumes} {b.modality} volumes on a {machine.name}")
    for key, domain in (("a", a), ("b", b)):
        given = (domains or {}).get(key) or config.Domain(name=domain.modality, modality=domain.modality)
        plan.choose(f"domains.{key}", given.model_dump(mode="json"), "as given")
    for domain in (a, b):
        if domain.problems:
            plan.warnings.append(
                f"{len(domain.problems)} of {domain.opened} {domain.modality} volumes that were opened cannot be used, "
                f"the first because: {domain.problems[0].splitlines()[0].rstrip('.')}"
            )
    _choose_spacing(plan, a, b, machine)
    _choose_patches(plan, a, b, machine)
    _choose_sampling(plan, a, b)
    _choose_networks(plan, machine)
    plan.content["losses"] = {"structure": [{"_target_": "mask_consistency", "weight": 1.0, "rim": 2}]}
    plan.reasons["losses.structure"] = (
        "the body and, in CT, bone keep their shape; with matched heights and the discriminators' windows it gave the "
        "lowest error on phantoms of different coverage (Choose a method, in the documentation)"
    )
    _fit_memory(plan, machine)
    precision = "bfloat16, which" if machine.bf16 else "float32: bfloat16 is not what"
    plan.choose("training.precision", "auto", f"{precision} this hardware computes fast")
    workers = min(4, machine.cores - 1) if machine.kind == "cuda" else 0
    reason = "patches are read beside the GPU" if workers else "patches are read in the time between two steps"
    plan.choose("training.workers", workers, reason)
    return plan


def _choose_spacing(plan: Plan, a: Fingerprint, b: Fingerprint, machine: Machine) -> None:
    median = np.median([a.spacing, b.spacing], axis=0)
    reason = f"mm; median of the volumes ({a.modality} {_by(a.spacing)}, {b.modality} {_by(b.spacing)})"
    spacing = median.copy()
    spacing[:2] = spacing[:2].mean()  # the same across and along, so that patches are square in space
    if machine.kind == "cpu" and spacing.min() < CPU_SPACING:
        spacing = np.maximum(spacing, CPU_SPACING)
        reason += f", not below {CPU_SPACING:g} mm on a processor"
    widest = max(*a.extent[:2], *b.extent[:2])
    needed = widest / LARGEST_SLICE[machine.kind]
    if spacing[0] < needed:
        spacing[:2] = math.ceil(100 * needed) / 100
        reason += f"; so coarse that a body of {widest:.0f} mm fits into {LARGEST_SLICE[machine.kind]} voxels"
    plan.choose("preparation.spacing", [round(float(s), 2) for s in spacing], reason)
    for domain in (a, b):
        if max(domain.coarsest) > 3 * max(domain.spacing):
            plan.warnings.append(
                f"{domain.modality}: voxels range from {_by(domain.finest)} to {_by(domain.coarsest)} mm; the coarsest "
                "volumes may be better left out"
            )


def _choose_patches(plan: Plan, a: Fingerprint, b: Fingerprint, machine: Machine) -> None:
    spacing = plan.content["preparation"]["spacing"]
    thickness = max(a.spacing[2], b.spacing[2])
    fewest = min(a.volumes, b.volumes)
    window = [_multiple(extent / step) for extent, step in zip(np.maximum(a.extent, b.extent), spacing, strict=True)]
    if (
        machine.kind == "cuda"
        and machine.memory >= BOX_MEMORY
        and fewest >= BOX_VOLUMES
        and thickness <= THICK * spacing[0]
    ):
        reason = (
            f"boxes: thin slices ({thickness:g} mm), {fewest} volumes or more of each domain, and the memory for it"
        )
        plan.choose("patches.spatial_dims", 3, f"{reason} (judgment: boxes see all directions, and need all three)")
        size = [min(side, most) for side, most in zip(window, BOX, strict=True)]
        plan.choose("patches.size", size, f"voxels; what holds every body, at most {_by(BOX)}")
        return
    if machine.kind == "cpu":
        why = "on a processor boxes take too long"
    elif thickness > THICK * spacing[0]:
        why = f"slices are {thickness:g} mm thick"
    elif fewest < BOX_VOLUMES:
        why = f"only {fewest} volumes of a domain"
    else:
        why = f"less than {BOX_MEMORY / GIB:.0f} GiB of memory"
    plan.choose("patches.spatial_dims", 2, f"slices and not boxes: {why}")
    if machine.kind == "cuda" and thickness <= STACK_MM:
        reason = f"2.5D, slices {thickness:g} mm apart show nearly the same anatomy: fewer jumps from slice to slice"
        plan.choose("patches.neighbors", 1, f"{reason} (judgment)")
    limit = LARGEST_SLICE[machine.kind]
    plan.choose("patches.size", [min(side, limit) for side in window[:2]], "voxels; the smallest that holds every body")


def _choose_sampling(plan: Plan, a: Fingerprint, b: Fingerprint) -> None:
    if a.head and b.head:
        plan.choose("patches.flip", True, "a head is nearly symmetric")
    dims = plan.content["patches"]["spatial_dims"]
    ratio = max(a.height, b.height) / min(a.height, b.height)
    if a.head and b.head and min(a.top_inside, b.top_inside) == 1:
        reason = "both domains show heads with their top: slices of similar distance from it show similar anatomy"
        plan.choose("patches.matching", "vertex", reason)
    elif a.head and b.head:
        reason = (
            "some heads are cut at the top: cross-section areas laid over each other tell slices of one height "
            "(on phantoms 3 mm off, where distances from the top were 13 mm off)"
        )
        plan.choose("patches.matching", "profile", reason)
    elif ratio <= 1.25:
        reason = f"bodies are about equally high ({a.height:.0f} and {b.height:.0f} mm), so shares of the height agree"
        plan.choose("patches.matching", "extent", reason)
    else:
        reason = (
            f"bodies are {a.height:.0f} mm high in {a.modality} and {b.height:.0f} mm in {b.modality}, and no common "
            "landmark is known"
        )
        plan.choose("patches.matching", "any", reason)
        plan.warnings.append(
            f"{reason}: what one domain shows and the other does not will be invented; crop them alike"
        )
    if a.head != b.head:
        one, other = (a, b) if a.head else (b, a)
        plan.warnings.append(f"{one.modality} looks like heads and {other.modality} does not: is it the same region?")
    if dims == 2 and min(a.volumes, b.volumes) < 10:
        plan.warnings.append(
            f"{min(a.volumes, b.volumes)} volumes of a domain are few: expect what is learned by heart"
        )


def _choose_networks(plan: Plan, machine: Machine) -> None:
    if machine.kind == "cpu":
        generator = {"_target_": "attention_unet", "filters": 16, "depth": 3, "gates": False}
        reason = (
            "a narrow U-Net: quick, and none made smaller errors on phantoms after as many steps (Choose a method, in "
            "the documentation)"
        )
        plan.choose("model.generator", generator, reason)
        plan.choose("model.discriminator", {"filters": 16, "layers": 3}, "as narrow, so that neither side wins at once")
        plan.choose("training.learning_rate", 4e-4, "twice the paper's, for a short training of narrow networks")
        plan.choose("training.ema_decay", 0.995, "an average over about 200 steps; more would lag behind")
        return
    if plan.content["patches"]["spatial_dims"] == 3:
        plan.choose("model.generator", {"_target_": "resnet", "filters": 32, "blocks": 9}, "the paper's, half as wide")
        plan.choose("model.discriminator", {"filters": 32, "layers": 2}, "sees 34 voxels, about as many mm as in 2D")
        return
    plan.choose("model.generator", {"_target_": "resnet", "filters": 64, "blocks": 9}, "as in the CycleGAN paper")
    plan.choose("model.discriminator", {"filters": 64, "layers": 3}, "as in the CycleGAN paper: sees 70 x 70 voxels")


def _fit_memory(plan: Plan, machine: Machine) -> None:
    """The largest batch that fits, or else narrower networks, or else smaller patches."""
    limit = USABLE * machine.memory
    patches, generator = plan.content["patches"], plan.content["model"]["generator"]
    three = patches["spatial_dims"] == 3
    batches = (1,) if machine.kind == "cpu" or three else (8, 4, 2, 1)
    reason = "as in the CycleGAN paper" if len(batches) == 1 else "fits, and keeps the GPU busy; more was not tried"
    while True:
        for batch in batches:
            plan.choose("training.batch_size", batch, reason)
            plan.memory = _predict(plan, machine)
            if plan.memory is None or plan.memory <= limit:
                if batch < batches[0]:
                    plan.reasons["training.batch_size"] = f"the largest of {batches} that fits into {_gib(limit)}"
                return
        batches = (1,)
        reason = "the most that fits into memory"
        if three and not generator.get("checkpointing"):
            generator["checkpointing"] = True
            plan.reasons["model.generator"] += "; checkpointing computes activations twice to fit into memory"
        elif generator["filters"] > 16:
            generator["filters"] //= 2
            plan.reasons["model.generator"] += f"; {generator['filters']} filters to fit into memory"
        elif max(patches["size"]) > 64:
            patches["size"] = [max(64, _multiple(side / 2)) if side > 64 else side for side in patches["size"]]
            plan.reasons["patches.size"] = "voxels; halved to fit into memory"
        else:
            raise InputError(
                f"no experiment fits into {_gib(machine.memory)}: the smallest takes {_gib(plan.memory or 0)}.",
                "Free memory, or use another machine.",
            )


def _predict(plan: Plan, machine: Machine) -> float | None:
    memory = build.predict_memory(plan.experiment(), bf16=machine.bf16, device=machine.kind)
    return memory.total if memory else None


def _choose_steps(plan: Plan, a: Fingerprint, b: Fingerprint, machine: Machine, hours: float) -> None:
    settings = plan.content["training"]
    spacing = plan.content["preparation"]["spacing"]
    thick = spacing[2] if plan.content["patches"]["spatial_dims"] == 2 else BOX[2] * spacing[2] / 2
    images = max(domain.volumes * domain.height / thick for domain in (a, b))
    wanted = min(max(EPOCHS * images / settings["batch_size"], STEPS[0]), STEPS[1])
    wanted = int(round(wanted, -3))
    reason = f"{EPOCHS} times through about {images:.0f} images, but {STEPS[0]} to {STEPS[1]}"
    if machine.device is None:
        plan.choose("training.steps", wanted, reason)
        return
    each = build.measure_step(plan.experiment(), machine.device, MEASURED_STEPS)
    if machine.kind == "cpu" and wanted * each > hours * 3600:
        wanted = max(100, int(hours * 3600 / each) // 100 * 100)
        reason = f"what {hours:g} h allow at {each:.2f} s per step, measured here; more would be better"
    plan.choose("training.steps", wanted, reason)
    plan.seconds = wanted * each
    every = max(10, min(1000, wanted // 20))
    plan.choose("training.checkpoint_every", every, f"about every {every * each / 60:.0f} min")
    plan.choose("training.picture_every", every, "with every checkpoint")


def to_dict(plan: Plan) -> dict[str, Any]:
    """The plan as plain data."""
    return {
        "experiment": plan.content,
        "reasons": plan.reasons,
        "memory_bytes": plan.memory,
        "seconds": plan.seconds,
        "for": plan.purpose,
        "warnings": plan.warnings,
    }


def to_yaml(plan: Plan) -> str:
    """The plan as a config, each choice under its reason."""
    lines = [f"# Planned by medcyclegan {__version__} for {plan.purpose}."]
    if plan.memory is not None:
        lines.append(f"# Expected memory: {_gib(plan.memory)}.")
    if plan.seconds is not None:
        lines.append(
            f"# Expected time: {plan.seconds / 3600:.1f} h, from a measurement of {MEASURED_STEPS} steps here."
        )
    else:
        lines.append("# Expected time: not known, because the machine is not this one.")
    for warning in plan.warnings:
        lines += textwrap.wrap(f"Look at: {warning}.", 110, initial_indent="# ", subsequent_indent="#   ")
    for section, keys in plan.content.items():
        lines.append(f"{section}:")
        for key, value in keys.items():
            shown = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000).removesuffix("...\n")
            lines += textwrap.wrap(
                plan.reasons[f"{section}.{key}"], 110, initial_indent="  # ", subsequent_indent="  # "
            )
            lines.append(f"  {key}: {shown.strip()}")
    return "\n".join(lines) + "\n"


def save(plan: Plan, path: Path) -> None:
    """Write the plan as YAML that `medcyclegan train` takes."""
    with atomic_file(path) as temporary:
        temporary.write_text(to_yaml(plan), encoding="utf-8")


def _multiple(voxels: float) -> int:
    return max(1, math.ceil(voxels / MULTIPLE)) * MULTIPLE


def _by(lengths: Any) -> str:
    return " x ".join(f"{length:g}" for length in lengths)


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
