"""Synthetic CT as training data: few CTs have labels, many MRs do. Does a CT network gain from the MRs' sCTs?

python examples/11_sct_as_augmentation.py RUN [STEPS]

RUN is a run from MR to CT, such as medcyclegan-demo/run. A small U-Net learns tissues on slices of labeled phantom CTs
alone, with the MRs' sCTs and labels besides, and with the MRs' true CTs, which nobody has, as a bound. Prints the mean
Dice over tissues and four test CTs, as mean and standard deviation over the seeds of the segmentation.
"""

import sys

import numpy as np
import torch
from monai.data import MetaTensor
from monai.losses import DiceCELoss
from monai.metrics import compute_dice
from monai.networks.nets import UNet
from monai.networks.utils import one_hot

from medcyclegan import load_translator, phantom

run, steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 800
CT, MR, SEEDS = 1, 8, (0, 1, 2)
affine = np.array([[3, 0, 0, -106.5], [0, 3, 0, -138.5], [0, 0, 4, -50], [0, 0, 0, 1.0]])
CLASS = torch.tensor([0, 3, 0, 0, 4, 2, 2, 1, 1, 1, 0, 2, 1])  # of phantom.Tissue: 1 brain, 2 bone, 3 air, 4 muscle


def slices(image: np.ndarray, head: phantom.Phantom) -> tuple[torch.Tensor, torch.Tensor]:
    """(X, Y, Z) in HU -> (Z, 1, X, Y) with -200 to 1000 HU in [0, 1], and the classes."""
    hu = torch.from_numpy(image.transpose(2, 0, 1)[:, None].astype(np.float32))
    return ((hu + 200) / 1200).clamp(0, 1), CLASS[torch.from_numpy(head.labels.transpose(2, 0, 1)[:, None]).long()]


def dice_after_training(seed: int, images: torch.Tensor, classes: torch.Tensor) -> float:
    torch.manual_seed(seed)
    network = UNet(2, 1, 5, channels=(16, 32, 64), strides=(2, 2), norm="batch")
    optimizer, loss = torch.optim.Adam(network.parameters(), 1e-3), DiceCELoss(softmax=True, to_onehot_y=True)
    for _ in range(steps):
        chosen = torch.randint(len(images), (8,))
        optimizer.zero_grad()
        loss(network(images[chosen]), classes[chosen]).backward()
        optimizer.step()
    with torch.no_grad():
        pairs = [(network.eval()(image).argmax(1, keepdim=True), truth) for image, truth in tests]
    whole = [[one_hot(mask.permute(1, 2, 3, 0)[None], 5) for mask in pair] for pair in pairs]
    return float(np.mean([compute_dice(*pair, include_background=False).nanmean() for pair in whole]))


heads = [phantom.sample(phantom.head(1000 + n), (72, 88, 40), affine) for n in range(CT + MR)]
tests = [slices(head.ct, head) for head in (phantom.sample(phantom.head(n), (72, 88, 40), affine) for n in range(4))]
translate = load_translator(run)
ct = [slices(head.ct, head) for head in heads]
mr = [MetaTensor(torch.from_numpy(head.mr_t1)[None], affine=affine) for head in heads]
sct = [slices(translate(mr[n]).array, heads[n]) for n in range(CT, len(heads))]
few = ct[:CT]
for name, cases in {f"{len(few)} CT": few, f"and {len(sct)} sCT": few + sct, f"all {len(ct)} CT": ct}.items():
    images, classes = (torch.cat(part) for part in zip(*cases, strict=True))
    dice = [dice_after_training(seed, images, classes) for seed in SEEDS]
    print(f"{name}: Dice {np.mean(dice):.3f} +- {np.std(dice):.3f}", flush=True)
