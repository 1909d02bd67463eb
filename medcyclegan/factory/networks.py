"""Networks and the objective of an experiment, and the memory that they will take."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from medcyclegan.config import Experiment
from medcyclegan.errors import InputError, raise_all
from medcyclegan.losses.contrasts import OfEveryContrast
from medcyclegan.losses.structure.patch_nce import PatchNCE
from medcyclegan.networks.discriminators.windowed import Windowed
from medcyclegan.registry import (
    ADVERSARIAL_LOSSES,
    DISCRIMINATORS,
    GENERATORS,
    OBJECTIVES,
    RECONSTRUCTION_LOSSES,
    STRUCTURE_LOSSES,
)
from medcyclegan.training.memory import StepMemory, predict_step_memory
from medcyclegan.training.objectives import Objective
from medcyclegan.training.objectives.cut import CUT
from medcyclegan.transforms.intensity import Scaler

NETWORKS = {"gen_ab": GENERATORS, "gen_ba": GENERATORS, "disc_a": DISCRIMINATORS, "disc_b": DISCRIMINATORS}


def make_networks(experiment: Experiment) -> nn.ModuleDict:
    """The objective's networks with fresh weights; the same seed gives the same weights."""
    torch.manual_seed(experiment.seed)
    objective = OBJECTIVES.class_of(experiment.objective, experiment.allow)
    return nn.ModuleDict({name: make_network(name, experiment, objective.paired) for name in objective.required})


def make_objective(experiment: Experiment) -> Objective:
    """The objective with fresh networks."""
    losses, allow = experiment.losses, experiment.allow
    # Of each domain the HU that are -1 and 1; None where it is not CT.
    hu = experiment.preparation.ct_window
    windows = {name: hu if domain.modality == "CT" else None for name, domain in experiment.domains}
    structure = {
        leaf["_target_"].rpartition(".")[2]: STRUCTURE_LOSSES.build(leaf, allow, windows=windows)
        for leaf in losses.structure
    }
    _refuse_unequal_channels(experiment, structure)
    contrasts = {name: domain.volumes for name, domain in experiment.domains}
    structure = {
        name: loss if isinstance(loss, PatchNCE) else OfEveryContrast(loss, contrasts)
        for name, loss in structure.items()
    }
    example = {
        domain: torch.full((1, experiment.channels(domain), *[32] * experiment.patches.spatial_dims), -1.0)
        for domain in ("a", "b")
    }
    objective: Objective = OBJECTIVES.build(
        experiment.objective,
        allow,
        networks=make_networks(experiment),
        adversarial=ADVERSARIAL_LOSSES.build(losses.adversarial, allow),
        reconstruction=RECONSTRUCTION_LOSSES.build(losses.reconstruction, allow),
        structure=structure,
        example=example,
        seed=experiment.seed,
    )
    return objective


def _refuse_unequal_channels(experiment: Experiment, structure: Mapping[str, object]) -> None:
    """Refuse parts that need the same number of channels in both domains if the domains differ in it."""
    a, b = (experiment.channels(domain) for domain in ("a", "b"))
    if a == b:
        return
    problems = []
    if experiment.model.generator["_target_"].rpartition(".")[2] in ("mask_guided", "MaskGuidedGenerator"):
        problems.append("model.generator mask_guided mixes its input into its output")
    if any(isinstance(loss, PatchNCE) for loss in structure.values()):
        problems.append("losses.structure patch_nce shows the translation to the generator that made it")
    if issubclass(OBJECTIVES.class_of(experiment.objective, experiment.allow), CUT):
        problems.append("objective cut has a PatchNCE, which shows the translation to the generator that made it")
    named = "; ".join(
        f"{name} has {len(domain.contrasts)} contrasts ({', '.join(domain.contrasts)})"
        for name, domain in experiment.domains
        if domain.volumes > 1
    )
    raise_all(
        problems,
        f"images of a have {a} channels and images of b {b}, because {named}. These need as many on both sides; take "
        "other parts, or one contrast:",
    )


def require_patch_size(objective: Objective, size: Sequence[int]) -> None:
    """Refuse patches that are too small for a discriminator of the objective."""
    for name in objective.discriminators:
        network = objective.networks[name]
        smallest = getattr(network.discriminator if isinstance(network, Windowed) else network, "smallest", 1)
        if min(size) < smallest:
            raise InputError(
                f"patches.size is {list(size)}, and {name} needs at least {smallest} voxels along every axis.",
                "Give it fewer layers, or take larger patches.",
            )


def predict_memory(experiment: Experiment, *, bf16: bool, device: str) -> StepMemory | None:
    """The memory of a training step; None if it cannot be predicted.

    Args:
        experiment: resolved, at least its patches.size.
        bf16: whether convolutions run in bfloat16.
        device: "cpu" or "cuda".
    """
    patches = experiment.patches
    if patches.size is None:
        raise ValueError("predict_memory takes an experiment whose patches.size is set")
    channels = {domain: experiment.channels(domain) for domain in ("a", "b")}
    try:
        with torch.random.fork_rng(devices=()):  # what trains afterwards draws the same numbers
            return predict_step_memory(
                lambda: make_objective(experiment),
                experiment.training.batch_size,
                channels,
                patches.size,
                bf16=bf16,
                device=device,
            )
    except (RuntimeError, NotImplementedError, TypeError, InputError) as error:
        # A network from elsewhere may look at values, which fake tensors do not have.
        if isinstance(error, InputError) and not isinstance(error.__cause__, RuntimeError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warnings.warn(f"the memory that training takes cannot be predicted: {reason}", stacklevel=2)
        return None


def make_network(name: str, experiment: Experiment, paired: bool = False) -> nn.Module:
    """One network with fresh weights; the discriminator of a paired objective sees the source too."""
    dims = experiment.patches.spatial_dims
    allow = experiment.allow
    network: nn.Module
    if name.startswith("gen"):
        leaf = experiment.model.generator
        given, wanted = (experiment.channels(domain) for domain in name[-2:])
        network = NETWORKS[name].build(
            leaf, experiment.allow, in_channels=given, out_channels=wanted, spatial_dims=dims
        )
        return network
    channels = experiment.channels(name[-1])
    judged = channels + (experiment.channels("a" if name[-1] == "b" else "b") if paired else 0)
    leaf, windows = experiment.model.discriminator, experiment.model.discriminator_windows
    if not windows or getattr(experiment.domains, name[-1]).modality != "CT":
        network = NETWORKS[name].build(leaf, allow, in_channels=judged, spatial_dims=dims)
        return network
    scaled = Scaler(*experiment.preparation.ct_window).apply(np.array(windows))
    seen = judged + channels * len(windows)
    network = NETWORKS[name].build(leaf, allow, in_channels=seen, spatial_dims=dims)
    return Windowed(network, [(float(low), float(high)) for low, high in scaled], channels)
