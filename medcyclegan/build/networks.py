"""Networks and the objective of an experiment, and the memory that they will take."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import nn

from medcyclegan.config import Experiment
from medcyclegan.networks.discriminators.windowed import Windowed
from medcyclegan.networks.instance_norm import use_channels_last
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
from medcyclegan.transforms.intensity import Scaler

NETWORKS = {"gen_ab": GENERATORS, "gen_ba": GENERATORS, "disc_a": DISCRIMINATORS, "disc_b": DISCRIMINATORS}


def make_networks(experiment: Experiment) -> nn.ModuleDict:
    """The objective's networks with fresh weights; the same seed gives the same weights."""
    torch.manual_seed(experiment.seed)
    objective = OBJECTIVES.class_of(experiment.objective)
    return nn.ModuleDict({name: make_network(name, experiment, objective.paired) for name in objective.required})


def lay_out(network: nn.Module, device: torch.device) -> None:
    """Lay the weights out in memory as the device computes fastest with them."""
    if device.type == "cpu":
        use_channels_last(network)


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


def predict_memory(experiment: Experiment, *, bf16: bool, device: str) -> StepMemory | None:
    """What a training step will take; None where it cannot be told.

    Args:
        experiment: resolved, at least its patches.size.
        bf16: whether convolutions run in bfloat16.
        device: "cpu" or "cuda".
    """
    patches = experiment.patches
    if patches.size is None:
        raise ValueError("predict_memory takes an experiment whose patches.size is set")
    channels = 2 * patches.neighbors + 1
    try:
        return predict_step_memory(
            lambda: make_objective(experiment, ct_windows(experiment)),
            experiment.training.batch_size,
            channels,
            patches.size,
            bf16=bf16,
            device=device,
        )
    except (RuntimeError, NotImplementedError, TypeError) as error:
        # A network from elsewhere may look at values, which fake tensors do not have.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warnings.warn(f"the memory that training takes cannot be predicted: {reason}", stacklevel=2)
        return None


def ct_windows(experiment: Experiment) -> dict[str, tuple[float, float] | None]:
    """Domain -> the HU that are -1 and 1, None for a domain that is not CT."""
    window = experiment.preparation.ct_window
    return {name: window if domain.modality == "CT" else None for name, domain in experiment.domains}


def make_network(name: str, experiment: Experiment, paired: bool = False) -> nn.Module:
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
