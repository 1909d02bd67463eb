"""Guards against failures of adversarial training: a saturated discriminator, collapse, and inverted contrast.

The guards look at the discriminators' losses and, at every validation, at translations of fixed patches; they warn and
keep such a state from becoming the best checkpoint, but do not stop the training, since a run may recover.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from medcyclegan.losses.adversarial import AdversarialLoss
from medcyclegan.training.probe import Probe, bodies_for

SATURATED = 0.02  # share of an undecided discriminator's loss below which it has won
SATURATION_STEPS = 500  # for which it must have won
COLLAPSED = 0.05  # of the differences between inputs that are left between outputs
INVERTED = -0.3  # correlation of the order of tissues with depth
PERSISTENT = 2  # validations in a row for which collapse or inversion must be seen
DEPTHS = 12  # shells between the body's surface and its middle
CLEAR_PROFILE = 0.05  # standard deviation over depths, as a share of that inside the body; flatter ones have no order


@dataclass(frozen=True)
class Remark:
    """The message of a guard, in whole sentences.

    Attributes:
        saw: what it saw, with the numbers.
        did: what was done about it.
        remedy: what to try; empty where nothing needs to be.
    """

    saw: str
    did: str
    remedy: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (self.saw, self.did, self.remedy) if part)


Report = Callable[[int, str, Remark], None]  # the step, the name of the guard, and what it says


def undecided_loss(loss: AdversarialLoss) -> float | None:
    """The least loss of a discriminator that gives real and fake the same logit; None if there is no such bound.

    For example 1/4 for least squares (logit 1/2), ln 2 for binary cross-entropy and 2 for the hinge loss (logit 0).
    """
    logits = torch.linspace(-2, 2, 401).view(-1, 1, 1, 1)
    least = min(float(loss.discriminator(one, one)) for one in logits.split(1))
    return least if least > 0 else None


class SaturationGuard:
    """Warns when a discriminator has separated real and fake almost perfectly for `SATURATION_STEPS` steps in a row.

    Its gradient then hardly helps the generator. It warns once, and again only after a recovery.

    Args:
        undecided: see `undecided_loss`; below `SATURATED` times that, it has won.
        report: takes the step, "saturation", and a message.
    """

    def __init__(self, undecided: float, report: Report) -> None:
        self.undecided = undecided
        self.report = report
        self.won: dict[str, int] = {}  # discriminator's loss -> steps for which it has been won

    def observe(self, step: int, steps: int, losses: dict[str, float]) -> None:
        """Take the mean losses of the last `steps` steps."""
        for name, loss in losses.items():
            if not name.startswith("discriminator_"):
                continue
            before = self.won.get(name, 0)
            self.won[name] = before + steps if loss < SATURATED * self.undecided else 0
            if before < SATURATION_STEPS <= self.won[name]:
                self.report(
                    step,
                    "saturation",
                    Remark(
                        f"{name} has been below {SATURATED * self.undecided:.2g} for {self.won[name]} steps, now "
                        f"{loss:.2g} where an undecided discriminator has {self.undecided:.2g}: it tells real and fake "
                        "apart perfectly and teaches the generator little.",
                        "The training goes on.",
                        "Try a lower training.learning_rate_discriminator, fewer filters or layers of the "
                        "discriminator, or look for what gives the fakes away at a glance (another field of view, "
                        "another background).",
                    ),
                )

    def state_dict(self) -> dict[str, Any]:
        return {"won": dict(self.won)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.won = {str(name): int(steps) for name, steps in state["won"].items()}


class TranslationGuards:
    """Collapse and inversion, looked for in the translations of fixed patches at every validation.

    *Collapse*: different inputs get nearly the same output: `spread_ratio` is below `COLLAPSED`.
    *Inversion*: the tissues' order with depth under the body's surface, known from real images of the target domain, is
    reversed in the translations: the correlation of the two `depth_profile`s is below `INVERTED`. In a head that is
    the order of skin, bone and brain. There is no warning if real images show no order.

    Either must persist for `PERSISTENT` validations in a row, and is reported once.

    Args:
        probe: the patches. The order of tissues is looked at in each contrast, and the worst counts.
        report: takes the step, "collapse" or "inversion", and a message.
    """

    def __init__(self, probe: Probe, report: Report) -> None:
        self.probe = probe
        self.report = report
        # Per domain, the profile of every contrast that shows an order.
        self.profiles: dict[str, dict[int, npt.NDArray[np.float64]]] = {}
        for domain, real in probe.real.items():
            self.profiles[domain] = {}
            for number, images in enumerate(probe.of_each_contrast(domain, real)):
                body = bodies_for(probe.bodies[domain], images)
                profile = depth_profile(images, body)
                if float(np.nanstd(profile)) > CLEAR_PROFILE * _std_inside(images, body):
                    self.profiles[domain][number] = profile
        self.seen: dict[str, int] = {}

    @property
    def ordered(self) -> dict[str, bool]:
        """Domain -> whether its real images show an order of tissues."""
        return {domain: bool(profiles) for domain, profiles in self.profiles.items()}

    @property
    def raised(self) -> bool:
        """Whether something is wrong at present."""
        return any(count >= PERSISTENT for count in self.seen.values())

    def observe(self, step: int, translated: dict[str, Tensor]) -> dict[str, float]:
        """Look at translations, (N, C, *spatial) in [-1, 1] by "a" and "b", the domain they are in.

        Returns:
            What was measured, by name.
        """
        measured = {}
        for target, images in translated.items():
            source = "a" if target == "b" else "b"
            direction = f"{source}{target}"
            body = self.probe.bodies[source]
            ratio = spread_ratio(images, self.probe.real[source], body)
            measured[f"spread_{direction}"] = ratio
            self._note(
                f"collapse_{direction}",
                ratio < COLLAPSED,
                step,
                f"translations {direction} of different patches differ by {100 * ratio:.2g} % of what the patches "
                "differ by: the generator hardly depends on its input any more",
                "train again with another seed, a higher objective.cycle_weight, or a lower training.learning_rate",
            )
            if not self.profiles[target]:
                continue
            parts = self.probe.of_each_contrast(target, images)
            order = min(
                profile_correlation(depth_profile(parts[number], bodies_for(body, parts[number])), known)
                for number, known in self.profiles[target].items()
            )
            measured[f"order_{direction}"] = order
            self._note(
                f"inversion_{direction}",
                order < INVERTED,
                step,
                f"in translations {direction} the brightness at each depth under the body's surface runs against that "
                f"of real images (correlation {order:.2f}): bright and dark tissues are probably swapped",
                "train again with another seed, preparation.mr_inverted as the default has it, patches.matching, or a "
                "structure loss (mask_consistency, gradient_correlation)",
            )
        return measured

    def _note(self, name: str, wrong: bool, step: int, saw: str, remedy: str) -> None:
        self.seen[name] = self.seen.get(name, 0) + 1 if wrong else 0
        if self.seen[name] == PERSISTENT:
            self.report(
                step,
                name.split("_")[0],
                Remark(
                    f"{saw}. That was so in {PERSISTENT} validations in a row.",
                    "No checkpoint is taken for the best while it lasts; the training goes on.",
                    f"Look at the pictures; if it stays, {remedy}.",
                ),
            )

    def state_dict(self) -> dict[str, Any]:
        return {"seen": dict(self.seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = {str(name): int(count) for name, count in state["seen"].items()}


def spread_ratio(outputs: Tensor, inputs: Tensor, bodies: Tensor) -> float:
    """How much outputs differ from each other, relative to how much the inputs do. 0 if all outputs are the same.

    The spread is the root of the mean over voxels of the variance over the patches where the voxel is body; so the
    outline, which the networks are given, does not count.

    Args:
        outputs, inputs: (N, C, *spatial) with the same N; channels may differ by whole contrasts.
        bodies: (N, C, *spatial), boolean.

    Returns:
        0 or more; 1 where no voxel is body in two patches.
    """
    spread = []
    for images in (outputs, inputs):
        inside = bodies_for(bodies, images).flatten(1).float()
        count = inside.sum(dim=0)
        common = count >= 2
        if not bool(common.any()):
            return 1.0  # nothing to compare
        values = images.float().flatten(1)
        mean = (values * inside).sum(dim=0) / count.clamp_min(1)
        squares = ((values - mean).square() * inside).sum(dim=0)
        spread.append((squares[common].sum() / count[common].sum()).sqrt())
    return float(spread[0] / spread[1].clamp_min(1e-6))


def depth_profile(images: Tensor, bodies: Tensor) -> npt.NDArray[np.float64]:
    """Mean brightness in `DEPTHS` shells of the body, from its surface (0) to its middle; nan for an empty shell.

    The depth of a voxel is its Euclidean distance from outside the body, as a share of the largest in its patch.

    Args:
        images: (N, C, *spatial), of which the mean over the channels is taken.
        bodies: (N, C, *spatial), boolean, of which the middle channel is taken.
    """
    sums, counts = np.zeros(DEPTHS), np.zeros(DEPTHS)
    for image, body in zip(images.float().mean(dim=1).cpu().numpy(), bodies[:, bodies.shape[1] // 2], strict=True):
        inside = np.pad(body.cpu().numpy(), 1)  # beyond the patch is outside, too
        depth = ndimage.distance_transform_edt(inside)[tuple(slice(1, -1) for _ in inside.shape)]
        where = depth > 0
        if not where.any():
            continue
        shell = np.minimum((depth[where] / depth.max() * DEPTHS).astype(int), DEPTHS - 1)
        sums += np.bincount(shell, weights=image[where], minlength=DEPTHS)
        counts += np.bincount(shell, minlength=DEPTHS)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def profile_correlation(one: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray) -> float:
    """Pearson's correlation of two profiles over the shells that both have; 0 where one of them is constant."""
    x, y = np.asarray(one, float), np.asarray(other, float)
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both] - x[both].mean(), y[both] - y[both].mean()
    norm = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum() / norm) if norm > 1e-12 else 0.0


def warn(step: int, guard: str, remark: Remark) -> None:
    """A `Report` that warns."""
    warnings.warn(f"step {step}: {guard}: {remark}", stacklevel=2)


def silent(step: int, guard: str, remark: Remark) -> None:
    """A `Report` that does nothing, for processes other than the first."""


def _std_inside(images: Tensor, bodies: Tensor) -> float:
    return float(images.float()[bodies].std()) if bool(bodies.any()) else 0.0
