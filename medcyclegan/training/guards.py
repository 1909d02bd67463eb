"""What notices that a training goes wrong: numbers that are not finite, and the ways in which adversarial games fail.

A step is *bad* when a loss or the gradient of it is not finite. Its update is left out on the device, without the host
waiting; what happened is read together with the losses, every `log_every` steps. The other guards look at the
discriminators' losses and, at every validation, at translations of fixed patches; they warn and keep such a state from
becoming the best checkpoint, but do not stop the training, since a run may recover.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ignite.engine import Engine, Events
from scipy import ndimage
from torch import Tensor, nn

from medcyclegan.errors import InputError
from medcyclegan.losses.adversarial import AdversarialLoss

IN_A_ROW = 10  # bad steps after which the training goes back to its last checkpoint
ROLLBACKS = 3  # after which it stops
SATURATED = 0.02  # share of an undecided discriminator's loss below which it has won
SATURATION_STEPS = 500  # for which it must have won
COLLAPSED = 0.05  # of the differences between inputs that are left between outputs
INVERTED = -0.3  # correlation of the order of tissues with depth
PERSISTENT = 2  # validations in a row for which collapse or inversion must be seen
DEPTHS = 12  # shells between the body's surface and its middle
CLEAR_PROFILE = 0.05  # standard deviation over depths below which, as a share of that inside the body, no order shows

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Remark:
    """What a guard says, in whole sentences.

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


