"""An MR through a network that knows CT only: `TranslateImaged` as the first step of a MONAI segmentation pipeline.

python examples/10_segment_mr_with_a_ct_network.py RUN [STEPS]

RUN is a run from MR to CT, such as medcyclegan-demo/run. A small U-Net learns the brain on labeled phantom CTs; then it
gets MRs of other heads, scaled or translated, and their true CTs as a bound. Prints the Dice of the brain of each.
"""

import sys

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import SliceInferer
from monai.losses import DiceCELoss
from monai.metrics import compute_dice
from monai.networks.nets import UNet
from monai.transforms import Compose, Lambdad, ScaleIntensityRanged, ScaleIntensityRangePercentilesd

from medcyclegan import load_translator, phantom
from medcyclegan.inference.transform import TranslateImaged

run, steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 300
affine = np.array([[3, 0, 0, -106.5], [0, 3, 0, -138.5], [0, 0, 4, -50], [0, 0, 0, 1.0]])


def scan(seed: int) -> dict[str, MetaTensor]:
    """A head: CT in HU, MR, and the brain (0 or 1), each (1, 72, 88, 40) at 3 x 3 x 4 mm."""
    head = phantom.sample(phantom.head(seed), (72, 88, 40), affine)
    brain = np.isin(head.labels, (7, 8, 9))  # fluid, gray and white matter, see phantom.Tissue
    arrays = {"ct": head.ct, "mr": head.mr_t1, "brain": brain.astype(np.float32)}
    return {key: MetaTensor(torch.from_numpy(array)[None], affine=affine) for key, array in arrays.items()}


torch.manual_seed(0)
hounsfield = ScaleIntensityRanged("image", -200, 1000, 0, 1, clip=True)
heads = [scan(1000 + number) for number in range(4)]
images = torch.cat([hounsfield({"image": head["ct"]})["image"].as_tensor().permute(3, 0, 1, 2) for head in heads])
labels = torch.cat([head["brain"].as_tensor().permute(3, 0, 1, 2) for head in heads])
network = UNet(2, 1, 1, channels=(8, 16, 32), strides=(2, 2), norm="batch")
optimizer, loss = torch.optim.Adam(network.parameters(), 2e-3), DiceCELoss(sigmoid=True, batch=True)
for _ in range(steps):
    chosen = torch.randint(len(images), (8,))
    optimizer.zero_grad()
    loss(network(images[chosen]), labels[chosen]).backward()
    optimizer.step()
infer = SliceInferer(roi_size=(72, 88), spatial_dim=2, sw_batch_size=8)
segment = Lambdad("image", lambda image: (infer(image[None], network.eval())[0] > 0).float())
pipelines = {
    "MR, its percentiles scaled to [0, 1]": ("mr", [ScaleIntensityRangePercentilesd("image", 0, 99.5, 0, 1, True)]),
    "MR, translated": ("mr", [TranslateImaged("image", load_translator(run)), hounsfield]),
    "true CT": ("ct", [hounsfield]),
}
tests = [scan(2000 + number) for number in range(4)]
for name, (key, first) in pipelines.items():
    with torch.no_grad():
        found = [Compose([*first, segment])({"image": head[key].clone()})["image"][None] for head in tests]
    dice = [float(compute_dice(mask, head["brain"][None])) for mask, head in zip(found, tests, strict=True)]
    print(f"{name}: Dice {np.mean(dice):.3f}")
