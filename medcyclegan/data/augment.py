"""Augmentation of training patches: small movements, and MR bias field, gamma and noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from monai.transforms import Affine, RandAdjustContrast, RandBiasField, RandGaussianNoise, Resize

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
BACKGROUND = -1.0


@dataclass(frozen=True)
class Augmentation:
    """Augments one patch; the same seed gives the same result. Everything is off by default.

    Movements are drawn uniformly from -limit to limit and made in millimeters, so that a rotation in anisotropic voxels
    is a rotation of the head. All movements are one interpolation (linear), beyond whose border lies background. The
    intensity part is for MR only, since HU are absolute. Several contrasts share movement and bias field, as they share
    patient and coil; gamma and noise are drawn per contrast.

    Args:
        spacing: of the patch's spatial axes in mm.
        rotate: degrees, about every axis that the patch has.
        scale: share by which the size varies; 0.1 is 90 to 110 %.
        translate: mm along every axis.
        resize_jitter: the original CycleGAN's enlargement before a random crop; 286 / 256 = 1.117 there, 1 is off.
        bias_field: largest coefficient of the smooth multiplicative field (a cubic polynomial's exponential).
        gamma: the exponent varies from exp(-gamma) to exp(gamma).
        noise: standard deviation, as a share of the intensity range.
        inverted: the patch's MR is dark where the scan is bright.
        floor: lowest value inside the body, below which nothing may come: see `Scaler`.
        contrasts: number of contrasts among the channels of a patch.
    """

    spacing: tuple[float, ...]
    rotate: float = 0.0
    scale: float = 0.0
    translate: float = 0.0
    resize_jitter: float = 1.0
    bias_field: float = 0.0
    gamma: float = 0.0
    noise: float = 0.0
    inverted: bool = False
    floor: float = -1.0
    contrasts: int = 1

    def __call__(self, patch: Floats, body: Bools, seed: int) -> tuple[Floats, Bools]:
        """Vary a patch.

        Args:
            patch: (C, *spatial), [-1, 1].
            body: where it shows the body, the same shape.
            seed: at least 0; the movement depends on it and on the shape alone, so paired patches move alike.
        """
        random = np.random.RandomState(seed)
        patch, body = self._move(patch, body, random)
        if self.resize_jitter > 1:
            patch, body = self._enlarge(patch, body, random)
        return self._recolor(patch, body, random), body

    def _move(self, patch: Floats, body: Bools, random: np.random.RandomState) -> tuple[Floats, Bools]:
        dims = patch.ndim - 1
        angles = np.radians(random.uniform(-self.rotate, self.rotate, 1 if dims == 2 else 3))
        scale = 1 + random.uniform(-self.scale, self.scale)
        shift = random.uniform(-self.translate, self.translate, dims)
        if not (self.rotate or self.scale or self.translate):
            return patch, body
        to_mm = np.diag([*self.spacing, 1.0])
        motion = np.eye(dims + 1)
        motion[:dims, :dims] = _rotation(angles, dims) * scale
        motion[:dims, dims] = shift
        # MONAI's affine maps output to input voxels, both counted from the middle of the patch.
        matrix = np.linalg.inv(to_mm) @ motion @ to_mm
        both = np.concatenate([patch - BACKGROUND, body.astype(np.float32)])
        mover = Affine(affine=matrix, padding_mode="zeros", mode="bilinear", image_only=True)
        moved = np.asarray(torch.as_tensor(mover(torch.from_numpy(both))))
        channels = len(patch)
        return (moved[:channels] + BACKGROUND).astype(np.float32), moved[channels:] > 0.5

    def _enlarge(self, patch: Floats, body: Bools, random: np.random.RandomState) -> tuple[Floats, Bools]:
        size = patch.shape[1:]
        larger = [round(n * self.resize_jitter) for n in size]
        both = np.concatenate([patch, body.astype(np.float32)])
        enlarged = np.asarray(torch.as_tensor(Resize(larger, mode=_linear(len(size)))(torch.from_numpy(both))))
        window = tuple(
            slice(start, start + n)
            for n, start in ((n, random.randint(m - n + 1)) for n, m in zip(size, larger, strict=True))
        )
        cut = enlarged[(slice(None), *window)]
        return cut[: len(patch)].copy(), cut[len(patch) :] > 0.5

    def _recolor(self, patch: Floats, body: Bools, random: np.random.RandomState) -> Floats:
        if not (self.bias_field or self.gamma or self.noise):
            return patch
        height = (patch - self.floor) / (1 - self.floor)
        share = torch.from_numpy(np.where(body, 1 - height if self.inverted else height, 0).astype(np.float32)).clamp(
            0, 1
        )
        for transform in self._intensity_transforms():
            transform.set_random_state(state=random)
            alone = self.contrasts if isinstance(transform, RandAdjustContrast) else 1
            parts = share.chunk(alone)
            share = torch.cat([torch.as_tensor(transform(part)).clamp(0, 1) for part in parts])
        varied = 1 - share.numpy() if self.inverted else share.numpy()
        # Outside the body the prepared image is background without noise.
        return np.where(body, self.floor + varied * (1 - self.floor), patch).astype(np.float32)

    def _intensity_transforms(self) -> list[RandBiasField | RandAdjustContrast | RandGaussianNoise]:
        chosen: list[RandBiasField | RandAdjustContrast | RandGaussianNoise] = []
        if self.bias_field:
            chosen.append(RandBiasField(prob=1, degree=3, coeff_range=(-self.bias_field, self.bias_field)))
        if self.gamma:
            chosen.append(RandAdjustContrast(prob=1, gamma=(float(np.exp(-self.gamma)), float(np.exp(self.gamma)))))
        if self.noise:
            chosen.append(RandGaussianNoise(prob=1, std=self.noise))
        return chosen


def _rotation(angles: Sequence[float] | npt.NDArray[np.float64], dims: int) -> npt.NDArray[np.float64]:
    matrix = np.eye(dims)
    planes = [(0, 1)] if dims == 2 else [(1, 2), (0, 2), (0, 1)]
    for angle, (i, j) in zip(angles, planes, strict=True):
        turn = np.eye(dims)
        turn[[i, j], [i, j]] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def _linear(dims: int) -> str:
    return "bilinear" if dims == 2 else "trilinear"
