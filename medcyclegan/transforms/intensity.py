"""Intensities: one linear map of [low, high] to [-1, 1] per volume, the same for every CT, fitted per MR.

CT has physics: every volume is clipped to [-1024, 3071] HU. MR has none: the window of a volume lies between two
percentiles inside its body.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import TraceKeys

from medcyclegan.errors import InputError
from medcyclegan.io.reader import grid_of

# The range of 12-bit CT: HU = stored value - 1024, stored values 0 to 4095.
CT_WINDOW = (-1024.0, 3071.0)
MR_PERCENTILES = (0.5, 99.5)
DISPLAY_HU = (-250.0, 1250.0)  # black and white in pictures of a training: soft tissue and bone both visible

Values = TypeVar("Values", np.ndarray, torch.Tensor)


@dataclass(frozen=True)
class Scaler:
    """The linear map of [low, high] to [-1, 1], with clipping, and its inverse.

    All arithmetic is float32. `low` and `high` go to exactly -1 and 1, and -1 and 1 go back to exactly `low` and `high`
    (as float32); the other way round where `inverted`. A `floor` above -1 maps to [floor, 1] instead, so that the
    background outside the body, -1, differs from everything inside it. With `landmarks` the map is linear from each to
    the next instead.

    Attributes:
        low: value that becomes -1.
        high: value that becomes 1; above `low`.
        inverted: `low` becomes 1 and `high` becomes -1.
        floor: lowest value that `apply` gives, in [-1, 1).
        landmarks: (value, share) between `low` and `high`, rising in both: `share` of the range is where the value
            is mapped to; without landmarks the map is a straight line.
    """

    low: float
    high: float
    inverted: bool = False
    floor: float = -1.0
    landmarks: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        low, high = float(self.low), float(self.high)
        if not (np.isfinite(low) and np.isfinite(high) and np.float32(high) > np.float32(low)):
            raise InputError(
                f"an intensity window needs two finite values, the second above the first: [{low}, {high}]."
            )
        if not -1 <= self.floor < 1:
            raise InputError(f"the floor of an intensity window lies in [-1, 1), got {self.floor}.")
        landmarks = tuple((float(value), float(share)) for value, share in self.landmarks)
        if landmarks and np.diff([(low, 0.0), *landmarks, (high, 1.0)], axis=0).min() <= 0:
            raise InputError(f"landmarks rise from {low:g} to {high:g} and from 0 to 1, got {landmarks}.")
        object.__setattr__(self, "landmarks", landmarks)
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    def apply(self, values: Values) -> Values:
        """Values in the unit of the window, any shape -> float32 in [floor, 1]; outside the window they are clipped."""
        result = self._to_unit(values)
        if self.floor > -1:
            result += 1
            result *= (1 - self.floor) / 2
            result += self.floor
        return result

    def _bent(self, values: Values, back: bool) -> Values:
        """Values mapped piecewise linearly through the landmarks onto a straight line, or `back`."""
        width: float = self.high - self.low
        bent = [self.low, *(value for value, _ in self.landmarks), self.high]
        straight = [self.low, *(self.low + share * width for _, share in self.landmarks), self.high]
        x, y = (straight, bent) if back else (bent, straight)
        if isinstance(values, torch.Tensor):
            result = torch.from_numpy(np.interp(values.detach().cpu().numpy(), x, y).astype(np.float32))
            # A copy of what was given, so that a MetaTensor stays one.
            return values.float().clone().copy_(result)
        return np.interp(values, x, y).astype(np.float32)

    def _to_unit(self, values: Values) -> Values:
        low, high = np.float32(self.low), np.float32(self.high)
        if self.landmarks:
            values = self._bent(values, back=False)
        # 2 (x - low) / (high - low) - 1: at x = high the quotient is a number divided by itself, exactly 1.
        if isinstance(values, torch.Tensor):
            scaled = values.float().clamp(float(low), float(high)) - float(low)
            scaled = scaled.div_(float(high - low)).mul_(2).sub_(1)
            return scaled.neg_() if self.inverted else scaled
        result = np.clip(values, low, high, dtype=np.float32, casting="unsafe")
        result -= low
        result /= high - low
        result *= np.float32(2)
        result -= np.float32(1)
        return -result if self.inverted else result

    def undo(self, values: Values) -> Values:
        """Values in [-1, 1], any shape -> float32 in [low, high]; outside [floor, 1] they are clipped."""
        result = self._from_unit(values)
        return self._bent(result, back=True) if self.landmarks else result

    def _from_unit(self, values: Values) -> Values:
        if self.floor > -1:
            values = (values - self.floor) * (2 / (1 - self.floor)) - 1
        low, high = np.float32(self.low), np.float32(self.high)
        if self.inverted:
            low, high = high, low
        # ((1 - y) low + (1 + y) high) / 2: at y = -1 and y = 1 one term vanishes and the other is exact.
        if isinstance(values, torch.Tensor):
            unit = values.float().clamp(-1, 1)
            return (1 - unit).mul_(float(low) / 2).add_(unit.add(1).mul_(float(high) / 2))
        unit = np.clip(values, -1, 1, dtype=np.float32, casting="unsafe")
        result = np.float32(1) - unit
        result *= low / np.float32(2)
        unit += np.float32(1)
        unit *= high / np.float32(2)
        result += unit
        return result

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and checkpoints; numbers survive exactly."""
        content = {"low": self.low, "high": self.high, "inverted": self.inverted, "floor": self.floor}
        return {**content, "landmarks": [list(pair) for pair in self.landmarks]} if self.landmarks else content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Scaler:
        return cls(
            float(content["low"]),
            float(content["high"]),
            bool(content["inverted"]),
            float(content.get("floor", -1.0)),
            tuple(content.get("landmarks", ())),
        )


