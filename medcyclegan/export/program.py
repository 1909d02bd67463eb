"""A generator as a program of `torch.export` (`.pt2`): weights and operations without the Python code.

TorchScript is not offered, since torch has deprecated it. An exported program has no branches. Generators that take
images of any size keep that as programs (see `blocks.pad_to_multiple`); Swin transformers choose their windows by the
size of the image, so their programs only take the size of the training windows.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from medcyclegan.atomic import atomic_file
from medcyclegan.errors import InputError
from medcyclegan.networks.foreign import MULTIPLE, ForeignGenerator

# Odd and large, so that tracing does not take a property of the example for a rule. It works on shapes alone.
EXAMPLES = {2: (523, 389), 3: (139, 131, 137)}
FIXED = ("SwinTransformer",)
# Largest difference from the network itself, in [-1, 1]; 2 HU of 4095.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Program:
    """An exported generator.

    Attributes:
        exported: what `torch.export.save` takes; (B, C, *spatial) float32 in [-1, 1] to the same.
        channels: C.
        spatial_dims: 2 or 3.
        size: the only spatial size that it takes; None for any size of at least `smallest` along every axis.
        smallest: voxels along every axis of the smallest image.
    """

    exported: ExportedProgram
    channels: int
    spatial_dims: int
    size: tuple[int, ...] | None
    smallest: int

    def shape_rule(self) -> str:
        """The sizes of images that it takes, in words."""
        if self.size is not None:
            return f"exactly {' x '.join(map(str, self.size))} voxels"
        return f"any size of at least {self.smallest} voxels along every axis"

    def sizes(self) -> list[tuple[int, ...]]:
        """(B, *spatial) of three different images that it takes."""
        if self.size is not None:
            return [(batch, *self.size) for batch in (1, 2, 3)]
        s = self.smallest
        return [
            (batch, *spatial[: self.spatial_dims])
            for batch, spatial in ((1, (s, s, s)), (3, (s + 5, s + 16, s)), (2, (s + 32, s + 1, s + 3)))
        ]


def export_program(generator: nn.Module, *, channels: int, window: Sequence[int]) -> Program:
    """Trace a generator.

    Args:
        generator: (B, C, *spatial) in [-1, 1] to the same, in evaluation mode on the CPU.
        channels: C.
        window: size of the windows in training.

    Raises:
        InputError: the network cannot be exported, or its program differs from it.
    """
    dims = len(window)
    fixed = any(type(module).__name__ in FIXED for module in generator.modules())
    spatial = tuple(window) if fixed else EXAMPLES[dims]
    axes: dict[int, Any] = {0: Dim.DYNAMIC}
    if not fixed:
        axes |= dict.fromkeys(range(2, 2 + dims), Dim.DYNAMIC)
    example = torch.zeros(2, channels, *spatial)
    name = _name(generator)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            exported = torch.export.export(generator, (example,), dynamic_shapes=(axes,))
    except Exception as error:  # torch.export fails in many ways, all of which mean that it cannot
        raise InputError(
            f"the generator {name} cannot be exported by torch.export: {_first_line(error)}.",
            "Export it as a bundle (--format bundle), which carries its Python class and not a program.",
        ) from error
    multiple = module_multiple(generator)
    # At the lowest resolution instance norm needs more than one voxel.
    smallest = 16 if multiple < 16 else multiple + 16
    program = Program(exported, channels, dims, tuple(window) if fixed else None, smallest)
    difference = largest_difference(program, exported.module(), generator)
    if not difference <= TOLERANCE:
        raise InputError(
            f"the exported program of the generator {name} differs from it by up to {difference:.2g} in [-1, 1].",
            "Export it as a bundle (--format bundle), which carries its Python class and not a program.",
        )
    return program


def save_program(program: Program, path: Path) -> None:
    """Write a `.pt2` file, atomically; `torch.export.load(path).module()` gives the function back."""
    # Torch warns of weights that are views and not on the CPU; these are on the CPU, and tests load the file.
    held = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No complete tensor found")
        # Not into the file: if that cannot be written, as on a full disk, torch ends the process.
        torch.export.save(program.exported, held)
    with atomic_file(path) as temporary:
        temporary.write_bytes(held.getbuffer())


@torch.no_grad()
def largest_difference(program: Program, function: Any, generator: nn.Module, seed: int = 0) -> float:
    """Largest difference between a function and the generator over the program's three sizes, in [-1, 1]."""
    random = torch.Generator().manual_seed(seed)
    worst = 0.0
    for batch, *spatial in program.sizes():
        image = torch.rand(batch, program.channels, *spatial, generator=random) * 2 - 1
        given: Tensor = torch.as_tensor(function(image))
        wanted: Tensor = generator(image)
        if given.shape != wanted.shape:
            return float("inf")
        worst = max(worst, float((given - wanted).abs().max()))
    return worst


def module_multiple(generator: nn.Module) -> int:
    """The multiple of voxels to which a generator pads inside; 1 where none of its parts says so."""
    stated = [getattr(module, "multiple", None) for module in generator.modules()]
    found = [number for number in stated if isinstance(number, int)]
    foreign = any(isinstance(m, ForeignGenerator) for m in generator.modules())
    return max([1, *found, *([MULTIPLE] if foreign else [])])


def _name(generator: nn.Module) -> str:
    inner = getattr(generator, "network", None)
    return type(generator).__name__ if not isinstance(inner, nn.Module) else type(inner).__name__


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".")
