"""Losses and gradients that are not finite: skip the step, then roll back to the last checkpoint, or stop.

A step is *bad* when a loss or the gradient of it is not finite. Its update is left out on the device, without the host
waiting; the flags are read together with the losses, every `log_every` steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from medcyclegan.errors import InputError
from medcyclegan.training.guards import Remark, Report

IN_A_ROW = 10  # bad steps after which the training goes back to its last checkpoint
ROLLBACKS = 3  # after which it stops


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
        # All ranks skip the step and count it, or their weights would diverge.
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


def weights_are_finite(engine: Any) -> bool:
    """Whether every parameter of a trainer's networks and averages is; the host waits for the device.

    The trainer keeps buffers finite.
    """
    modules = (engine.objective.networks, *engine.ema.averages.values())
    parameters = [p.detach() for module in modules for p in module.parameters()]
    return not parameters or bool(torch.stack([torch.isfinite(p).all() for p in parameters]).all())


class FiniteGuard:
    """Handles bad steps: left out by `guarded_step`, then back to the last checkpoint, then the end.

    After `IN_A_ROW` bad steps, or as soon as weights are not finite, the networks, averages, optimizers and image pools
    go back to the last checkpoint, while steps, data and learning rate go on. The training ends when there is no
    checkpoint, when it happens again before the next checkpoint was written, or after `ROLLBACKS` rollbacks.

    Args:
        every: steps between examinations.
        checkpoint: gives the last checkpoint, None if there is none.
        describe: names the cases and positions of a step.
        report: takes the step, "not finite", and a message.
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
        self.returned_to = -1  # step of the checkpoint of the last rollback

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        step = engine.state.iteration
        self.pending.append((step, list(engine.finite), torch.stack(list(engine.finite.values()))))
        if step % self.every == 0 or step == engine.state.epoch_length:
            self._examine(engine, step)

    def _examine(self, engine: Any, step: int) -> None:
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
        broken = not weights_are_finite(engine)
        if broken or self.in_a_row >= IN_A_ROW:
            why = "the weights are not finite" if broken else f"{self.in_a_row} bad steps came in a row"
            self._roll_back(engine, step, saw, why)
        else:
            did = "The updates were left out, the weights are as before."
            remedy = "If it is the same case again and again, look at that volume."
            self.report(step, "not finite", Remark(f"{saw}.", did, remedy))

    def _roll_back(self, engine: Any, step: int, saw: str, why: str) -> None:
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
