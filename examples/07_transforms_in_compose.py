"""This package's transforms between MONAI's, in a plain Compose: read, find the body, scale, resample, crop; and back.

python examples/07_transforms_in_compose.py OUTPUT_FOLDER
"""

import sys
from pathlib import Path

from monai.data import DataLoader, Dataset
from monai.transforms import Compose, LoadImaged, RandSpatialCropSamplesd, SpatialPadd

from medcyclegan import phantom
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import SimpleITKReader, read_volume
from medcyclegan.io.writer import write_volume
from medcyclegan.transforms.body import BodyMaskd, OutsideBodyd
from medcyclegan.transforms.geometry import ToWorkingGridd
from medcyclegan.transforms.intensity import ScaleMRd

output = Path(sys.argv[1] if len(sys.argv) > 1 else "example-07")
cohort = phantom.write_cohort(
    output / "phantoms", train_mr=2, train_ct=1, test=0, spacing_mm=(6.0, 6.0, 8.0), shape=(36, 44, 20)
)
# The same volumes as .mha, which MONAI alone does not read.
files = []
for path in cohort.train_mr:
    volume = read_volume(path)
    array = volume.numpy()[0]
    files.append(output / f"{path.name.removesuffix('.nii.gz')}.mha")
    write_volume(files[-1], array, Grid(array.shape, volume.affine.numpy()))

keys = ["image", "body"]
prepare = Compose(
    [
        LoadImaged("image", reader=SimpleITKReader, ensure_channel_first=True),
        BodyMaskd("image", "body", modality="MR"),
        ScaleMRd("image", "body", inverted=True, floor=-0.5),
        OutsideBodyd("image", "body", -1.0),
        ToWorkingGridd(keys, spacing=(6.0, 6.0, 6.0), fill=(-1.0, 0.0), mode=("linear", "nearest")),
    ]
)
patches = Compose([prepare, SpatialPadd(keys, (32, 32, 16)), RandSpatialCropSamplesd(keys, (32, 32, 16), 2)])
batch = next(iter(DataLoader(Dataset([{"image": str(file)} for file in files], patches), batch_size=2)))
print(f"a batch: {tuple(batch['image'].shape)}, {batch['image'].min():.2f} to {batch['image'].max():.2f}")

# Scaling and resampling can be undone: the MR in its own unit on its own grid.
case = prepare({"image": str(files[0])})
shape = tuple(case["image"].shape)
back = prepare.inverse(case)
read, inside = read_volume(files[0]).numpy(), back["body"].numpy() > 0
error = abs(back["image"].numpy() - read)[inside].mean() / read[inside].mean()
print(f"prepared: {shape}, back: {tuple(back['image'].shape)}, mean change {100 * error:.1f} %")
