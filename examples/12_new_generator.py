"""A new generator in one file: a class, and a config that names it.

python examples/12_new_generator.py OUTPUT_FOLDER

A generator takes (B, in_channels, *spatial) in [-1, 1] and gives (B, out_channels, *spatial); the program passes
`in_channels`, `out_channels` and `spatial_dims` and adds padding and a tanh. In the package itself, a file in
networks/generators/ with `@GENERATORS.register("name", paper="...")` above the class is all; the tests find it.
"""

import sys
from pathlib import Path

import torch
from monai.networks.layers import Conv
from torch import Tensor, nn

from medcyclegan import config, factory, load_translator, phantom


class Dilated(nn.Module):
    """Convolutions of growing dilation at full resolution: x + f(x), so that it begins near the identity."""

    def __init__(self, in_channels: int, out_channels: int, spatial_dims: int, filters: int = 16, layers: int = 4):
        super().__init__()
        conv = Conv["conv", spatial_dims]
        self.layers = nn.ModuleList(
            conv(filters if level else in_channels, filters, 3, padding=2**level, dilation=2**level)
            for level in range(layers)
        )
        self.last = conv(filters, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = x
        for layer in self.layers:
            features = torch.relu(layer(features))
        return x + self.last(features)


if __name__ == "__main__":
    output = Path(sys.argv[1] if len(sys.argv) > 1 else "example-12")
    cohort = phantom.write_cohort(
        output / "phantoms", train_mr=2, train_ct=2, test=1, spacing_mm=(6.0, 6.0, 8.0), shape=(36, 44, 20)
    )
    module = Path(__file__).stem  # Python finds it, because it is in the folder of this script; else set PYTHONPATH
    content = {
        "data": {"a": str(cohort.train_mr[0].parent), "b": str(cohort.train_ct[0].parent)},
        "model": {
            "generator": {"_target_": f"{module}.Dilated", "filters": 8},
            "discriminator": {"filters": 8, "layers": 1},
        },
        "training": {"steps": 4, "log_every": 2},
    }
    # Naming a class from elsewhere runs its code, which has to be allowed; on the command line with --allow MODULE.
    factory.train(config.parse(content, "this example", allow=[module]), output / "run")
    sct = load_translator(output / "run", allow=[module])(cohort.test_mr[0])
    print(f"{sct.description}: {sct.array.min()} to {sct.array.max()} HU")
