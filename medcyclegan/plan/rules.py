"""The rules of a plan: each is a function that fills in one section of the config and states the reason.

The reason names its basis: what `train` accepts, what fits into memory, the papers, or judgment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medcyclegan import config, factory
from medcyclegan.data.patches import LEAST_FILLED, filled_share
from medcyclegan.errors import InputError, raise_all
from medcyclegan.plan.domain import Domain
from medcyclegan.plan.plan import GIB, Machine, Plan, gib
from medcyclegan.transforms.geometry import working_grid
from medcyclegan.transforms.limits import FEWEST_VOXELS, require_size

USABLE = 0.85  # share of the memory that is used; the rest is for other programs and prediction errors
MULTIPLE = 16  # of patch sizes, so that every network can halve them
LARGEST_SLICE = {"cuda": 256, "cpu": 128}  # voxels across; larger bodies get coarser voxels, not cut slices
CPU_SPACING = 2.0  # mm; half the voxel size takes four times as long, which is too long on a CPU
THICK = 2.5  # slices that many times thicker than their voxels are wide are not interpolated into 3D patches
BOX_VOLUMES = 30  # of each domain, at least, for 3D patches: a volume gives few different ones
BOX_MEMORY = 40 * GIB
BOX = (128, 128, 64)  # voxels, at most
STACK_MM = 3.0  # neighboring slices farther apart than this show other anatomy
SLAB_MM = 60.0  # lower volumes could show any part of a head


def decide(a: Domain, b: Domain, machine: Machine, domains: Mapping[str, config.Domain] | None = None) -> Plan:
    """Choose everything but the number of steps, from the domains and the machine.

    Args:
        a, b: of both domains; of several contrasts, of the first.
        machine: where it would run.
        domains: "a", "b" -> name, modality and contrasts; by default the modality is the name, with one contrast.

    Raises:
        InputError: if not even the smallest experiment fits into the memory, or no voxel size fits all volumes.
    """
    plan = Plan(f"{a.volumes} {a.modality} and {b.volumes} {b.modality} volumes on a {machine.name}")
    for key, domain in (("a", a), ("b", b)):
        given = (domains or {}).get(key) or config.Domain(name=domain.modality, modality=domain.modality)
        plan.choose(f"domains.{key}", given.model_dump(mode="json"), "as given")
    for domain in (a, b):
        if domain.problems:
            plan.warnings.append(
                f"{'at least ' * (domain.measured < domain.volumes)}{len(domain.problems)} of {domain.volumes} "
                f"{domain.modality} volumes cannot be used, the first because: "
                f"{domain.problems[0].splitlines()[0].rstrip('.')}"
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
    _fit_memory(plan, machine, _slices_to_learn_from(plan, a, b))
    precision = "bfloat16, which" if machine.bf16 else "float32: bfloat16 is not what"
    plan.choose("training.precision", "auto", f"{precision} this hardware computes fast")
    workers = min(4, machine.cores - 1) if machine.kind == "cuda" else 0
    reason = "patches are read beside the GPU" if workers else "patches are read in the time between two steps"
    plan.choose("training.workers", workers, reason)
    _require_accepted(plan, a, b)
    return plan


def _choose_spacing(plan: Plan, a: Domain, b: Domain, machine: Machine) -> None:
    median = np.median([a.spacing, b.spacing], axis=0)
    reason = f"mm; median of the volumes ({a.modality} {_by(a.spacing)}, {b.modality} {_by(b.spacing)})"
    spacing = median.copy()
    spacing[:2] = spacing[:2].mean()  # the same across and along, so that patches are square in space
    pictures = all(grid.shape[2] == 1 for grid in (*a.grids.values(), *b.grids.values())) and bool(a.grids)
    if machine.kind == "cpu" and spacing.min() < CPU_SPACING and not pictures:
        spacing = np.maximum(spacing, CPU_SPACING)
        reason += f", not below {CPU_SPACING:g} mm on a processor"
    widest = max(*a.extent[:2], *b.extent[:2])
    needed = widest / LARGEST_SLICE[machine.kind]
    if spacing[0] < needed:
        spacing[:2] = math.ceil(100 * needed) / 100
        reason += f"; so coarse that a body of {widest:.0f} mm fits into {LARGEST_SLICE[machine.kind]} voxels"
    chosen = [round(float(s), 2) for s in spacing]
    finer, why = _fine_enough(plan, chosen, a, b)
    plan.choose("preparation.spacing", finer, reason + why)
    for domain in (a, b):
        if max(domain.coarsest) > 3 * max(domain.spacing):
            plan.warnings.append(
                f"{domain.modality}: voxels range from {_by(domain.finest)} to {_by(domain.coarsest)} mm; the coarsest "
                "volumes may be better left out"
            )


def _fine_enough(plan: Plan, spacing: list[float], a: Domain, b: Domain) -> tuple[list[float], str]:
    """The spacing, made finer if a volume would have too few voxels, and the reason.

    Every volume needs `FEWEST_VOXELS` along each axis; and of each domain one volume twice as many along both axes of a
    slice, to fill a quarter of the smallest patch.
    """
    limits = np.full(3, np.inf)
    thin: list[tuple[float, str]] = []
    for domain in (a, b):
        fields = {name: grid.field_of_view for name, grid in domain.grids.items()}
        few = []
        for name, lengths in fields.items():
            axes = 2 if domain.grids[name].shape[2] == 1 else 3
            limits[:axes] = np.minimum(limits[:axes], lengths[:axes] / FEWEST_VOXELS)
            if (lengths[:axes] / FEWEST_VOXELS < np.array(spacing)[:axes] * (1 - 1e-6)).any():
                few.append((float(lengths[:axes].min()), name))
        thin += few if len(few) <= len(fields) / 2 else []
        if fields:
            across = max(min(lengths[:2]) for lengths in fields.values())
            limits[:2] = np.minimum(limits[:2], across / (MULTIPLE / 2))
    limits[:2] = limits[:2].min()
    # Rounded down, so that no voxel is lost; rounding of float32 headers may lower it a little.
    limits = np.floor(limits * 1e4 + 1e-3) / 1e4
    finer = [min(step, float(limit)) for step, limit in zip(spacing, limits, strict=True)]
    if finer == spacing:
        return spacing, ""
    if thin:
        length, name = min(thin)
        plan.warnings.append(
            f"{len(thin)} of {len(a.grids) + len(b.grids)} volumes are so thin that the voxels have to be {_by(finer)} "
            f"mm instead of {_by(spacing)} mm, the thinnest {length:g} mm ({name}): better left out?"
        )
    return finer, f"; so fine that every volume has at least {FEWEST_VOXELS} voxels along each axis"


def _working_shapes(domain: Domain, spacing: Sequence[float], dims: int) -> list[tuple[int, ...]]:
    """Voxels of every volume along the axes of a patch."""
    return [working_grid(grid, spacing).shape[:dims] for grid in domain.grids.values()]


def _fits(domain: Domain, spacing: Sequence[float], size: Sequence[int]) -> bool:
    """Whether the largest volume fills enough of a patch for `train`."""
    shapes = _working_shapes(domain, spacing, len(size))
    return not shapes or max(filled_share(shape, size) for shape in shapes) >= LEAST_FILLED


def _choose_patches(plan: Plan, a: Domain, b: Domain, machine: Machine) -> None:
    spacing = plan.content["preparation"]["spacing"]
    thickness = max(a.spacing[2], b.spacing[2])
    fewest = min(a.volumes, b.volumes)
    window = [_multiple(extent / step) for extent, step in zip(np.maximum(a.extent, b.extent), spacing, strict=True)]
    box = [min(side, most) for side, most in zip(window, BOX, strict=True)]
    single = a.single_slices or b.single_slices
    too_thin = single or not all(_fits(domain, spacing, box) for domain in (a, b))
    if (
        machine.kind == "cuda"
        and machine.memory >= BOX_MEMORY
        and fewest >= BOX_VOLUMES
        and thickness <= THICK * spacing[0]
        and not too_thin
    ):
        reason = (
            f"3D patches: thin slices ({thickness:g} mm), {fewest} volumes or more of each domain, and enough memory"
        )
        plan.choose("patches.spatial_dims", 3, f"{reason} (judgment: they see all directions, but need all three)")
        plan.choose("patches.size", box, f"voxels; large enough for every body, at most {_by(BOX)}")
        return
    if machine.kind == "cpu":
        why = "3D patches take too long on a CPU"
    elif thickness > THICK * spacing[0]:
        why = f"slices are {thickness:g} mm thick"
    elif fewest < BOX_VOLUMES:
        why = f"only {fewest} volume{'s' * (fewest > 1)} of a domain"
    elif too_thin:
        why = "the volumes have too few slices to fill 3D patches"
    else:
        why = f"less than {BOX_MEMORY / GIB:.0f} GiB of memory"
    plan.choose("patches.spatial_dims", 2, f"2D slices, not 3D patches: {why}")
    if machine.kind == "cuda" and thickness <= STACK_MM and not single:
        reason = f"2.5D, slices {thickness:g} mm apart show nearly the same anatomy: fewer jumps from slice to slice"
        plan.choose("patches.neighbors", 1, f"{reason} (judgment)")
    limit = LARGEST_SLICE[machine.kind]
    size, reason = [min(side, limit) for side in window[:2]], "voxels; the smallest that holds every body"
    for domain in (a, b):
        if not _fits(domain, spacing, size):
            largest = max(_working_shapes(domain, spacing, 2), key=min)
            size = [min(side, _multiple(voxels)) for side, voxels in zip(size, largest, strict=True)]
            reason = f"voxels; no larger than the largest {domain.modality} volume, which would leave most of it empty"
    plan.choose("patches.size", size, reason)


def _choose_sampling(plan: Plan, a: Domain, b: Domain) -> None:
    if a.head and b.head:
        plan.choose("patches.flip", True, "a head is nearly symmetric")
    dims = plan.content["patches"]["spatial_dims"]
    ratio = max(a.height, b.height) / min(a.height, b.height)
    if a.single_slices or b.single_slices:
        plan.choose("patches.matching", "any", "single slices do not say at which height they lie")
    elif a.head and b.head and min(a.top_inside, b.top_inside) == 1:
        reason = "both domains show heads with their top: slices of similar distance from it show similar anatomy"
        plan.choose("patches.matching", "vertex", reason)
    elif a.head and b.head and min(a.height, b.height) >= SLAB_MM:
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
        plan.warnings.append(f"{reason}: anatomy that only one domain shows will be invented; crop them alike")
    if a.head != b.head:
        one, other = (a, b) if a.head else (b, a)
        plan.warnings.append(f"{one.modality} looks like heads and {other.modality} does not: is it the same region?")
    if dims == 2 and min(a.volumes, b.volumes) < 10:
        plan.warnings.append(f"{min(a.volumes, b.volumes)} volume(s) of a domain are few: expect overfitting")


def _choose_networks(plan: Plan, machine: Machine) -> None:
    # A discriminator of three layers needs 24 voxels.
    small = min(plan.content["patches"]["size"]) < 32
    if machine.kind == "cpu":
        generator = {"_target_": "attention_unet", "filters": 16, "depth": 3, "gates": False}
        reason = (
            "a narrow U-Net: quick, and none made smaller errors on phantoms after as many steps (Choose a method, in "
            "the documentation)"
        )
        plan.choose("model.generator", generator, reason)
        reason = "as narrow, so that neither side wins at once" + "; two layers for small patches" * small
        plan.choose("model.discriminator", {"filters": 16, "layers": 2 if small else 3}, reason)
        plan.choose("training.learning_rate", 4e-4, "twice the paper's, for a short training of narrow networks")
        plan.choose("training.ema_decay", 0.995, "an average over about 200 steps; more would lag behind")
        return
    if plan.content["patches"]["spatial_dims"] == 3:
        plan.choose("model.generator", {"_target_": "resnet", "filters": 32, "blocks": 9}, "the paper's, half as wide")
        plan.choose("model.discriminator", {"filters": 32, "layers": 2}, "sees 34 voxels, about as many mm as in 2D")
        return
    plan.choose("model.generator", {"_target_": "resnet", "filters": 64, "blocks": 9}, "as in the CycleGAN paper")
    if small:
        plan.choose("model.discriminator", {"filters": 64, "layers": 2}, "sees 34 x 34 voxels, for small patches")
        return
    plan.choose("model.discriminator", {"filters": 64, "layers": 3}, "as in the CycleGAN paper: sees 70 x 70 voxels")


def _slices_to_learn_from(plan: Plan, a: Domain, b: Domain) -> float:
    """The number of slices with enough body, of the domain that has fewer; infinite where it is unknown."""
    step = plan.content["preparation"]["spacing"][2]
    # One less than fit, because the uppermost and the lowest may fall below the limit once resampled.
    counts = [sum(max(1, int(shown / step) - 1) for shown in domain.shown_mm) for domain in (a, b) if domain.shown_mm]
    return min(counts, default=math.inf)


def _fit_memory(plan: Plan, machine: Machine, slices: float) -> None:
    """Choose the largest batch that fits and that `slices` can fill, or else narrower networks or smaller patches."""
    limit = USABLE * machine.memory
    patches, generator = plan.content["patches"], plan.content["model"]["generator"]
    three = patches["spatial_dims"] == 3
    batches = (1,) if machine.kind == "cpu" or three else tuple(n for n in (8, 4, 2, 1) if n <= max(1, slices))
    reason = "as in the CycleGAN paper" if len(batches) == 1 else "fits, and keeps the GPU busy; more was not tried"
    if batches[0] < 8 and not three and machine.kind != "cpu":
        reason = f"a domain has only about {slices:.0f} slices to learn from"
    while True:
        for batch in batches:
            plan.choose("training.batch_size", batch, reason)
            plan.memory = _predict(plan, machine)
            if plan.memory is None or plan.memory <= limit:
                if batch < batches[0]:
                    plan.reasons["training.batch_size"] = f"the largest of {batches} that fits into {gib(limit)}"
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
                f"no experiment fits into {gib(machine.memory)}: the smallest takes {gib(plan.memory or 0)}.",
                "Free memory, or use another machine.",
            )


def _require_accepted(plan: Plan, a: Domain, b: Domain) -> None:
    """Apply the rule by which a preparation refuses volumes.

    Raises:
        InputError: naming the volumes that a training on this plan would refuse.
    """
    spacing = plan.content["preparation"]["spacing"]
    problems = []
    for domain in (a, b):
        for name, grid in domain.grids.items():
            try:
                require_size(grid, spacing, name, picture=grid.shape[2] == 1)
            except InputError as error:
                problems.append(str(error))
    raise_all(problems, f"no voxel size fits all volumes; leave out those that do not fit {_by(spacing)} mm:")


def _predict(plan: Plan, machine: Machine) -> float | None:
    memory = factory.predict_memory(plan.experiment(), bf16=machine.bf16, device=machine.kind)
    return memory.total if memory else None


def _multiple(voxels: float) -> int:
    return max(1, math.ceil(voxels / MULTIPLE)) * MULTIPLE


def _by(lengths: Any) -> str:
    return " x ".join(f"{length:g}" for length in lengths)
