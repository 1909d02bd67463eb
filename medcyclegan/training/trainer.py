"""The loop: an ignite engine whose iteration is one step of an objective."""

from __future__ import annotations

import copy
import random
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from ignite.engine import Events
from monai.engines import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medcyclegan import ranks
from medcyclegan.networks.cpu import accelerate
from medcyclegan.training.checkpoint import using
from medcyclegan.training.finite import guarded_step
from medcyclegan.training.gradients import RoleGradients
from medcyclegan.training.objectives import Images, Losses, Objective, at_step
from medcyclegan.training.schedules import Schedule


def bf16_is_safe(device: torch.device) -> bool:
    """True where bfloat16 is computed by the hardware; elsewhere it is emulated and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # torch has no public function for this; without the private ones, float32 is the safe answer.
        questions = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
        return any(question is not None and question() for question in questions)
    return False


def _laid_out_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """The same values in the parameter's memory format.

    Fused optimizers ignore strides: a moment in another memory format than its weight would silently be applied to
    other elements.
    """
    if tensor.stride() == parameter.stride():
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)


class Stateful(Protocol):
    """An object whose state belongs to the snapshot: plain data and tensors on the CPU."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class ExponentialMovingAverage:
    """Averaged copies of networks, which translate better than the last weights of adversarial training.

    average <- d average + (1 - d) weights with d = min(decay, (1 + n) / (10 + n)) at step n, so that the first steps,
    whose weights are still random, soon fade. Buffers, such as the running statistics of a batch norm, are
    means already or cannot be averaged: they are copied at every update.

    Args:
        networks: name -> network to follow.
        decay: in [0, 1); 0 follows the weights exactly.
    """

    def __init__(self, networks: dict[str, nn.Module], decay: float) -> None:
        self.decay = decay
        self.sources = networks
        self.averages = {
            name: copy.deepcopy(network).eval().requires_grad_(False) for name, network in networks.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, network in self.sources.items():
            torch._foreach_lerp_(list(self.averages[name].parameters()), list(network.parameters()), weight)
            for average, buffer in zip(self.averages[name].buffers(), network.buffers(), strict=True):
                average.copy_(buffer)


@dataclass(frozen=True)
class Optimization:
    """How the weights are updated.

    Attributes:
        learning_rate, betas: of Adam.
        learning_rate_discriminator: of the discriminators' Adam; None: the same (with another one it is the two
            time-scale update rule of Heusel et al. 2017).
        gradient_clip: largest norm of the gradient of all generators, and of all discriminators; None: no limit.
        ema_decay: of the averaged generators.
        accumulate: micro-batches that a batch is split into; their gradients add up to one step of the optimizer.
        bf16: compute convolutions in bfloat16; weights, losses and the last layer stay float32.
    """

    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    learning_rate_discriminator: float | None = None
    gradient_clip: float | None = None
    ema_decay: float = 0.999
    accumulate: int = 1
    bf16: bool = False


class TranslationTrainer(Trainer):
    """Runs an objective for a number of steps: generators first, then discriminators, then the averages.

    Every MONAI and ignite handler can be attached. One iteration is one step, and the whole training is one epoch.
    `engine.state.output` holds the weighted losses as detached tensors, and so do `engine.losses` and `engine.images`,
    those and the images of the last whole step. Updates whose losses or gradients are not finite are left out on the
    device; `engine.finite` says which of the last step were finite, as tensors. Within `ranks.joined` the processes
    train together: gradients and losses are means over all of them, images are those of this process.

    Attributes:
        best: {"step", "score"} of the best validation so far, None before the first.
        companions: name -> what else belongs to the snapshot, such as a guard; add to it before `restore`.

    Args:
        device: where the networks compute; the objective's networks are moved there.
        objective: what is minimized.
        loader: batches {"a": (B, C, *spatial), "b": ...} of this process from the first step that is still to do.
        schedule: how many steps there are, and how the learning rates change over them.
        optimization: how the weights are updated.
        train_handlers: ignite handlers.
    """

    def __init__(
        self,
        *,
        device: torch.device,
        objective: Objective,
        loader: DataLoader[dict[str, Tensor]],
        schedule: Schedule,
        optimization: Optimization | None = None,
        train_handlers: Sequence[Any] = (),
    ) -> None:
        self.objective = objective
        self.optimization = chosen = optimization or Optimization()
        self.images: Images = {}
        self.losses: Losses = {}
        self.finite: Losses = {}
        self.interrupted = False
        self.best: dict[str, Any] | None = None
        self.schedule = schedule
        self.companions: dict[str, Stateful] = {"schedule": schedule}
        networks = objective.networks.to(device)
        if device.type == "cpu":
            accelerate(networks)
        self.optimizers = {
            role: torch.optim.Adam(
                [p for name in names for p in networks[name].parameters()],
                lr=rate,
                betas=chosen.betas,
                fused=device.type in ("cpu", "cuda"),
            )
            for role, names, rate in (
                ("generators", objective.generators, chosen.learning_rate),
                (
                    "discriminators",
                    objective.discriminators,
                    chosen.learning_rate_discriminator or chosen.learning_rate,
                ),
            )
        }
        self.schedulers = {
            role: torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor)
            for role, optimizer in self.optimizers.items()
        }
        self.gradients = {role: RoleGradients(objective, role, device, chosen.bf16) for role in self.optimizers}
        translators = [name for name in objective.generators if name in objective.required]  # not the losses' own heads
        self.ema = ExponentialMovingAverage({name: networks[name] for name in translators}, chosen.ema_decay)
        super().__init__(
            device=device,
            max_epochs=1,
            data_loader=loader,
            epoch_length=schedule.steps,
            non_blocking=True,
            decollate=False,
            handlers=list(train_handlers),
        )

    def _iteration(self, engine: Any, batchdata: dict[str, Tensor]) -> Losses:
        batch = {name: tensor.to(self.state.device, non_blocking=True) for name, tensor in batchdata.items()}
        at_step(self.objective, self.state.iteration)
        before = [buffer.clone() for buffer in self.objective.networks.buffers()]
        micro_batches = [
            dict(zip(batch, tensors, strict=True))
            for tensors in zip(*(tensor.chunk(self.optimization.accumulate) for tensor in batch.values()), strict=True)
        ]
        share = 1 / len(micro_batches)
        images = [{f"real_{d}": micro_batch[d] for d in ("a", "b")} for micro_batch in micro_batches]
        self.losses, self.finite = {}, {}
        for role, optimizer in self.optimizers.items():
            optimizer.zero_grad(set_to_none=True)
            totals: Losses = {}
            with self._training(role):
                for micro_batch, known in zip(micro_batches, images, strict=True):
                    last = micro_batch is micro_batches[-1]
                    losses, made = self.gradients[role].add(micro_batch, known, share, last)
                    known |= made
                    for name, loss in losses.items():
                        mean = loss / len(micro_batches)
                        totals[name] = totals[name] + mean if name in totals else mean
            totals = _mean_over_processes(totals)
            self.finite |= guarded_step(optimizer, totals, self.optimization.gradient_clip, role)
            self.schedulers[role].step()
            self.losses |= totals
        self._settle_buffers(before)
        self.ema.update(self.state.iteration)
        self.images = {name: torch.cat([known[name] for known in images]) for name in images[0]}
        return self.losses

    @torch.no_grad()
    def _settle_buffers(self, before: Sequence[Tensor]) -> None:
        """Average running statistics over the processes; restore them if the step is left out.

        A forward pass writes them, before anyone knows whether the step is good, and a value that is not finite would
        stay in them for ever.
        """
        buffers = list(self.objective.networks.buffers())
        if not buffers:
            return
        if ranks.rank_and_world()[1] > 1:
            for buffer in buffers:
                if buffer.is_floating_point():
                    buffer.copy_(ranks.mean(buffer))
        pairs = list(zip(buffers, before, strict=True))
        # A constant may be infinite, as in attention masks; a value that has become infinite may not.
        sound = [(torch.isfinite(new) | ~torch.isfinite(old)).all() for new, old in pairs]
        good = torch.stack([*self.finite.values(), *sound]).all()
        for new, old in pairs:
            new.copy_(torch.where(good, new, old))

    def _agree_to_stop(self, engine: Any) -> None:
        """Stop all processes if one was asked to; the others wait here for the one that writes."""
        wanted = ranks.maximum(2 if self.interrupted else 1 if self.should_terminate else 0)
        if wanted:
            self.interrupted = wanted == 2
            self.terminate()

    @contextmanager
    def _training(self, role: str) -> Iterator[None]:
        """Let only the networks of one role collect gradients."""
        others = self.objective.discriminators if role == "generators" else self.objective.generators
        frozen = [self.objective.networks[name] for name in others]
        for network in frozen:
            network.requires_grad_(False)
        try:
            yield
        finally:
            for network in frozen:
                network.requires_grad_(True)

    def run(self) -> None:  # type: ignore[override]  # as MONAI's own trainers
        """Train until the last step or an interruption.

        Ctrl-C (SIGINT) and SIGTERM let the current step finish, so that what is saved is a whole step; a second Ctrl-C
        stops at once, unless several processes train together. `interrupted` is then True.
        """
        if self.state.iteration >= self.state.epoch_length:
            return
        # Only after a step: ignite would also stop between counting a step and doing it. Attached last, because the
        # first process's other handlers write, and the others must not run ahead into a step that it is not in.
        if not self.has_event_handler(self._agree_to_stop):
            self.add_event_handler(Events.ITERATION_COMPLETED, self._agree_to_stop)
        with self._stop_signals():
            super().run()

    @contextmanager
    def _stop_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            # torchrun passes a signal on that its processes have got already; it ends them itself if they take long.
            if self.interrupted and ranks.rank_and_world()[1] == 1:
                raise KeyboardInterrupt
            self.interrupted = True

        previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def snapshot(self) -> dict[str, Any]:
        """Everything from which training goes on bit for bit, as tensors and plain data."""
        states: dict[str, Any] = {"cpu": torch.get_rng_state(), "python": random.getstate()}
        _, key, *rest = np.random.get_state()  # noqa: NPY002  the global one is what parts from elsewhere use
        states["numpy"] = (torch.from_numpy(np.array(key, dtype=np.int64)), *rest)
        if self.state.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.state.device)
        return {
            "step": self.state.iteration,
            "networks": {name: network.state_dict() for name, network in self.objective.networks.items()},
            "ema": {name: network.state_dict() for name, network in self.ema.averages.items()},
            "optimizers": {role: optimizer.state_dict() for role, optimizer in self.optimizers.items()},
            "schedulers": {role: {"step": s.last_epoch} for role, s in self.schedulers.items()},
            "objective": self.objective.state_dict(),
            "random": states,
            "best": self.best,
            "companions": {name: companion.state_dict() for name, companion in self.companions.items()},
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go back to where `snapshot` was taken. The loader must begin at its step.

        Settings of the optimizers and schedules stay those of this trainer.
        """
        self.best = snapshot["best"]
        for name, state in snapshot["companions"].items():
            if name in self.companions:
                with using(f"companions.{name}"):
                    self.companions[name].load_state_dict(state)
        self._restore_networks(snapshot)
        for role, optimizer in self.optimizers.items():
            scheduler = self.schedulers[role]
            with using(f"schedulers.{role}"):
                scheduler.last_epoch = int(snapshot["schedulers"][role]["step"])
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * scheduler.lr_lambdas[0](scheduler.last_epoch)
            scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
        with using("random"):
            self._restore_random(snapshot["random"])
        self.state.iteration = snapshot["step"]

    def _restore_random(self, states: dict[str, Any]) -> None:
        torch.set_rng_state(states["cpu"])
        version, key, gauss = states["python"]
        random.setstate((version, tuple(key), gauss))
        key, *rest = states["numpy"]
        np.random.set_state(("MT19937", key.numpy().astype(np.uint32), *rest))  # noqa: NPY002
        if "cuda" in states and self.state.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], self.state.device)

    def roll_back(self, snapshot: dict[str, Any]) -> None:
        """Take networks, averages, optimizers and image pools from `snapshot`; steps, data and rates go on."""
        self._restore_networks(snapshot)

    def _restore_networks(self, snapshot: dict[str, Any]) -> None:
        for name, network in self.objective.networks.items():
            with using(f"networks.{name}"):
                network.load_state_dict(snapshot["networks"][name])
        for name, average in self.ema.averages.items():
            with using(f"ema.{name}"):
                average.load_state_dict(snapshot["ema"][name])
        for role, optimizer in self.optimizers.items():
            settings = [{key: group[key] for key in group if key != "params"} for group in optimizer.param_groups]
            with using(f"optimizers.{role}"):
                optimizer.load_state_dict(snapshot["optimizers"][role])
                for group, own in zip(optimizer.param_groups, settings, strict=True):
                    group.update(own)
                for parameter, moments in optimizer.state.items():
                    for name, moment in moments.items():
                        # A fused optimizer goes through memory and does not look at shapes.
                        if name != "step" and moment.shape != parameter.shape:
                            raise ValueError(
                                f"{name} has the shape {(*moment.shape,)}, its weight {(*parameter.shape,)}"
                            )
                        if not bool(torch.isfinite(moment).all()):
                            raise ValueError(f"{name} holds values that are not finite")
                        if name != "step":  # may have been saved in another memory format
                            moments[name] = _laid_out_like(parameter, moment)
        with using("objective"):
            self.objective.load_state_dict(snapshot["objective"], self.state.device)


def _mean_over_processes(losses: Losses) -> Losses:
    if ranks.rank_and_world()[1] == 1:
        return losses
    means = ranks.mean(torch.stack([loss.double() for loss in losses.values()]))
    return dict(zip(losses, means.unbind(), strict=True))
