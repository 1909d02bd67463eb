"""Checkpoints as functions from volume to volume."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from medcyclegan import __version__, config
from medcyclegan.build.devices import choose_device
from medcyclegan.build.networks import lay_out, make_network, make_networks
from medcyclegan.errors import InputError
from medcyclegan.inference.ensemble import Ensemble
from medcyclegan.inference.statistics import Statistics
from medcyclegan.inference.translator import Translator
from medcyclegan.training.checkpoint import BEST_NAME, load_checkpoint
from medcyclegan.training.trainer import averaged_state, bf16_is_safe
from medcyclegan.transforms.intensity import Scaler
from medcyclegan.transforms.pipeline import Preparation


def load_translator(
    path: str | Path,
    *,
    direction: str = "ab",
    device: str = "auto",
    ensemble: Ensemble | None = None,
    others: Sequence[str | Path] = (),
    statistics: Statistics = "window",
    allow: Iterable[str] = (),
    checkpoint: str = "last",
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
        checkpoint: of a run, "last" or "best", that of the best validation; of no meaning for a checkpoint file. It
            holds for `others` too.

    Raises:
        InputError: if the path holds no checkpoint of ours, or names a network from elsewhere.

    Examples:
        >>> sct = load_translator("runs/brain")("mr.nii.gz")  # doctest: +SKIP
        >>> sct.save("sct.nii.gz")  # doctest: +SKIP
    """
    if direction not in ("ab", "ba"):
        raise InputError(f"direction is 'ab' or 'ba', got '{direction}'.")
    where = choose_device(device)
    path = choose_checkpoint(Path(path), checkpoint)
    allow = tuple(allow)
    content = load_checkpoint(path, allow)
    experiment = config.parse(content["experiment"], f"the config in {path}", allow)
    name = f"gen_{direction}"
    if name not in content["ema"]:
        raise InputError(
            f"{path} holds no generator for the direction '{direction}'; it has {', '.join(content['ema'])}."
        )
    generator = make_network(name, experiment)
    generator.load_state_dict(averaged_state(content, name, generator))
    source, target = (content["domains"][domain] for domain in direction)
    if len(made := [contrast["name"] for contrast in target.get("contrasts", ())]) > 1:
        raise InputError(
            f"in the direction '{direction}' {path} makes {len(made)} contrasts at once ({', '.join(made)}), and a "
            "translation is one volume.",
            "Only the direction into a domain of one contrast is converted; train a model of one contrast for this.",
        )
    contrasts = source.get("contrasts", ())
    if experiment.patches.size is None:
        raise InputError(f"{path}: the checkpoint's config has no patches.size; it is damaged.")
    back = f"gen_{direction[::-1]}"
    backward = None
    if back in content["ema"]:
        backward = make_network(back, experiment)
        backward.load_state_dict(averaged_state(content, back, backward))
        backward.eval().requires_grad_(False).to(where)
    for network in (generator, backward):
        if network is not None:
            lay_out(network, where)
    return Translator(
        generator.eval().requires_grad_(False).to(where),
        preparation=Preparation(**source["preparation"]),
        contrasts=[contrast["name"] for contrast in contrasts],
        further=[Preparation(**contrast["preparation"]) for contrast in contrasts[1:]],
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
            load_translator(
                other, direction=direction, device=device, statistics=statistics, allow=allow, checkpoint=checkpoint
            )
            for other in others
        ],
    )


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
    """What the header of a result says; NIfTI has 79 characters, and what matters most comes first."""
    run = path.resolve() if path.is_dir() else path.resolve().parent
    return f"synthetic {target}, not for clinical use, medcyclegan {__version__}, model {run.name} step {step}"


def load_untrained(path: str | Path, *, device: str = "auto") -> Translator:
    """The translator that a run began with: the same preparation and network with its initial weights."""
    translator = load_translator(path, device=device)
    experiment = config.parse(load_checkpoint(Path(path))["experiment"], f"the config in {path}")
    translator.generator.load_state_dict(make_networks(experiment)["gen_ab"].state_dict())
    return translator
