"""A generator of this package as a `_target_` in somebody else's MONAI bundle: their data, their loss, their trainer.

python examples/08_generator_in_a_bundle.py OUTPUT_FOLDER

The bundle here learns MR to CT from pairs. Every class of this package takes plain arguments, so each of them can stand
in a bundle's configuration: here a generator, intensity transforms and an inferer.
"""

import json
import sys
from pathlib import Path

from monai.bundle import ConfigParser

from medcyclegan import phantom

output = Path(sys.argv[1] if len(sys.argv) > 1 else "example-08")
cohort = phantom.write_cohort(
    output / "phantoms", train_mr=0, train_ct=0, test=2, spacing_mm=(6.0, 6.0, 8.0), shape=(36, 44, 20)
)
SIZE = [32, 32, 16]
cases = [{"image": str(a), "label": str(b)} for a, b in zip(cohort.test_mr, cohort.test_ct, strict=True)]
bundle = {
    "cases": cases,
    "network": {"_target_": "medcyclegan.networks.generators.unet.UNetGenerator", "filters": 8, "spatial_dims": 3},
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": ["image", "label"], "ensure_channel_first": True},
            {"_target_": "medcyclegan.transforms.body.BodyMaskd", "modality": "MR"},
            {"_target_": "medcyclegan.transforms.intensity.ScaleMRd", "keys": "image", "inverted": True},
            {"_target_": "medcyclegan.transforms.intensity.ScaleCTd", "keys": "label"},
            {"_target_": "Spacingd", "keys": ["image", "label"], "pixdim": [6, 6, 8]},
            {"_target_": "ResizeWithPadOrCropd", "keys": ["image", "label"], "spatial_size": SIZE, "value": -1},
        ],
    },
    "dataset": {"_target_": "Dataset", "data": "@cases", "transform": "@preprocessing"},
    "loader": {"_target_": "DataLoader", "dataset": "@dataset"},
    "trainer": {
        "_target_": "SupervisedTrainer",
        "device": "$torch.device('cpu')",
        "max_epochs": 2,
        "train_data_loader": "@loader",
        "network": "@network",
        "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", "lr": 0.001},
        "loss_function": {"_target_": "torch.nn.L1Loss"},
    },
    "inferer": {"_target_": "medcyclegan.inference.inferer.TranslatorInferer", "roi_size": SIZE},
}
(output / "train.json").write_text(json.dumps({"imports": ["$import torch"], **bundle}, indent=2))
parser = ConfigParser()
parser.read_config(output / "train.json")
trainer = parser.get_parsed_content("trainer")
trainer.run()
volume = next(iter(parser.get_parsed_content("loader")))["image"]
result = parser.get_parsed_content("inferer")(volume, trainer.network.eval())
print(f"{trainer.state.iteration} iterations; from {tuple(volume.shape)} to {tuple(result.shape)}")
