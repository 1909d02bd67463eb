"""Checkpoints as functions from volume to volume."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medcyclegan import __version__, config
from medcyclegan.errors import InputError
from medcyclegan.factory.devices import choose_device
from medcyclegan.factory.networks import make_network, make_networks
from medcyclegan.inference.ensemble import Ensemble
from medcyclegan.inference.sliding_window import SlidingWindow
from medcyclegan.inference.statistics import Statistics
from medcyclegan.inference.translator import ImageDomain, Translator
from medcyclegan.networks.cpu import accelerate
from medcyclegan.survey.features import Features
from medcyclegan.training.checkpoint import (
    BEST_NAME,
    NEEDED_TO_TRANSLATE,
    damaged,
    load_checkpoint,
    reading,
    require_fields,
)
from medcyclegan.training.trainer import bf16_is_safe
from medcyclegan.transforms.intensity import Scaler
from medcyclegan.transforms.pipeline import Preparation


def load_translator(
    path: str | Path | Sequence[str | Path],
    *,
    direction: str = "ab",
    device: str = "auto",
    ensemble: Ensemble | None = None,
    norm_statistics: Statistics = "window",
    allow: Iterable[str] = (),
    checkpoint: str = "last",
) -> Translator:
    """Load a run or checkpoint as a function from volume to volume.

    Args:
        path: the output folder of `medcyclegan train`, or a checkpoint file; several are fused.
        direction: "ab" (source to target, MR to CT by default) or "ba".
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        ensemble: planes and flips to fuse; default: one translation along the plane of the training.
        norm_statistics: of instance norms, see `inference.statistics`.
        allow: modules or packages of your own from which the checkpoint may name a network; importing runs their code.
        checkpoint: of a run, "last" or "best", that of the best validation; of no meaning for a checkpoint file.

    Raises:
        InputError: if the path holds no checkpoint of ours, or names a network from elsewhere.

    Examples:
        >>> sct = load_translator("runs/brain")("mr.nii.gz")  # doctest: +SKIP
        >>> sct.save("sct.nii.gz")  # doctest: +SKIP
    """
    if direction not in ("ab", "ba"):
        raise InputError(f"direction is 'ab' or 'ba', got '{direction}'.")
    paths = [path] if isinstance(path, str | Path) else list(path)
    if not paths:
        raise InputError("there is no run or checkpoint to load.", "Give at least one.")
    path, *others = (choose_checkpoint(Path(one), checkpoint) for one in paths)
    where, allow = choose_device(device), tuple(allow)
    content = load_checkpoint(path, allow)
    require_fields(content, path, NEEDED_TO_TRANSLATE)
    experiment = _experiment(content, path, allow)
    name = f"gen_{direction}"
    if name not in content["ema"]:
        raise InputError(
            f"{path} holds no generator for the direction '{direction}'; it has {', '.join(content['ema'])}."
        )
    source, target = (_domain(content, path, domain) for domain in direction)
    if len(target.channels) > 1:
        raise InputError(
            f"in the direction '{direction}' {path} makes {len(target.channels)} contrasts at once "
            f"({', '.join(target.channels)}), and a translation is one volume.",
            "Only the direction into a domain of one contrast is converted; train a model of one contrast for this.",
        )
    patches = experiment.patches
    if patches.size is None:
        raise damaged(path, "experiment.patches.size", "is missing")
    generator = _generator(name, content, experiment, path, where)
    back = f"gen_{direction[::-1]}"
    backward = _generator(back, content, experiment, path, where) if back in content["ema"] else None
    return Translator(
        generator,
        source,
        target,
        SlidingWindow(
            patches.size,
            patches.plane,
            patches.neighbors,
            norm_statistics,
            ensemble or Ensemble(),
            device=where,
            bf16=bf16_is_safe(where),
        ),
        description=_description(target.name, Path(path), content["step"]),
        backward=backward,
        others=[
            load_translator(
                other,
                direction=direction,
                device=device,
                norm_statistics=norm_statistics,
                allow=allow,
            )
            for other in others
        ],
    )


def _domain(content: dict[str, Any], path: Path, domain: str) -> ImageDomain:
    with reading(path, "domains"):
        described = content["domains"][domain]
    place = f"domains.{domain}"
    with reading(path, place):
        name, channels = described["name"], described["channels"]
    if not channels:
        raise damaged(path, f"{place}.channels", "is empty")
    preparations, scalers = [], []
    for number, channel in enumerate(channels):
        with reading(path, f"{place}.channels.{number}"):
            preparation, scaler = channel["preparation"], channel["scaler"]
        with reading(path, f"{place}.channels.{number}.preparation"):
            preparations.append(Preparation(**preparation))
            _require_usable(preparations[-1])
        with reading(path, f"{place}.channels.{number}.scaler"):
            _require_truth(inverted=scaler["inverted"])
            scalers.append(Scaler.from_dict(scaler))
    with reading(path, f"{place}.cohort"):
        cohort = [Features.from_dict(case) for case in described.get("cohort") or ()]
        if counts := {len(case.histograms) for case in cohort} - {len(channels)}:
            raise ValueError(f"a volume has {counts.pop()} histograms, and there are {len(channels)} channels")
    return ImageDomain(tuple(preparations), tuple(scalers), cohort or None, name)


def _require_truth(**values: object) -> None:
    """A text would count as true."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}, and true or false is needed")


