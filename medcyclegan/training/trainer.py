"""The loop: an ignite engine whose iteration is one step of an objective."""

from __future__ import annotations

import copy
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

import torch
from ignite.engine import Events
from monai.engines import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medcyclegan.training.guards import guarded_step
from medcyclegan.training.objectives import Images, Losses, Objective, at_step
from medcyclegan.training.schedules import Schedule


def bf16_is_safe(device: torch.device) -> bool:
    """True where bfloat16 is computed by the hardware; elsewhere it is emulated and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # torch has no public question for this; where the private ones are gone, float32 is the safe answer.
        questions = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
        return any(question is not None and question() for question in questions)
    return False


class Stateful(Protocol):
    """Something around the loop whose state belongs to the snapshot: plain data and tensors on the CPU."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class ExponentialMovingAverage:
    """Averaged copies of networks, which translate better than the last weights of an adversarial game.

    average <- d average + (1 - d) weights with d = min(decay, (1 + n) / (10 + n)) at step n, so that the first steps,
    whose weights are still random, are soon forgotten.

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


class CycleGANTrainer(Trainer):
    """Runs an objective for a number of steps: generators first, then discriminators, then the averages.

    Every MONAI and ignite handler can be attached. One iteration is one step, and the whole training is one epoch.
    `engine.state.output` holds the weighted losses as detached tensors, and so do `engine.losses` and `engine.images`,
    those and the images of the last whole step. Updates whose losses or gradients are not finite are left out on the
    device; `engine.finite` tells of the last step, as tensors.

    Attributes:
        best: {"step", "score"} of the best validation so far, None before the first.
        companions: name -> what else belongs to the snapshot, such as a guard; add to it before `restore`.

    Args:
        device: where the networks compute; the objective's networks are moved there.
        objective: what is minimized.
        loader: batches {"a": (B, C, *spatial), "b": ...} from the first step that is still to do.
        steps: length of the whole training.
        learning_rate, betas: of Adam.
        learning_rate_discriminator: of the discriminators' Adam; None: the same (with another one it is the two
            time-scale update rule of Heusel et al. 2017).
        schedule: how the rates change; None: constant, and linear decay over the second half of the steps.
        gradient_clip: largest norm of the gradient of all generators, and of all discriminators; None: no limit.
        ema_decay: of the averaged generators.
        bf16: compute convolutions in bfloat16; weights, losses and the last layer stay float32.
        train_handlers: ignite handlers.
    """

    def __init__(
        self,
        *,
        device: torch.device,
        objective: Objective,
        loader: DataLoader[dict[str, Tensor]],
        steps: int,
        learning_rate: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        learning_rate_discriminator: float | None = None,
        schedule: Schedule | None = None,
        gradient_clip: float | None = None,
        ema_decay: float = 0.999,
        bf16: bool = False,
        train_handlers: Sequence[Any] = (),
    ) -> None:
        self.objective = objective
        self.bf16 = bf16
        self.images: Images = {}
        self.losses: Losses = {}
        self.finite: Losses = {}
        self.interrupted = False
        self.best: dict[str, Any] | None = None
        self.schedule = schedule or Schedule(steps=steps)
        self.gradient_clip = gradient_clip
        self.companions: dict[str, Stateful] = {"schedule": self.schedule}
        networks = objective.networks.to(device)
        self.optimizers = {
            role: torch.optim.Adam(
                [p for name in names for p in networks[name].parameters()],
                lr=rate,
                betas=betas,
                fused=device.type in ("cpu", "cuda"),
            )
            for role, names, rate in (
                ("generators", objective.generators, learning_rate),
                ("discriminators", objective.discriminators, learning_rate_discriminator or learning_rate),
            )
        }
        self.schedulers = {
            role: torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule.factor)
            for role, optimizer in self.optimizers.items()
        }
        translators = [name for name in objective.generators if name in objective.required]  # not the losses' own heads
        self.ema = ExponentialMovingAverage({name: networks[name] for name in translators}, ema_decay)
        super().__init__(
            device=device,
            max_epochs=1,
            data_loader=loader,
            epoch_length=steps,
            non_blocking=True,
            decollate=False,
            handlers=list(train_handlers),
        )
        # Only here: ignite would also stop between counting a step and doing it.
        self.add_event_handler(Events.ITERATION_COMPLETED, self._stop_if_asked)

    def _iteration(self, engine: Any, batchdata: dict[str, Tensor]) -> Losses:
        batch = {name: tensor.to(self.state.device, non_blocking=True) for name, tensor in batchdata.items()}
        autocast = torch.autocast(self.state.device.type, torch.bfloat16, enabled=self.bf16)
        at_step(self.objective, self.state.iteration)
        self.finite = {}

        with self._training("generators"):
            with autocast:
                generator_losses, images = self.objective.generator_losses(batch)
            self._descend("generators", generator_losses)
        self.images = {
            **{f"real_{d}": batch[d] for d in ("a", "b")},
            **{n: i.detach() for n, i in images.items()},
        }
        with self._training("discriminators"):
            with autocast:
                discriminator_losses = self.objective.discriminator_losses(batch, self.images)
            self._descend("discriminators", discriminator_losses)
        self.ema.update(self.state.iteration)
        self.losses = {name: loss.detach() for name, loss in (generator_losses | discriminator_losses).items()}
        return self.losses

    def _stop_if_asked(self, engine: Any) -> None:
        if self.interrupted:
            self.terminate()

    def _descend(self, role: str, losses: Losses) -> None:
        optimizer = self.optimizers[role]
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        self.finite |= guarded_step(optimizer, losses, self.gradient_clip, role)
        self.schedulers[role].step()

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
        stops at once. `interrupted` tells afterwards.
        """
        if self.state.iteration >= self.state.epoch_length:
            return
        with self._stop_signals():
            super().run()

    @contextmanager
    def _stop_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            if self.interrupted:
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
        random: dict[str, Any] = {"cpu": torch.get_rng_state()}
        if self.state.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.state.device)
        return {
            "step": self.state.iteration,
            "networks": {name: network.state_dict() for name, network in self.objective.networks.items()},
            "ema": {name: network.state_dict() for name, network in self.ema.averages.items()},
            "optimizers": {role: optimizer.state_dict() for role, optimizer in self.optimizers.items()},
            "schedulers": {role: {"step": s.last_epoch} for role, s in self.schedulers.items()},
            "objective": self.objective.state_dict(),
            "random": random,
            "best": self.best,
            "companions": {name: companion.state_dict() for name, companion in self.companions.items()},
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go back to where `snapshot` was taken. The loader must begin at its step."""
        # Checkpoints of earlier versions have neither; their guards and scores begin anew.
        self.best = snapshot.get("best")
        for name, state in snapshot.get("companions", {}).items():
            if name in self.companions:
                self.companions[name].load_state_dict(state)
        self._restore_networks(snapshot)
        for role, optimizer in self.optimizers.items():
            scheduler = self.schedulers[role]
            scheduler.last_epoch = snapshot["schedulers"][role]["step"]
            scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
        torch.set_rng_state(snapshot["random"]["cpu"])
        if "cuda" in snapshot["random"] and self.state.device.type == "cuda":
            torch.cuda.set_rng_state(snapshot["random"]["cuda"], self.state.device)
        self.state.iteration = snapshot["step"]

    def roll_back(self, snapshot: dict[str, Any]) -> None:
        """Take networks, averages, optimizers and image pools from `snapshot`; steps, data and rates go on."""
        self._restore_networks(snapshot)
        for role, optimizer in self.optimizers.items():
            for group, rate in zip(optimizer.param_groups, self.schedulers[role].get_last_lr(), strict=True):
                group["lr"] = rate

    def _restore_networks(self, snapshot: dict[str, Any]) -> None:
        for name, state in snapshot["networks"].items():
            self.objective.networks[name].load_state_dict(state)
        for name, state in snapshot["ema"].items():
            self.ema.averages[name].load_state_dict(state)
        for role, optimizer in self.optimizers.items():
            optimizer.load_state_dict(snapshot["optimizers"][role])
        self.objective.load_state_dict(snapshot["objective"], self.state.device)
