"""A clinical volume converts in little memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import resource, sys
import numpy as np, torch
import nibabel as nib
from medcyclegan.inference.sliding_window import SlidingWindow
from medcyclegan.inference.translator import ImageDomain, Translator
from medcyclegan.networks.generators.resnet import ResNetGenerator
from medcyclegan.progress import Terminal
from medcyclegan.transforms.intensity import Scaler
from medcyclegan.transforms.pipeline import Preparation

def domain(modality):
    return ImageDomain((Preparation(modality, (1.0, 1.0, 1.0)),), (Scaler(-1024, 3071),))

x, y, z = np.ogrid[-1:1:256j, -1:1:256j, -1:1:180j]
# A thin slab of body: the memory is that of 256 x 256 x 180, the time that of a few slices.
body = ((x / 0.8) ** 2 + (y / 0.9) ** 2 < 1) & (np.abs(z) < 0.07)
noise = np.random.default_rng(0).random(body.shape, np.float32)
mr = np.where(body, 500 + 300 * x + 50 * z, 5).astype(np.float32) + noise
translate = Translator(
    ResNetGenerator(filters=64, blocks=9).eval(), domain("MR"), domain("CT"), SlidingWindow((256, 256))
)
image = nib.Nifti1Image(mr, np.eye(4))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = translate(image, progress=Terminal(interval_s=0))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert result.array.shape == mr.shape
print((after - before) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_peak_memory_of_a_256_x_256_x_180_volume_is_below_4_gb() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    gigabytes = float(done.stdout)
    assert 0.01 < gigabytes < 4, gigabytes
    assert "translating axial slices: 1 of " in done.stderr


LARGE = """
import resource, sys
import numpy as np, torch
import nibabel as nib
from medcyclegan.inference.sliding_window import SlidingWindow
from medcyclegan.inference.translator import ImageDomain, Translator
from medcyclegan.networks.generators.resnet import ResNetGenerator
from medcyclegan.transforms.intensity import Scaler
from medcyclegan.transforms.pipeline import Preparation

def domain(modality):
    return ImageDomain((Preparation(modality, (1.0, 1.0, 1.0)),), (Scaler(-1024, 3071),))

path, out = sys.argv[1:]
x, y, z = np.ogrid[-1:1:512j, -1:1:512j, -1:1:600j]
body = ((x / 0.8) ** 2 + (y / 0.9) ** 2 < 1) & (np.abs(z) < 0.95)
mr = np.where(body, 500 + 300 * x + 50 * z, 5).astype(np.int16)
nib.save(nib.Nifti1Image(mr, np.eye(4)), path)
del body, mr
translate = Translator(
    ResNetGenerator(filters=1, blocks=1).eval(), domain("MR"), domain("CT"), SlidingWindow((512, 512))
)
translate(path).save(out)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_peak_memory_of_a_512_x_512_x_600_volume_is_below_8_gb(tmp_path: Path) -> None:
    """The whole process, libraries included, from a compressed file to a compressed file."""
    paths = [str(tmp_path / name) for name in ("mr.nii.gz", "sct.nii.gz")]
    done = subprocess.run([sys.executable, "-c", LARGE, *paths], capture_output=True, text=True, check=True)
    gigabytes = float(done.stdout)
    print(f"{gigabytes:.2f} GB")
    assert 1 < gigabytes < 8, gigabytes