def _require_usable(preparation: Preparation) -> None:
    """Raise a ValueError for values with which no volume can be prepared."""
    _require_truth(mr_inverted=preparation.mr_inverted, mr_exclude_blanked=preparation.mr_exclude_blanked)
    if preparation.crop_margin is not None and not math.isfinite(preparation.crop_margin):
        raise ValueError(f"crop_margin is {preparation.crop_margin}")
    low, high = preparation.mr_percentiles
    if len(preparation.spacing) != 3 or not all(math.isfinite(s) and s > 0 for s in preparation.spacing):
        raise ValueError(f"spacing is {preparation.spacing}, and three lengths above 0 mm are needed")
    if not 0 <= low < high <= 100:
        raise ValueError(f"mr_percentiles are {preparation.mr_percentiles}, and rise within 0 and 100")
    Scaler(*preparation.ct_window, floor=preparation.mr_floor)


def _experiment(content: dict[str, Any], path: Path, allow: Iterable[str] = ()) -> config.Experiment:
    try:
        return config.parse(content["experiment"], f"the config in {path}", tuple(allow))
    except (TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, "experiment", f"is no experiment ({error})") from error


def _generator(
    name: str, content: dict[str, Any], experiment: config.Experiment, path: Path, device: torch.device
) -> nn.Module:
    network = make_network(name, experiment)
    with reading(path, f"ema.{name}"):
        network.load_state_dict(content["ema"][name])
    if device.type == "cpu":
        accelerate(network)
    return network.eval().requires_grad_(False).to(device)


def choose_checkpoint(path: Path, which: str) -> Path:
    """The file of a run's "last" or "best" checkpoint; a file is given back as it is.

    Raises:
        InputError: for another word, or a run without a best checkpoint.
    """
    if which not in ("last", "best"):
        raise InputError(f"checkpoint is 'last' or 'best', got '{which}'.")
    if not path.is_dir() or which == "last":
        return path
    if not (path / BEST_NAME).is_file():
        raise InputError(
            f"the run {path} holds no {BEST_NAME}: nothing was validated yet, or a guard objected every time.",
            "Take --checkpoint last.",
        )
    return path / BEST_NAME


def _description(target: str, path: Path, step: int) -> str:
    """The description in the header of a result, most important first; NIfTI has 79 characters."""
    run = path.resolve() if path.is_dir() else path.resolve().parent
    return f"synthetic {target}, not for clinical use, medcyclegan {__version__}, model {run.name} step {step}"


def load_untrained(path: str | Path, *, device: str = "auto") -> Translator:
    """The untrained translator of a run: the same preparation and network with its initial weights."""
    translator = load_translator(path, device=device)
    experiment = _experiment(load_checkpoint(Path(path)), Path(path))
    translator.generator.load_state_dict(make_networks(experiment)["gen_ab"].state_dict())
    return translator