def mr_scaler(volume: np.ndarray, body: np.ndarray, percentiles: tuple[float, float] = MR_PERCENTILES) -> Scaler:
    """The window of an MR volume: two percentiles of its values inside the body.

    Args:
        volume: (X, Y, Z), arbitrary unit.
        body: (X, Y, Z) bool, not empty.
        percentiles: lower and upper, in [0, 100].

    Raises:
        InputError: the body is empty, or both percentiles are the same value.
    """
    if volume.shape != body.shape:
        raise ValueError(f"volume of shape {volume.shape} and body of shape {body.shape}")
    lower, upper = percentiles
    if not 0 <= lower < upper <= 100:
        raise InputError(f"MR percentiles ({lower}, {upper}): two rising numbers from 0 to 100 are needed.")
    inside = volume[body.astype(bool, copy=False)]
    if inside.size == 0:
        raise InputError("the body mask is empty, so that the MR intensities cannot be scaled.")
    low, high = np.percentile(inside, (lower, upper))
    if not np.float32(high) > np.float32(low):
        raise InputError(
            f"the MR intensities inside the body are flat: percentiles {lower} and {upper} are both {low:g}.",
            "Check the volume and its body mask.",
        )
    # As float32 from the start, so that the window in a checkpoint is the window that was used.
    return Scaler(float(np.float32(low)), float(np.float32(high)))


class _ScaleD(MapTransform, InvertibleTransform):
    """Applies a scaler per volume and remembers it for the inverse."""

    def scaler(self, volume: np.ndarray, data: Mapping[Hashable, Any]) -> Scaler:
        raise NotImplementedError

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            volume = result[key]
            scaler = self.scaler(volume.detach().cpu().numpy(), result)
            scaled = scaler.apply(volume)
            self.push_transform(scaled, extra_info=scaler.to_dict())
            result[key] = scaled
        return result

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            applied = self.pop_transform(result[key])
            result[key] = Scaler.from_dict(applied[TraceKeys.EXTRA_INFO]).undo(result[key])
        return result


class ScaleCTd(_ScaleD):
    """Clip CT to `window` (HU) and map it to [-1, 1].

    Args:
        keys: keys of MetaTensors in HU.
        window: HU of -1 and of 1.
    """

    def __init__(
        self, keys: KeysCollection, window: Sequence[float] = CT_WINDOW, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        low, high = window
        self.window = Scaler(low, high)

    def scaler(self, volume: np.ndarray, data: Mapping[Hashable, Any]) -> Scaler:
        return self.window


class ScaleMRd(_ScaleD):
    """Clip MR to a window, by default two percentiles inside its body, and map it to [-1, 1].

    Args:
        keys: keys of MetaTensors (1, X, Y, Z).
        body_key: key of the body mask, same shape.
        percentiles: lower and upper, in [0, 100].
        inverted: dark becomes 1 and bright -1.
        floor: lowest value inside the body, see `Scaler`.
        fit: makes the scaler from a volume (X, Y, Z), its body (X, Y, Z) bool and the spacing in mm, in place of the
            percentiles; for example `standardization.standard_scaler`. The body is then a MetaTensor.
    """

    def __init__(
        self,
        keys: KeysCollection,
        body_key: Hashable = "body",
        percentiles: tuple[float, float] = MR_PERCENTILES,
        inverted: bool = False,
        floor: float = -1.0,
        allow_missing_keys: bool = False,
        fit: Callable[[np.ndarray, np.ndarray, Sequence[float]], Scaler] | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.body_key = body_key
        self.percentiles = percentiles
        self.inverted = inverted
        self.floor = floor
        self.fit = fit

    def scaler(self, volume: np.ndarray, data: Mapping[Hashable, Any]) -> Scaler:
        mask = data[self.body_key]
        body = torch.as_tensor(mask).detach().cpu().numpy()
        if self.fit is None:
            found = mr_scaler(volume, body, self.percentiles)
        else:
            found = self.fit(volume[0], body[0] > 0, grid_of(mask).spacing.tolist())
        return replace(found, inverted=self.inverted, floor=self.floor)


def fitted_scaler(volume: Any) -> Scaler:
    """The scaler that the last intensity transform applied to this MetaTensor used."""
    for applied in reversed(volume.applied_operations):
        if applied[TraceKeys.CLASS_NAME] in ("ScaleCTd", "ScaleMRd"):
            return Scaler.from_dict(applied[TraceKeys.EXTRA_INFO])
    raise ValueError("no intensity transform was applied to this volume")
