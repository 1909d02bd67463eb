"""A new structure loss in one file: a class with a `weight` that gets a `View`, and a config that names it.

python examples/13_new_structure_loss.py OUTPUT_FOLDER

In the package itself, a file in losses/structure/ with `@STRUCTURE_LOSSES.register("name", paper="...")` above the
class is all; the tests find it.
"""

import csv
import sys
from pathlib import Path

from torch import Tensor

from medcyclegan import config, factory, phantom
from medcyclegan.losses.structure import View, mean_inside


class SmoothStaysSmooth:
    """Variation of the translation y where the source x is flat: mean of |dy| exp(-|dx| / edge) in the body.

    Edge-aware smoothness as of Godard et al. 2017, Unsupervised Monocular Depth Estimation with Left-Right Consistency,
    equation 3, summed over the axes.
    """

    def __init__(self, weight: float = 1.0, edge: float = 0.1) -> None:
        self.weight = weight
        self.edge = edge

    def __call__(self, view: View) -> Tensor:
        source, translated = view.source.mean(1, keepdim=True), view.translated.mean(1, keepdim=True)
        body = view.body.all(dim=1, keepdim=True)
        total = source.new_zeros(())
        for axis in range(2, source.dim()):
            n = body.shape[axis] - 1
            inside = body.narrow(axis, 0, n) & body.narrow(axis, 1, n)
            flat = (-source.diff(dim=axis).abs() / self.edge).exp()
            total = total + mean_inside(translated.diff(dim=axis).abs() * flat, inside)
        return total


if __name__ == "__main__":
    output = Path(sys.argv[1] if len(sys.argv) > 1 else "example-13")
    cohort = phantom.write_cohort(
        output / "phantoms", train_mr=2, train_ct=2, test=0, spacing_mm=(6.0, 6.0, 8.0), shape=(36, 44, 20)
    )
    module = Path(__file__).stem  # Python finds it, because it is in the folder of this script; else set PYTHONPATH
    content = {
        "data": {"a": str(cohort.train_mr[0].parent), "b": str(cohort.train_ct[0].parent)},
        "model": {"generator": {"filters": 8, "blocks": 2}, "discriminator": {"filters": 8, "layers": 1}},
        "losses": {"structure": [{"_target_": f"{module}.SmoothStaysSmooth", "weight": 0.5}]},
        "training": {"steps": 4, "log_every": 2},
    }
    # Naming a class from elsewhere runs its code, which has to be allowed; on the command line with --allow MODULE.
    factory.train(config.parse(content, "this example", allow=[module]), output / "run")
    with (output / "run/metrics.csv").open(newline="") as stream:
        last = list(csv.DictReader(stream))[-1]
    print({name: float(value) for name, value in last.items() if "Smooth" in name})
