"""A plan: an experiment built up choice by choice, each with its reason, for a machine."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from medcyclegan import config, factory
from medcyclegan.config import Experiment
from medcyclegan.errors import InputError
from medcyclegan.machine import cores, free_memory

GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """Where a training would run.

    Attributes:
        kind: "cpu" or "cuda".
        name: for people.
        memory: bytes that the training may take.
        bf16: whether bfloat16 is computed by the hardware.
        cores: of the processor.
        device: to measure on; None for a machine that is not this one.
    """

    kind: str
    name: str
    memory: float
    bf16: bool
    cores: int
    device: torch.device | None = None


def this_machine(device: str = "auto") -> Machine:
    """The machine that runs this, with the device of a `--device` argument."""
    where = factory.choose_device(device)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else f"processor with {cores()} cores"
    kind = "cuda" if where.type == "cuda" else "cpu"
    return Machine(kind, name, free_memory(where), factory.bf16_is_safe(where), cores(), where)


def hypothetical_gpu(gibibytes: float) -> Machine:
    """A hypothetical GPU with this memory; bfloat16 is assumed, as on all recent ones."""
    if not math.isfinite(gibibytes) or gibibytes <= 0:
        raise InputError(f"the memory of a GPU is a number of GiB above 0, got {gibibytes}.")
    return Machine("cuda", f"GPU of {gibibytes:g} GiB", gibibytes * GIB, True, cores())


@dataclass
class Plan:
    """An experiment that is built up.

    Attributes:
        purpose: the data and the machine, for people.
        content: the experiment as in its YAML, sections of keys.
        reasons: "section.key" -> why.
        memory: expected, bytes; None if it cannot be predicted.
        step_time: of a training step, measured; None where the machine is not this one.
        warnings: what the user should look at before training.
    """

    purpose: str
    content: dict[str, dict[str, Any]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    memory: float | None = None
    step_time: factory.StepTime | None = None
    warnings: list[str] = field(default_factory=list)

    def choose(self, key: str, value: Any, reason: str) -> None:
        section, name = key.split(".")
        self.content.setdefault(section, {})[name] = value
        self.reasons[key] = reason

    def experiment(self) -> Experiment:
        return config.parse(self.content, "the plan")

    @property
    def seconds(self) -> tuple[float, float, float] | None:
        """Lower end, middle and upper end of the expected time; None where nothing was measured."""
        if self.step_time is None:
            return None
        count = self.content["training"]["steps"]
        return self.step_time.low * count, self.step_time.median * count, self.step_time.high * count


def gib(size: float) -> str:
    """Bytes in words."""
    return f"{size / GIB:.1f} GiB"
