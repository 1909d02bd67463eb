"""The loop: an ignite engine whose iteration is one step of an objective."""

from __future__ import annotations

import copy
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medcyclegan.networks.instance_norm import use_channels_last
from medcyclegan.training.lanes import Lanes, laid_out_like
from medcyclegan.training.objectives import Images, Losses, Objective, Part, discriminator_parts, generator_parts


def bf16_is_safe(device: torch.device) -> bool:
    """True where bfloat16 is computed by the hardware; elsewhere it is emulated and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # torch has no public question for this; where the private ones are gone, float32 is the safe answer.
        questions = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
        return any(question is not None and question() for question in questions)
    return False


def linear_decay(step: int, steps: int, decay_start: float) -> float:
    """Factor of the learning rate at `step`: 1, then from the share `decay_start` of the steps linearly to 0."""
    remaining = steps - step
    decaying = steps - int(decay_start * steps)
    return min(1.0, remaining / max(1, decaying))


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
    those and the images of the last whole step.

    Args:
        device: where the networks compute; the objective's networks are moved there.
        objective: what is minimized.
        loader: batches {"a": (B, C, *spatial), "b": ...} from the first step that is still to do.
        steps: length of the whole training.
        learning_rate, betas: of Adam.
        decay_start: share of the steps at constant rate, before its linear decay.
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
        decay_start: float = 0.5,
        ema_decay: float = 0.999,
        bf16: bool = False,
        train_handlers: Sequence[Any] = (),
    ) -> None:
        self.objective = objective
        self.bf16 = bf16
        self.images: Images = {}
        self.losses: Losses = {}
        self.interrupted = False
        networks = objective.networks.to(device)
        if device.type == "cpu":
            for network in networks.values():
                use_channels_last(network)
        self.lanes = Lanes(device, bf16)
        self.optimizers = {
            role: torch.optim.Adam(
                [p for name in names for p in networks[name].parameters()],
                lr=learning_rate,
                betas=betas,
                fused=device.type in ("cpu", "cuda"),
            )
            for role, names in (("generators", objective.generators), ("discriminators", objective.discriminators))
        }
        self.schedulers = {
            role: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: linear_decay(step, steps, decay_start))
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
        generator_losses, images = self._descend("generators", generator_parts(self.objective, batch))
        self.images = {f"real_{d}": batch[d] for d in ("a", "b")} | images
        discriminator_losses, _ = self._descend(
            "discriminators", discriminator_parts(self.objective, batch, self.images)
        )
        self.ema.update(self.state.iteration)
        self.losses = generator_losses | discriminator_losses
        return self.losses

    def _stop_if_asked(self, engine: Any) -> None:
        if self.interrupted:
            self.terminate()

    def _descend(self, role: str, parts: list[Part]) -> tuple[Losses, Images]:
        optimizer = self.optimizers[role]
        optimizer.zero_grad(set_to_none=True)
        with self._training(role):
            losses, images = self.lanes.differentiate(parts, optimizer.param_groups[0]["params"])
        optimizer.step()
        self.schedulers[role].step()
        return losses, images

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
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go back to where `snapshot` was taken. The loader must begin at its step."""
        device = self.state.device
        for name, state in snapshot["networks"].items():
            self.objective.networks[name].load_state_dict(state)
        for name, state in snapshot["ema"].items():
            self.ema.averages[name].load_state_dict(state)
        for role, optimizer in self.optimizers.items():
            optimizer.load_state_dict(snapshot["optimizers"][role])
            for parameter, state in optimizer.state.items():
                for name, moment in state.items():
                    if moment.shape == parameter.shape:  # may have been saved in another memory format
                        state[name] = laid_out_like(parameter, moment)
            scheduler = self.schedulers[role]
            scheduler.last_epoch = snapshot["schedulers"][role]["step"]
            scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
        self.objective.load_state_dict(snapshot["objective"], device)
        torch.set_rng_state(snapshot["random"]["cpu"])
        if "cuda" in snapshot["random"] and device.type == "cuda":
            torch.cuda.set_rng_state(snapshot["random"]["cuda"], device)
        self.state.iteration = snapshot["step"]
