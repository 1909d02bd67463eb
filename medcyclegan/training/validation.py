"""Validation of the averaged generators during training; it chooses the best checkpoint.

Lower scores are better. With pairs it is the mean absolute error in the body. Without pairs nothing
measures the error; the *proxy* that stands in for it is the mean of three numbers, each of which is 1 for a useless
translation of the probe's patches:

- `cycle`: mean absolute difference in the body between patches and their way there and back, as a share of that
  between the patches and their median, the best constant; both domains; 0 is perfect;
- `structure`: 1 - the absolute gradient correlation (Hiasa et al. 2018, equation 4) of patches and their translations;
  0: the same edges everywhere. The true CT of a phantom has 0.23. MIND, which is 0.55 for the true CT and less
  for poor translations, is not suitable;
- `distribution`: Wasserstein-1 distance in the body between the values of the translations into b and of real b, as a
  share of that between real b and its median; 0 is perfect.

A proxy is not an error. It cannot see a translation that is consistent, well aligned, of the right histogram and still
wrong; a generator that hides the source in its output lowers `cycle` without being better; and its values do not
compare trainings with different settings. Within a training it followed the error of phantoms
(the page "Watch a training" of the documentation).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from medcyclegan.errors import InputError
from medcyclegan.losses.contrasts import OfEveryContrast
from medcyclegan.losses.structure import View
from medcyclegan.losses.structure.gradient_correlation import GradientCorrelation
from medcyclegan.training.guards import Remark, TranslationGuards
from medcyclegan.training.probe import Probe, bodies_for

Record = Callable[[int, dict[str, float], Probe, dict[str, Tensor]], None]
QUANTILES = 1000  # at which two distributions are compared


def unpaired_scores(probe: Probe, images: Mapping[str, Tensor]) -> dict[str, float]:
    """`cycle` (where there is a way back), `structure`, `distribution`, and their mean `proxy`; see the module's text.

    Args:
        probe: the patches.
        images: what `Probe.translate` gave.
    """
    scores = {}
    cycles = [
        relative_error(images[f"cycle_{domain}"], probe.real[domain], probe.bodies[domain])
        for domain in ("a", "b")
        if f"cycle_{domain}" in images
    ]
    if cycles:
        scores["cycle"] = sum(cycles) / len(cycles)
    scores["structure"] = structure_disagreement(probe.real["a"], images["fake_b"], probe.bodies["a"], probe.contrasts)
    count = probe.contrasts.get("b", 1)
    distances = [
        distribution_distance(made[bodies_for(probe.bodies["a"], made)], real[bodies_for(probe.bodies["b"], real)])
        for made, real in zip(images["fake_b"].chunk(count, dim=1), probe.real["b"].chunk(count, dim=1), strict=True)
    ]
    scores["distribution"] = sum(distances) / len(distances)
    return {**scores, "proxy": sum(scores.values()) / len(scores)}


def relative_error(images: Tensor, wanted: Tensor, bodies: Tensor) -> float:
    """Mean absolute difference in the body, as a share of that of the best constant. All (N, C, *spatial)."""
    inside = wanted[bodies].float()
    constant = (inside - inside.median()).abs().mean().clamp_min(1e-6)
    return float((images[bodies].float() - inside).abs().mean() / constant)


def structure_disagreement(
    sources: Tensor, translated: Tensor, bodies: Tensor, contrasts: Mapping[str, int] | None = None
) -> float:
    """1 - the absolute gradient correlation, mean over patches and axes, whatever the sign of the contrast.

    Args:
        sources, translated: (N, C, *spatial); the mean over the channels of each contrast is taken.
        bodies: (N, C, *spatial), boolean.
        contrasts: "a" (sources) and "b" -> number of contrasts; the result is the mean over their pairs.

    Returns:
        Between 0 (the same edges) and 1 (unrelated ones).
    """
    view = View(sources, translated, None, bodies, "b", nn.Identity())
    return float(OfEveryContrast(GradientCorrelation(absolute=True), contrasts or {})(view))


def distribution_distance(values: Tensor, wanted: Tensor) -> float:
    """Wasserstein-1 distance of two samples, as a share of that between `wanted` and its median.

    In one dimension it is the mean absolute difference of the quantile functions (Villani 2003, section 2.2).

    Args:
        values, wanted: (N,) and (M,).
    """
    one, other = (_quantiles(sample.float()) for sample in (values, wanted))
    constant = (other - other.median()).abs().mean().clamp_min(1e-6)
    return float((one - other).abs().mean() / constant)


def _quantiles(sample: Tensor) -> Tensor:
    """At the middles of `QUANTILES` equal shares."""
    ordered = sample.sort().values
    index = (torch.arange(QUANTILES) + 0.5) / QUANTILES * len(ordered)
    return ordered[index.long().clamp_max(len(ordered) - 1)]


class Validation:
    """Ignite handler: scores regularly and at the end, keeps the best, drives the schedule, stops early.

    Attach it before what writes checkpoints, so that a checkpoint knows of the validation of its own step.

    Args:
        every: steps between validations.
        guards: examine the translations of their probe's patches; while they object, no checkpoint becomes the best.
        score_pairs: gives the errors of the averaged generators on the pairs by name, the first being the score; None
            without pairs: the score is then the proxy.
        save_best: writes the best checkpoint.
        record: takes the step, all values by name, the patches and their translations.
        patience: validations in a row without a better score after which the training ends; None: never.
    """

    def __init__(
        self,
        *,
        every: int,
        guards: TranslationGuards,
        score_pairs: Callable[[], dict[str, float]] | None,
        save_best: Callable[[Any], None],
        record: Record,
        patience: int | None = None,
    ) -> None:
        self.every = every
        self.guards = guards
        self.score_pairs = score_pairs
        self.save_best = save_best
        self.record = record
        self.patience = patience
        self.waited = 0

    @property
    def exhausted(self) -> bool:
        """Whether the patience is used up."""
        return self.patience is not None and self.waited >= self.patience

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        step = engine.state.iteration
        if step % self.every and step != engine.state.epoch_length:
            return
        generators = engine.ema.averages
        images = self.guards.probe.translate(generators, engine.state.device)
        values = dict(self.score_pairs()) if self.score_pairs else {}
        name = next(iter(values), "proxy")
        values |= unpaired_scores(self.guards.probe, images)
        values |= self.guards.observe(
            step, {image.removeprefix("fake_"): made for image, made in images.items() if image.startswith("fake_")}
        )
        self.record(step, values, self.guards.probe, images)
        score = values[name]
        if engine.schedule.observe(score if math.isfinite(score) else math.inf):
            seen = f"{name} is no better for a while."
            self.guards.report(step, "plateau", Remark(seen, "The learning rate falls from here on."))
        usable = math.isfinite(score) and not self.guards.raised
        if usable and (engine.best is None or score < engine.best["score"]):
            engine.best = {"step": step, "score": score, "name": name}
            self.waited = 0
            self.save_best(engine)
            return
        self.waited += 1
        if self.exhausted:
            self.guards.report(
                step,
                "patience",
                Remark(
                    f"{name} was no better in {self.waited} validations than "
                    + (f"{engine.best['score']:.4g} at step {engine.best['step']}." if engine.best else "ever before."),
                    "The training stops early.",
                ),
            )
            engine.terminate()

    def state_dict(self) -> dict[str, Any]:
        return {"waited": self.waited, "guards": self.guards.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.waited = int(state["waited"])
        self.guards.load_state_dict(state["guards"])


def require_not_exhausted(validation: Validation, step: int) -> None:
    """Refuse to continue a training that stopped early.

    Raises:
        InputError: saying so.
    """
    if validation.exhausted:
        raise InputError(
            f"this training stopped early at step {step}: {validation.waited} validations in a row were no better than "
            "the best (training.patience).",
            "Convert with it, or train anew with a longer training.patience.",
        )
