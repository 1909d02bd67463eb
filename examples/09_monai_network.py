"""A network of MONAI as the generator, by its dotted path: SwinUNETR.

python examples/09_monai_network.py OUTPUT_FOLDER

The same works for your own classes. In a YAML file:
    model: {generator: {_target_: monai.networks.nets.SwinUNETR, feature_size: 12, depths: [1, 1, 1, 1]}}
"""

import sys
from pathlib import Path

from medcyclegan import config, factory, load_translator, phantom

output = Path(sys.argv[1] if len(sys.argv) > 1 else "example-09")
cohort = phantom.write_cohort(
    output / "phantoms", train_mr=2, train_ct=2, test=1, spacing_mm=(6.0, 6.0, 8.0), shape=(36, 44, 20)
)
# Its arguments are checked against its signature before torch is imported. What the program knows itself (channels,
# dimensions) is not given; sizes that the network cannot take are padded, and it gets the tanh that it lacks.
swin = {"_target_": "monai.networks.nets.SwinUNETR", "feature_size": 12, "depths": [1, 1, 1, 1]}
experiment = config.parse(
    {
        "data": {"a": str(cohort.train_mr[0].parent), "b": str(cohort.train_ct[0].parent)},
        "model": {"generator": swin, "discriminator": {"filters": 8, "layers": 1}},
        "training": {"steps": 2, "log_every": 1},
    },
    "this example",
)
factory.train(experiment, output / "run")

translate = load_translator(output / "run")
sct = translate(cohort.test_mr[0])
print(f"{type(translate.generator.network).__name__}: {sct.array.shape}, {sct.array.min()} to {sct.array.max()} HU")
