"""How fast this machine trains, converts and reads patches, against a plain reference timed beside it.

The *reference* of training is written as the original code of Zhu et al. 2017 is organized: fake, cycle and identity in
forwards of their own, the discriminators on real and fake in turn, float32, torch's default Adam, convolutions with a
bias before their instance norm, transposed convolutions in the generator, and every operation spread over all cores.
Losses are read only when they are printed, as there. The reference of conversion is MONAI's `SliceInferer`, one slice
at a time in float32, on the same network with the same weights from torch's own modules. Both take their turns within
one run, and medians are compared, so that whatever else the machine does slows both alike.
"""

from __future__ import annotations

import copy
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medcyclegan import build
from medcyclegan.build.networks import lay_out
from medcyclegan.config import Experiment, load, parse
from medcyclegan.errors import InputError
from medcyclegan.networks.discriminators.patchgan import PatchGAN
from medcyclegan.networks.discriminators.windowed import Windowed
from medcyclegan.networks.generators.resnet import ResNetGenerator
from medcyclegan.training.trainer import CycleGANTrainer, bf16_is_safe

WARM_UP = 2  # steps that are not counted
CEILING_SIZE = {"cpu": 1536, "cuda": 8192}  # rows and columns of the products that measure the ceiling
HU_PER_UNIT = 4095 / 2  # of [-1, 1] over the whole CT window

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class PlainStep:
    """One training step of CycleGAN as the original code does it.

    Args:
        networks: `gen_ab`, `gen_ba`, `disc_a`, `disc_b`.
        pool_size: past fakes for the discriminators.
    """

    def __init__(self, networks: nn.ModuleDict, pool_size: int = 50) -> None:
        self.networks = networks
        self.generators = [*networks["gen_ab"].parameters(), *networks["gen_ba"].parameters()]
        self.discriminators = [*networks["disc_a"].parameters(), *networks["disc_b"].parameters()]
        self.optimizers = [
            torch.optim.Adam(parameters, lr=2e-4, betas=(0.5, 0.999))
            for parameters in (self.generators, self.discriminators)
        ]
        self.pools: dict[str, list[Tensor]] = {"a": [], "b": []}
        self.pool_size = pool_size
        self.random = np.random.default_rng(0)

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Train once; the weighted losses by the names of ours."""
        a, b = batch["a"], batch["b"]
        gen_ab, gen_ba, disc_a, disc_b = (self.networks[n] for n in ("gen_ab", "gen_ba", "disc_a", "disc_b"))
        fake_b = gen_ab(a)
        cycle_a = gen_ba(fake_b)
        fake_a = gen_ba(b)
        cycle_b = gen_ab(fake_a)

        self._freeze(True)
        self.optimizers[0].zero_grad()
        losses = {
            "identity_b": 5 * F.l1_loss(gen_ab(b), b),
            "identity_a": 5 * F.l1_loss(gen_ba(a), a),
            "adversarial_ab": _squares(disc_b(fake_b), 1.0),
            "adversarial_ba": _squares(disc_a(fake_a), 1.0),
            "cycle_a": 10 * F.l1_loss(cycle_a, a),
            "cycle_b": 10 * F.l1_loss(cycle_b, b),
        }
        torch.stack(list(losses.values())).sum().backward()
        self.optimizers[0].step()

        self._freeze(False)
        self.optimizers[1].zero_grad()
        for domain, discriminator, real, fake in (("a", disc_a, a, fake_a), ("b", disc_b, b, fake_b)):
            old = self._pooled(domain, fake.detach())
            loss = 0.5 * (_squares(discriminator(real), 1.0) + _squares(discriminator(old), 0.0))
            loss.backward()
            losses[f"discriminator_{domain}"] = loss
        self.optimizers[1].step()
        return {name: loss.detach() for name, loss in losses.items()}

    def _freeze(self, frozen: bool) -> None:
        for parameter in self.discriminators:
            parameter.requires_grad = not frozen

    def _pooled(self, domain: str, fakes: Tensor) -> Tensor:
        pool, answer = self.pools[domain], []
        for fake in fakes:
            if len(pool) < self.pool_size:
                pool.append(fake)
                answer.append(fake)
            elif self.random.random() < 0.5:
                place = int(self.random.integers(self.pool_size))
                answer.append(pool[place].clone())
                pool[place] = fake
            else:
                answer.append(fake)
        return torch.stack(answer)


def _squares(logits: Tensor, target: float) -> Tensor:
    return (logits - target).square().mean()


class _Residual(nn.Module):
    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.body(x)
        return result


def plain_resnet(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    filters: int,
    blocks: int,
    downsamplings: int,
    upsampling: str,
) -> nn.Module:
    """The original generator from torch's own modules; arguments as in `ResNetGenerator`."""
    conv, norm, d = CONV[spatial_dims], NORM[spatial_dims], spatial_dims
    reflect = {2: nn.ReflectionPad2d, 3: nn.ReflectionPad3d}[d]
    layers: list[nn.Module] = [reflect(3), conv(in_channels, filters, 7), norm(filters), nn.ReLU(True)]
    width = filters
    for _ in range(downsamplings):
        layers += [conv(width, 2 * width, 3, 2, 1), norm(2 * width), nn.ReLU(True)]
        width *= 2
    for _ in range(blocks):
        body = [reflect(1), conv(width, width, 3), norm(width), nn.ReLU(True), reflect(1), conv(width, width, 3)]
        layers.append(_Residual(nn.Sequential(*body, norm(width))))
    for _ in range(downsamplings):
        if upsampling == "transposed":
            layers.append(TRANSPOSED[d](width, width // 2, 3, 2, 1, output_padding=1))
        else:
            layers += [nn.Upsample(scale_factor=2, mode="nearest"), reflect(1), conv(width, width // 2, 3)]
        layers += [norm(width // 2), nn.ReLU(True)]
        width //= 2
    return nn.Sequential(*layers, reflect(3), conv(filters, out_channels, 7), nn.Tanh())


def plain_patchgan(spatial_dims: int, in_channels: int, filters: int, layers: int) -> nn.Module:
    """The original discriminator from torch's own modules; arguments as in `PatchGAN`, at least one layer."""
    conv, norm = CONV[spatial_dims], NORM[spatial_dims]
    modules: list[nn.Module] = [conv(in_channels, filters, 4, 2, 1), nn.LeakyReLU(0.2, True)]
    width = filters
    for layer in range(1, layers + 1):
        wider = filters * min(2**layer, 8)
        modules += [conv(width, wider, 4, 2 if layer < layers else 1, 1), norm(wider), nn.LeakyReLU(0.2, True)]
        width = wider
    return nn.Sequential(*modules, conv(width, 1, 4, 1, 1))


def convolutions(network: nn.Module) -> list[Any]:
    """In the order of the layers, which a network and its plain twin share."""
    kinds = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return [module for module in network.modules() if isinstance(module, kinds)]


def plain_twin(network: nn.Module, leaf: dict[str, Any], upsampling: str | None = None) -> nn.Module:
    """The same network with the same weights from torch's own modules; a copy where none is written for its kind.

    Args:
        network: one of ours.
        leaf: what it was built from, every argument spelled out.
        upsampling: another one than its own; the weights of those layers are then fresh.
    """
    if isinstance(network, Windowed):
        windowed = copy.deepcopy(network)
        windowed.discriminator = plain_twin(network.discriminator, leaf)
        return windowed
    first, last = convolutions(network)[0], convolutions(network)[-1]
    dims = first.weight.dim() - 2
    twin: nn.Module
    if type(network) is ResNetGenerator and not leaf["dropout"]:
        sizes = (leaf["filters"], leaf["blocks"], leaf["downsamplings"], upsampling or leaf["upsampling"])
        twin = plain_resnet(dims, first.in_channels, last.out_channels, *sizes)
    elif type(network) is PatchGAN and leaf["layers"] and not leaf["spectral_norm"]:
        twin = plain_patchgan(dims, first.in_channels, leaf["filters"], leaf["layers"])
    else:
        return copy.deepcopy(network)
    with torch.no_grad():
        for own, plain in zip(convolutions(network), convolutions(twin), strict=True):
            if own.transposed == plain.transposed:
                plain.weight.copy_(own.weight)
            else:
                plain.weight.normal_(0.0, 0.02)
            if plain.bias is not None:
                plain.bias.zero_() if own.bias is None else plain.bias.copy_(own.bias)
    return twin


def plain_networks(networks: nn.ModuleDict, experiment: Experiment, upsampling: str | None = None) -> nn.ModuleDict:
    """The plain twins of all networks of an experiment."""
    leaves = {"gen": experiment.model.generator, "disc": experiment.model.discriminator}
    return nn.ModuleDict(
        {
            n: plain_twin(m, leaves[n.split("_")[0]], upsampling if n.startswith("gen") else None)
            for n, m in networks.items()
        }
    )


def example_experiment(spatial_dims: int = 2, changes: dict[str, Any] | None = None) -> Experiment:
    """The paper's networks on one channel: ResNet-9 with 64 filters in 2D, with 6 blocks and 32 filters in 3D."""
    generator = {"filters": 64, "blocks": 9} if spatial_dims == 2 else {"filters": 32, "blocks": 6}
    content: dict[str, Any] = {
        "patches": {"spatial_dims": spatial_dims},
        "model": {"generator": generator, "discriminator": {}, "discriminator_windows": []},
    }
    for section, values in (changes or {}).items():
        content[section] = {**content.get(section, {}), **values}
    return parse(content, "the benchmark")


def experiment_for(path: Path | None, overrides: Iterable[str]) -> Experiment:
    """The experiment of a config file, or the example; overrides as in `config.load`."""
    chosen = list(overrides)
    if path is None:
        dims = 3 if any(o.replace(" ", "") == "patches.spatial_dims=3" for o in chosen) else 2
        example = example_experiment(dims).model_dump(mode="json", exclude_unset=True)
        chosen = [f"{key}={json.dumps(value)}" for key, value in example.items()] + chosen
    experiment = load(path, chosen)
    for name, domain in experiment.domains:
        if domain.volumes > 1:
            raise InputError(
                f"domains.{name}.contrasts names {domain.volumes} ({', '.join(domain.contrasts)}), and benchmark "
                "measures one volume per case.",
                "Leave them out.",
            )
    return experiment


def patch_size(given: str, experiment: Experiment, default: int) -> tuple[int, ...]:
    """The numbers of `--size`: one for all axes, or one each; without any the experiment's own, or the default."""
    dims = experiment.patches.spatial_dims
    if not given:
        return experiment.patches.size or (default if dims == 2 else 96,) * dims
    try:
        numbers = tuple(int(number) for number in given.split(","))
    except ValueError:
        raise InputError(f"--size takes 128 or numbers like 96,96,96, got '{given}'.") from None
    return numbers * dims if len(numbers) == 1 else numbers


def described(result: dict[str, Any]) -> list[str]:
    """A result in words."""
    size = " x ".join(map(str, result["size"]))
    if result["verb"] == "data":
        return [
            f"loader: {result['read_patches_per_s']:.0f} patches/s of {size}; training consumes "
            f"{result['consumed_patches_per_s']:.1f}: {result['speedup']:.1f} times as many (5 are enough)"
        ]
    lines = [f"{result['device']}, {result['cores']} cores, {size}, {result['precision']}"]
    for name in ("ours", "reference"):
        each = result[name]
        if result["verb"] == "convert":
            lines.append(f"{name}: {each['slices_per_s']:.2f} slices/s")
        else:
            memory = f", {each['peak_memory_gib']:.2f} GiB" if "peak_memory_gib" in each else ""
            rates = f"{each['steps_per_s']:.3f} steps/s, {each['images_per_s']:.3f} images/s"
            lines.append(f"{name}: {rates}, {each['cpu_seconds']:.2f} s of processor time a step{memory}")
    lines.append(f"speedup: {result['speedup']:.2f}")
    if result["verb"] == "convert":
        from medcyclegan.inference.translator import BF16_LIMIT

        return [
            *lines,
            f"mean difference: {result['mean_difference_hu']:.2f} HU with untrained weights, which exaggerate it; "
            f"`convert` keeps bfloat16 only where it changes a volume by less than {BF16_LIMIT * HU_PER_UNIT:g} HU",
        ]
    ours = result["ours"]
    lines.append(
        f"{ours['flop_per_s'] / 1e9:.0f} GFLOP/s, {100 * ours['share_of_ceiling']:.0f} % of the "
        f"{ours['ceiling_flop_per_s'] / 1e9:.0f} that matrix products reach"
    )
    for precision, found in result["agreement"].items():
        values = ", ".join(f"{name} {value:.1e}" for name, value in found.items())
        lines.append(f"relative difference to the reference, {precision}: {values}")
    return lines


def random_batch(
    experiment: Experiment, size: Sequence[int], batch: int, device: torch.device, seed: int = 1
) -> dict[str, Tensor]:
    """Smooth noise in [-1, 1], (B, C, *size) per domain: instance norm never meets a constant."""
    random = torch.Generator().manual_seed(seed)
    shape = (batch, 2 * experiment.patches.neighbors + 1, *size)
    mode = "bilinear" if len(size) == 2 else "trilinear"
    made: dict[str, Tensor] = {}
    for domain in ("a", "b"):
        coarse = torch.rand(*shape[:2], *(max(2, n // 8) for n in size), generator=random) * 2 - 1
        made[domain] = F.interpolate(coarse, size=tuple(size), mode=mode, align_corners=False).to(device)
        made[f"body_{domain}"] = torch.ones(shape, dtype=torch.bool, device=device)
    return made


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
        device: as in `build.choose_device`.
        profile: add a table of where our time goes.
        memory: measure the peak memory too, each in a process of its own.

    Returns:
        Plain data; `speedup` is images per second, ours over the reference's.

    Raises:
        InputError: if the experiment is not a CycleGAN, or the size does not fit.
    """
    where = _checked(experiment, size, batch, steps, device)
    bf16 = _bf16(experiment, where)
    data = random_batch(experiment, size, batch, where)
    trainer, reference = _trainer(experiment, where, bf16), _reference(experiment, where)
    runs: dict[str, Callable[[], Any]] = {
        "ours": lambda: trainer._iteration(trainer, data),
        "reference": lambda: reference(data),
    }
    seconds, busy = _interleaved(runs, steps, where)
    operations = _operations(experiment, where, bf16, data)
    ceiling = product_ceiling(where, torch.bfloat16 if bf16 else torch.float32)
    result: dict[str, Any] = {
        "verb": "train",
        "device": _name(where),
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
    trainer.lanes.close()
    if profile:
        result["profile"] = _profile(experiment, where, bf16, data)
    return result


def agreement(experiment: Experiment, data: dict[str, Tensor], device: torch.device, bf16: bool) -> dict[str, float]:
    """How far the first step's losses and gradients are from the reference's on the same weights and batch.

    Returns:
        `loss`: the largest relative difference of a loss; `generators`, `discriminators`: |g - g'| / |g'| over all
        gradients of the role, Euclidean norms, without the biases before instance norms that only the reference has.
    """
    trainer = _trainer(experiment, device, bf16)
    twins = plain_networks(trainer.objective.networks, experiment)
    reference = PlainStep(twins.to(device))
    losses = trainer._iteration(trainer, data)
    trainer.lanes.close()
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


def benchmark_convert(
    experiment: Experiment, *, size: Sequence[int], slices: int = 12, repeats: int = 3, device: str = "auto"
) -> dict[str, Any]:
    """Time the translation of a volume against MONAI's SliceInferer, float32, one slice at a time, same network.

    Args:
        experiment: its generator, with fresh weights.
        size: of a slice.
        slices: of the volume.
        repeats: of each; medians are compared.

    Returns:
        Plain data; `speedup`, and `mean_difference_hu` over the whole CT window between the two results.
    """
    from monai.inferers import SliceInferer

    from medcyclegan.inference.planes import translate_volume

    if experiment.patches.spatial_dims != 2 or experiment.patches.neighbors:
        raise InputError("benchmark convert measures 2D generators of single slices.", "Take a config of those.")
    where = _checked(experiment, size, 1, repeats, device)
    if slices < 1:
        raise InputError(f"--slices is at least 1, got {slices}.")
    network = build.make_networks(experiment)["gen_ab"].eval().requires_grad_(False).to(where)
    plain = plain_twin(network, experiment.model.generator).eval().requires_grad_(False)
    lay_out(network, where)
    random = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 1, *(max(2, n // 16) for n in size), max(2, slices // 4), generator=random) * 2 - 1
    volume = F.interpolate(coarse, size=(*size, slices), mode="trilinear", align_corners=False)
    image, body = volume[0, 0].numpy(), np.ones((*size, slices), bool)
    bf16 = _bf16(experiment, where)

    def reference() -> np.ndarray:
        with torch.inference_mode():
            inferer = SliceInferer(roi_size=tuple(size), sw_batch_size=1, spatial_dim=2)
            given: Any = inferer(volume.to(where), plain)
        array: np.ndarray = given[0, 0].cpu().numpy()
        return array

    def ours() -> np.ndarray:
        return translate_volume(network, image, body, window=size, device=where, bf16=bf16)

    results = {"ours": ours(), "reference": reference()}  # which warms both up
    seconds, busy = _interleaved({"ours": ours, "reference": reference}, repeats, where, warm_up=0)
    return {
        "verb": "convert",
        "device": _name(where),
        "cores": torch.get_num_threads(),
        "size": [*size, slices],
        "precision": "bf16" if bf16 else "float32",
        "speedup": round(seconds["reference"] / seconds["ours"], 3),
        **{
            name: {"seconds": each, "slices_per_s": slices / each, "cpu_seconds": busy[name]}
            for name, each in seconds.items()
        },
        "mean_difference_hu": float(np.abs(results["ours"] - results["reference"]).mean()) * HU_PER_UNIT,
    }


def benchmark_data(
    experiment: Experiment, *, size: Sequence[int], batch: int = 1, steps: int = 10, device: str = "auto"
) -> dict[str, Any]:
    """Patches per second of the loader from memory-mapped volumes, and what our training step consumes.

    Returns:
        Plain data; `speedup` is patches read over patches consumed per second, to be at least 5.
    """
    from medcyclegan.data.patches import Shape, UnpairedPatches
    from medcyclegan.data.prepared import open_prepared

    where = _checked(experiment, size, batch, steps, device)
    if experiment.data.prepared is None:
        raise InputError("benchmark data reads a prepared folder.", "Give --set data.prepared=FOLDER, or a config.")
    prepared = open_prepared(Path(experiment.data.prepared))
    patches = experiment.patches
    count = max(steps * 20, 100)
    dataset = UnpairedPatches(
        prepared.cases["a"],
        prepared.cases["b"],
        shape=Shape(tuple(size), patches.plane, patches.neighbors),
        batch_size=batch,
        steps=count,
        seed=experiment.seed,
        minimum_body=patches.minimum_body,
        flip=patches.flip,
        matching=patches.matching,
    )
    workers = experiment.training.workers
    started = time.perf_counter()
    for _ in dataset.loader(workers=workers, pin_memory=where.type == "cuda"):
        pass
    read = 2 * batch * count / (time.perf_counter() - started)
    data = random_batch(experiment, size, batch, where)
    trainer = _trainer(experiment, where, _bf16(experiment, where))
    seconds = _interleaved({"ours": lambda: trainer._iteration(trainer, data)}, steps, where)[0]["ours"]
    trainer.lanes.close()
    return {
        "verb": "data",
        "device": _name(where),
        "cores": torch.get_num_threads(),
        "size": list(size),
        "batch": batch,
        "workers": workers,
        "read_patches_per_s": read,
        "consumed_patches_per_s": 2 * batch / seconds,
        "speedup": round(read * seconds / (2 * batch), 3),
    }


def product_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of large matrix products on all cores, the best of a few ways and times."""
    n = CEILING_SIZE["cuda" if device.type == "cuda" else "cpu"]
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, n, generator=random).to(device, dtype) for _ in "ab")
    image = b.t().reshape(1, n, 1, n)  # the same product as a convolution of width 1, which has kernels of its own
    products: list[Callable[[], Tensor]] = [lambda: a @ b, lambda: F.conv2d(image, a[:, :, None, None])]
    best = 0.0
    with torch.no_grad():
        for product in products:
            product()
            for _ in range(3):
                started = _now(device)
                product()
                best = max(best, 2 * n**3 / (_now(device) - started))
    return best


def _checked(experiment: Experiment, size: Sequence[int], batch: int, steps: int, device: str) -> torch.device:
    dims = experiment.patches.spatial_dims
    if len(size) != dims or min(size) < 16:
        raise InputError(
            f"--size is {dims} numbers of at least 16 for this experiment, got {','.join(map(str, size))}."
        )
    if batch < 1 or steps < 1:
        raise InputError(f"--batch and --steps are at least 1, got {batch} and {steps}.")
    if experiment.objective["_target_"] != "cyclegan":
        raise InputError(
            f"the reference is a CycleGAN, and this config trains {experiment.objective['_target_']}.",
            "Measure a config with objective cyclegan.",
        )
    return build.choose_device(device)


def _bf16(experiment: Experiment, device: torch.device) -> bool:
    wanted = experiment.training.precision
    return wanted == "bf16" or (wanted == "auto" and bf16_is_safe(device))


def _trainer(experiment: Experiment, device: torch.device, bf16: bool) -> CycleGANTrainer:
    objective = build.make_objective(experiment, {"a": None, "b": experiment.preparation.ct_window})
    return CycleGANTrainer(device=device, objective=objective, loader=[], steps=100_000, bf16=bf16)  # type: ignore[arg-type]


def _reference(experiment: Experiment, device: torch.device) -> PlainStep:
    return PlainStep(plain_networks(build.make_networks(experiment), experiment, "transposed").to(device))


def _interleaved(
    runs: dict[str, Callable[[], Any]], repeats: int, device: torch.device, warm_up: int = WARM_UP
) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of each, and of processor time over all cores, one call of each in turn."""
    walls: dict[str, list[float]] = {name: [] for name in runs}
    busy: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(warm_up + repeats):
        for name, run in runs.items():
            started, cpu = _now(device), time.process_time()
            run()
            if repeat >= warm_up:
                walls[name].append(_now(device) - started)
                busy[name].append(time.process_time() - cpu)
            else:
                _now(device)
    return tuple({n: statistics.median(each) for n, each in times.items()} for times in (walls, busy))  # type: ignore[return-value]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _operations(experiment: Experiment, device: torch.device, bf16: bool, data: dict[str, Tensor]) -> float:
    """Floating-point operations of one of our steps, convolutions and matrix products."""
    from torch.utils.flop_counter import FlopCounterMode

    trainer = _trainer(experiment, device, bf16)
    trainer.lanes.cores = 1  # the counter sees its own thread only
    with FlopCounterMode(display=False) as counter:
        trainer._iteration(trainer, data)
    return float(counter.get_total_flops())


def _profile(experiment: Experiment, device: torch.device, bf16: bool, data: dict[str, Tensor]) -> str:
    """A table of our step's time by operation, on one core of a processor."""
    from torch.profiler import ProfilerActivity, profile

    trainer = _trainer(experiment, device, bf16)
    trainer.lanes.cores = 1
    trainer._iteration(trainer, data)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        trainer._iteration(trainer, data)
        _now(device)
    by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=by, row_limit=20, max_name_column_width=48)


def _peak_in_process(name: str, experiment: Experiment, size: Sequence[int], batch: int, device: str) -> float:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_peak, name, experiment.to_dict(), tuple(size), batch, device).result()


def _peak(name: str, content: dict[str, Any], size: Sequence[int], batch: int, device: str) -> float:
    """GiB that two steps of "ours" or the "reference" took at most: of a processor beyond what there was before."""
    experiment, where = parse(content, "the benchmark"), torch.device(device)
    before = _used(where)
    data = random_batch(experiment, size, batch, where)
    if name == "ours":
        trainer = _trainer(experiment, where, _bf16(experiment, where))
        run: Callable[[], Any] = lambda: trainer._iteration(trainer, data)  # noqa: E731
    else:
        reference = _reference(experiment, where)
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


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
