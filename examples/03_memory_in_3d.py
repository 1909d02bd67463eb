"""Memory and time of one training step on 3D patches, with and without checkpointing.

    python examples/03_memory_in_3d.py --size 32 128 128 --size 96 96 96

Each line is one CycleGAN step (both generators and both discriminators, batch 1, float32) in a process of its own. On a
processor, memory is what the process took at most beyond what it had before the step; on a GPU what torch allocated.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import torch
from torch import nn

from medcyclegan.registry import DISCRIMINATORS, GENERATORS, OBJECTIVES


def one_step(size: tuple[int, ...], filters: int, blocks: int, checkpointing: bool, device: torch.device) -> str:
    generator = {"_target_": "resnet", "filters": filters, "blocks": blocks, "checkpointing": checkpointing}
    discriminator = {"_target_": "patchgan", "filters": filters, "layers": 2}
    torch.manual_seed(0)
    networks = nn.ModuleDict()
    for name in ("gen_ab", "gen_ba"):
        networks[name] = GENERATORS.build(generator, in_channels=1, out_channels=1, spatial_dims=3)
    for name in ("disc_a", "disc_b"):
        networks[name] = DISCRIMINATORS.build(discriminator, in_channels=1, spatial_dims=3)
    objective = OBJECTIVES.build({"_target_": "cyclegan"}, networks=networks.to(device), seed=0)
    real = {domain: torch.rand(1, 1, *size, device=device) * 2 - 1 for domain in "ab"}

    before, started = peak_gib(device), time.process_time()
    for direction in objective.directions:
        losses, images = objective.generator_losses(real, direction)
        sum(losses.values()).backward()
        detached = {name: image.detach() for name, image in images.items()}
        sum(objective.discriminator_losses(real, detached, direction).values()).backward()
    memory, seconds = peak_gib(device) - before, time.process_time() - started
    shown = " x ".join(map(str, size))
    return f"{shown:>15}  checkpointing {'on ' if checkpointing else 'off'}  {memory:6.2f} GiB  {seconds:7.1f} s"


def peak_gib(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 2**30
    kilobytes = 2**10 if sys.platform == "darwin" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / kilobytes / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, action="append", help="voxels of the patch; may be given again")
    parser.add_argument("--filters", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--checkpointing", choices=("on", "off"), help="measure one case in this process")
    chosen = parser.parse_args()
    sizes = [tuple(size) for size in chosen.size or [(32, 128, 128)]]
    if chosen.checkpointing:
        torch.set_num_threads(1)
        on, device = chosen.checkpointing == "on", torch.device(chosen.device)
        print(one_step(sizes[0], chosen.filters, chosen.blocks, on, device))
        return
    for size in sizes:
        for case in ("off", "on"):
            arguments = ["--size", *map(str, size), "--filters", str(chosen.filters), "--blocks", str(chosen.blocks)]
            command = [sys.executable, __file__, *arguments, "--device", chosen.device, "--checkpointing", case]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
