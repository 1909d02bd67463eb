"""A training step against the reference's."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medcyclegan import factory
from medcyclegan.benchmark.experiments import bare_trainer, checked_device, plain_step, random_batch
from medcyclegan.benchmark.plain import PlainStep, convolutions, plain_networks
from medcyclegan.benchmark.timing import device_name, interleaved, now, product_ceiling
from medcyclegan.config import Experiment, parse
from medcyclegan.factory.devices import wants_bf16


def benchmark_train(
    experiment: Experiment,
    *,
    size: Sequence[int],
    batch: int = 1,
    steps: int = 10,
    device: str = "auto",
    profile: bool = False,
    memory: bool = True,
) -> dict[str, Any]:
    """Time our training step and the reference, in turn.

    Args:
        experiment: networks, losses and precision.
        size: voxels of a patch.
        batch: patches of each domain per step.
        steps: of each, at least 1; the medians are of these, after `WARM_UP` more.
        device: as in `factory.choose_device`.
        profile: add a table of where our time goes.
        memory: measure the peak memory too, each in a process of its own.

    Returns:
        Plain data; `speedup` is images per second, ours over the reference's.

    Raises:
        InputError: if the experiment is not a CycleGAN, or the size does not fit.
    """
    where = checked_device(experiment, size, batch, steps, device)
    factory.require_patch_size(factory.make_objective(experiment), size)
    bf16 = wants_bf16(experiment.training.precision, where)
    data = random_batch(experiment, size, batch, where)
    trainer, reference = bare_trainer(experiment, where, bf16), plain_step(experiment, where)
    runs: dict[str, Callable[[], Any]] = {
        "ours": lambda: trainer._iteration(trainer, data),
        "reference": lambda: reference(data),
    }
    seconds, busy = interleaved(runs, steps, where)
    operations = _operations(experiment, where, bf16, data)
    ceiling = product_ceiling(where, torch.bfloat16 if bf16 else torch.float32)
    result: dict[str, Any] = {
        "verb": "train",
        "device": device_name(where),
        "cores": torch.get_num_threads(),
        "size": list(size),
        "batch": batch,
        "steps": steps,
        "precision": "bf16" if bf16 else "float32",
        "speedup": round(seconds["reference"] / seconds["ours"], 3),
    }
    for name, each in seconds.items():
        result[name] = {"seconds": each, "steps_per_s": 1 / each, "images_per_s": batch / each}
        result[name]["cpu_seconds"] = busy[name]  # of all cores: what a busy machine disturbs least
    result["ours"] |= {
        "flop": operations,
        "flop_per_s": operations / seconds["ours"],
        "ceiling_flop_per_s": ceiling,
        "share_of_ceiling": operations / seconds["ours"] / ceiling,
    }
    result["agreement"] = {"float32": agreement(experiment, data, where, bf16=False)}
    if bf16:
        result["agreement"]["bf16"] = agreement(experiment, data, where, bf16=True)
    if memory:
        for name in seconds:
            result[name]["peak_memory_gib"] = _peak_in_process(name, experiment, size, batch, str(where))
    if profile:
        result["profile"] = _profile(experiment, where, bf16, data)
    return result


def agreement(experiment: Experiment, data: dict[str, Tensor], device: torch.device, bf16: bool) -> dict[str, float]:
    """How far the first step's losses and gradients are from the reference's on the same weights and batch.

    Returns:
        `loss`: the largest relative difference of a loss; `generators`, `discriminators`: |g - g'| / |g'| over all
        gradients of the role, Euclidean norms, without the biases before instance norms that only the reference has.
    """
    trainer = bare_trainer(experiment, device, bf16)
    twins = plain_networks(trainer.objective.networks, experiment)
    reference = PlainStep(twins.to(device))
    losses = trainer._iteration(trainer, data)
    expected = reference(data)
    found = {"loss": max(abs(float(losses[n]) - float(e)) / abs(float(e)) for n, e in expected.items())}
    for role, names in (("generators", ("gen_ab", "gen_ba")), ("discriminators", ("disc_a", "disc_b"))):
        apart = whole = 0.0
        for name in names:
            pairs = zip(convolutions(trainer.objective.networks[name]), convolutions(twins[name]), strict=True)
            for own, plain in pairs:
                for ours, theirs in ((own.weight, plain.weight), (own.bias, plain.bias)):
                    if ours is not None:
                        apart += float((ours.grad - theirs.grad).double().square().sum())
                        whole += float(theirs.grad.double().square().sum())
        found[role] = (apart / whole) ** 0.5
    return found


def _operations(experiment: Experiment, device: torch.device, bf16: bool, data: dict[str, Tensor]) -> float:
    """Floating-point operations of one of our steps, convolutions and matrix products."""
    from torch.utils.flop_counter import FlopCounterMode

    trainer = bare_trainer(experiment, device, bf16)
    with FlopCounterMode(display=False) as counter:
        trainer._iteration(trainer, data)
    return float(counter.get_total_flops())


def _profile(experiment: Experiment, device: torch.device, bf16: bool, data: dict[str, Tensor]) -> str:
    """A table of our step's time by operation, on one core of a processor."""
    from torch.profiler import ProfilerActivity, profile

    trainer = bare_trainer(experiment, device, bf16)
    trainer._iteration(trainer, data)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        trainer._iteration(trainer, data)
        now(device)
    by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=by, row_limit=20, max_name_column_width=48)


def _peak_in_process(name: str, experiment: Experiment, size: Sequence[int], batch: int, device: str) -> float:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_peak, name, experiment.to_dict(), experiment.allow, tuple(size), batch, device).result()


def _peak(
    name: str, content: dict[str, Any], allow: tuple[str, ...], size: Sequence[int], batch: int, device: str
) -> float:
    """GiB that two steps of "ours" or the "reference" took at most: of a processor beyond what there was before."""
    experiment, where = parse(content, "the benchmark", allow), torch.device(device)
    before = _used(where)
    data = random_batch(experiment, size, batch, where)
    if name == "ours":
        trainer = bare_trainer(experiment, where, wants_bf16(experiment.training.precision, where))
        run: Callable[[], Any] = lambda: trainer._iteration(trainer, data)  # noqa: E731
    else:
        reference = plain_step(experiment, where)
        run = lambda: reference(data)  # noqa: E731
    for _ in range(2):
        run()
    return _used(where) - before


def _used(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**30
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would begin with what the process was that started this one
        (peak,) = (line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return float(peak.split()[1]) / 2**20
    kilobytes = 2**10 if sys.platform == "darwin" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / kilobytes / 2**20