def guarded_step(
    optimizer: torch.optim.Optimizer,
    losses: dict[str, Tensor],
    gradient_clip: float | None = None,
    role: str = "networks",
) -> dict[str, Tensor]:
    """Update the weights if every loss and the gradient is finite; leave them and the optimizer's state alone if not.

    Args:
        optimizer: holds the parameters with their gradients.
        losses: scalars, by name.
        gradient_clip: largest norm of the gradient of all parameters together; larger ones are scaled down to it.
        role: what the optimizer trains, for the names of what is returned.

    Returns:
        Name of each loss and of the gradient -> whether it is finite, boolean scalars on the device.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    finite = {name: torch.isfinite(loss.detach()).all() for name, loss in losses.items()}
    finite[f"the gradient of the {role}"] = torch.isfinite(norm)
    bad = torch.logical_not(torch.stack(list(finite.values())).all())
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # All ranks leave the step out and count it, or their weights would part.
        anywhere = bad.to(torch.int32)
        torch.distributed.all_reduce(anywhere, op=torch.distributed.ReduceOp.MAX)
        finite[f"the {role} of another process"] = torch.logical_or(bad, anywhere == 0)
        bad = anywhere > 0
    if gradient_clip is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip, norm)
    if optimizer.defaults.get("fused"):
        # As torch.amp.GradScaler does it: the fused kernels leave everything alone where `found_inf` is 1.
        optimizer.grad_scale, optimizer.found_inf = None, bad.to(torch.float32)  # type: ignore[attr-defined]
        optimizer.step()
    elif not bool(bad):
        optimizer.step()
    return finite


def weights_are_finite(modules: Iterable[nn.Module]) -> bool:
    """Whether every parameter is; the host waits for the device. The trainer keeps buffers finite."""
    parameters = [p.detach() for module in modules for p in module.parameters()]
    return not parameters or bool(torch.stack([torch.isfinite(p).all() for p in parameters]).all())


class FiniteGuard:
    """Handles bad steps: left out by `guarded_step`, then back to the last checkpoint, then the end.

    After `IN_A_ROW` bad steps, or as soon as weights are not finite, the networks, averages, optimizers and image pools
    go back to the last checkpoint, while steps, data and learning rate go on. The training ends when there is no
    checkpoint, when that happens again before another checkpoint was written, or after `ROLLBACKS` of it.

    Args:
        every: steps between looks.
        checkpoint: gives the last checkpoint, None if there is none.
        describe: gives the cases and positions that a step was shown.
        report: is told the step, "not finite", and a message.
    """

    def __init__(
        self,
        *,
        every: int,
        checkpoint: Callable[[], dict[str, Any] | None],
        describe: Callable[[int], str],
        report: Report,
    ) -> None:
        self.every = every
        self.checkpoint = checkpoint
        self.describe = describe
        self.report = report
        self.pending: deque[tuple[int, list[str], Tensor]] = deque()  # not read yet, on the device
        # Of steps before a resumption. On another device than those, and of as many processes as there were then.
        self.resumed: list[tuple[int, list[str], list[bool]]] = []
        self.in_a_row = 0
        self.skipped = 0
        self.rollbacks = 0
        self.returned_to = -1  # step of the checkpoint that was last gone back to

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        step = engine.state.iteration
        self.pending.append((step, list(engine.finite), torch.stack(list(engine.finite.values()))))
        if step % self.every == 0 or step == engine.state.epoch_length:
            self._look(engine, step)

    def _look(self, engine: Any, step: int) -> None:
        bad: list[tuple[int, list[str]]] = []
        flags = torch.stack([finite for *_, finite in self.pending]).tolist()  # one transfer
        read = [(seen, names, finite) for (seen, names, _), finite in zip(self.pending, flags, strict=True)]
        for seen, names, finite in (*self.resumed, *read):
            wrong = [name for name, fine in zip(names, finite, strict=True) if not fine]
            self.in_a_row = self.in_a_row + 1 if wrong else 0
            if wrong:
                bad.append((seen, wrong))
        self.resumed.clear()
        self.pending.clear()
        self.skipped += len(bad)
        if not bad:
            return
        first, wrong = bad[0]
        saw = f"{', '.join(wrong)} not finite at step {first}, on {self.describe(first)}"
        if len(bad) > 1:
            saw += f", and at {len(bad) - 1} more of the last {self.every} steps"
        broken = not weights_are_finite(_modules(engine))
        if broken or self.in_a_row >= IN_A_ROW:
            why = "the weights are not finite" if broken else f"{self.in_a_row} bad steps came in a row"
            self._return(engine, step, saw, why)
        else:
            did = "The updates were left out, the weights are as before."
            remedy = "If it is the same case again and again, look at that volume."
            self.report(step, "not finite", Remark(f"{saw}.", did, remedy))

    def _return(self, engine: Any, step: int, saw: str, why: str) -> None:
        remedy = (
            "Look at the case named above, or train again with training.precision=float32, a lower "
            "training.learning_rate, or training.gradient_clip=1."
        )
        saved = self.checkpoint()
        if saved is None:
            raise InputError(f"the training diverged: {saw}; {why}, and there is no checkpoint to go back to.", remedy)
        if saved["step"] <= self.returned_to or self.rollbacks >= ROLLBACKS:
            raise InputError(
                f"the training diverged: {saw}; {why}, again after going back to the checkpoint of step "
                f"{self.returned_to}. The checkpoint of step {saved['step']} is whole.",
                remedy,
            )
        engine.roll_back(saved)
        self.in_a_row, self.returned_to, self.rollbacks = 0, saved["step"], self.rollbacks + 1
        self.report(
            step,
            "not finite",
            Remark(
                f"{saw}; {why}.",
                f"The networks went back to the checkpoint of step {saved['step']} and go on from there with new data. "
                "If it happens again the training stops.",
                remedy,
            ),
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "in_a_row": self.in_a_row,
            "skipped": self.skipped,
            "rollbacks": self.rollbacks,
            "returned_to": self.returned_to,
            "pending": [*self.resumed, *((step, names, finite.tolist()) for step, names, finite in self.pending)],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.in_a_row, self.skipped = int(state["in_a_row"]), int(state["skipped"])
        self.rollbacks, self.returned_to = int(state["rollbacks"]), int(state["returned_to"])
        self.resumed = [(int(step), list(names), [bool(f) for f in finite]) for step, names, finite in state["pending"]]
        if any(len(names) != len(finite) for _, names, finite in self.resumed):
            raise ValueError("pending has other numbers of names and flags")
        self.pending.clear()


def undecided_loss(loss: AdversarialLoss) -> float | None:
    """The least loss of a discriminator that gives real and fake the same logit; None if there is no such bound.

    For example 1/4 for least squares (logit 1/2), ln 2 for binary cross-entropy and 2 for the hinge loss (logit 0).
    """
    logits = torch.linspace(-2, 2, 401).view(-1, 1, 1, 1)
    least = min(float(loss.discriminator(one, one)) for one in logits.split(1))
    return least if least > 0 else None


class SaturationGuard:
    """Warns when a discriminator has told real and fake apart almost perfectly for `SATURATION_STEPS` steps on end.

    Its gradient then hardly says any more what would look real. It is told once, and again only after it has recovered.

    Args:
        undecided: see `undecided_loss`; a loss below `SATURATED` times that means that it has won.
        report: is told the step, "saturation", and a message.
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
    the opposite in the translations: the correlation of the two `depth_profile`s is below `INVERTED`. In a head that is
    the order of skin, bone and brain. Nothing is said where real images show no order.

    Either must be seen in `PERSISTENT` validations in a row before anything is said, and is said once.

    Args:
        real: domain -> real patches (N, C, *spatial) in [-1, 1].
        bodies: domain -> where they show the body, boolean, of the same shape.
        report: is told the step, "collapse" or "inversion", and a message.
        contrasts: domain -> how many the channels of that domain are, one after the other; 1 where it is left out. The
            order of tissues is looked at in each, and the worst counts.
    """

    def __init__(
        self,
        real: dict[str, Tensor],
        bodies: dict[str, Tensor],
        report: Report,
        contrasts: Mapping[str, int] | None = None,
    ) -> None:
        self.real = real
        self.bodies = bodies
        self.report = report
        self.contrasts = dict(contrasts or {})
        # Per domain, the profile of every contrast that shows an order.
        self.profiles: dict[str, dict[int, npt.NDArray[np.float64]]] = {}
        for domain in real:
            self.profiles[domain] = {}
            for number, images in enumerate(self._each(domain, real[domain])):
                body = bodies_for(bodies[domain], images)
                profile = depth_profile(images, body)
                if float(np.nanstd(profile)) > CLEAR_PROFILE * _std_inside(images, body):
                    self.profiles[domain][number] = profile
        self.seen: dict[str, int] = {}

    def _each(self, domain: str, images: Tensor) -> tuple[Tensor, ...]:
        """The contrasts of (N, C, *spatial), in order."""
        return images.chunk(self.contrasts.get(domain, 1), dim=1)

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
            ratio = spread_ratio(images, self.real[source], self.bodies[source])
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
            parts = self._each(target, images)
            order = min(
                profile_correlation(depth_profile(parts[number], bodies_for(self.bodies[source], parts[number])), known)
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


def bodies_for(bodies: Tensor, images: Tensor) -> Tensor:
    """Where patches show the body, for images of the same places with another number of contrasts.

    Args:
        bodies: (N, C, *spatial), boolean; the same for every contrast.
        images: (N, C', *spatial).

    Returns:
        (N, C', *spatial), boolean.
    """
    wanted = images.shape[1]
    if bodies.shape[1] < wanted:
        bodies = torch.cat([bodies] * -(-wanted // bodies.shape[1]), dim=1)
    return bodies[:, :wanted]


def spread_ratio(outputs: Tensor, inputs: Tensor, bodies: Tensor) -> float:
    """How much outputs differ from each other, relative to how much the inputs do. 0 if all outputs are the same.

    The spread is the root of the mean, over voxels, of the variance over those patches in which the voxel is body; so
    that the outline, which the networks are given, does not count.

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
    """A `Report` of a process that leaves speaking to another."""


def _std_inside(images: Tensor, bodies: Tensor) -> float:
    return float(images.float()[bodies].std()) if bool(bodies.any()) else 0.0


def _modules(engine: Any) -> list[nn.Module]:
    return [engine.objective.networks, *engine.ema.averages.values()]
