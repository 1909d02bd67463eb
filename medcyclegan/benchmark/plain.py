"""The reference: CycleGAN's networks and training step as the original code has them.

It is written as the original code of Zhu et al. 2017 is organized: fake, cycle and identity in forwards of their own,
the discriminators on real and fake in turn, float32, torch's default Adam, convolutions with a bias before their
instance norm, transposed convolutions in the generator, and every operation spread over all cores. Losses are read only
when they are printed, as there.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medcyclegan.config import Experiment
from medcyclegan.networks.blocks import crop_to, pad_to_multiple
from medcyclegan.networks.discriminators.patchgan import PatchGAN
from medcyclegan.networks.discriminators.windowed import Windowed
from medcyclegan.networks.generators.resnet import ResNetGenerator

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


class _Padded(nn.Sequential):
    """Layers that halve an image some times, on images of any size, padded as those of `ResNetGenerator`."""

    def __init__(self, halvings: int, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.multiple = 2**halvings

    def forward(self, x: Tensor) -> Tensor:
        padded = pad_to_multiple(x, self.multiple, at_least=2 * self.multiple)
        return crop_to(super().forward(padded), x.shape[2:])


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
    return _Padded(downsamplings, *layers, reflect(3), conv(filters, out_channels, 7), nn.Tanh())


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
