"""The result of one metric on one case, and the voxels that it uses.

A *metric* is a function of (reference, synthetic, mask, limits): the reference and the synthetic CT as (X, Y, Z) arrays
in HU, a mask of the same shape (voxels above 0 count; None means all voxels) and the (low, high) HU limits of the
protocol. It is nan with the reason for an empty mask or values in it that are not finite, and raises ValueError if
the shapes differ or are not three-dimensional. The decorators `metric` and `voxelwise` do these checks for a plain
formula. Everything is computed in float64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

Volume = npt.NDArray[np.floating] | npt.NDArray[np.integer]
Mask = npt.NDArray[Any]
Inside = npt.NDArray[np.bool_]
Limits = tuple[float, float]
Values = npt.NDArray[np.float64]
More = ParamSpec("More")
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Score:
    """A number, with the reason if it is not finite.

    Attributes:
        value: the metric; nan where it is undefined.
        reason: why `value` is nan or infinite; None for an ordinary number.

    Raises:
        ValueError: a nan or infinite value without a reason, or a reason beside an ordinary number.
    """

    value: float
    reason: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", float(self.value))
        if math.isfinite(self.value) == bool(self.reason):
            raise ValueError(f"a score has a reason exactly if it is not finite, got {self.value} and {self.reason!r}")


def undefined(reason: str) -> Score:
    """The score of a metric that has no value here."""
    return Score(math.nan, reason)


def inside_of(mask: Mask | None, shape: tuple[int, ...]) -> Inside:
    """The voxels that count, (X, Y, Z) bool: those above 0, or all of them without a mask."""
    return np.ones(shape, dtype=bool) if mask is None else np.asarray(mask) > 0


def why_undefined(reference: Volume, synthetic: Volume, inside: Inside) -> str | None:
    """Why metrics are undefined on these arrays; None if they are defined.

    Raises:
        ValueError: the arrays are not three-dimensional or differ in shape.
    """
    if reference.ndim != 3 or not reference.shape == synthetic.shape == inside.shape:
        raise ValueError(
            "metrics need (X, Y, Z) arrays of one shape, got "
            f"reference {reference.shape}, synthetic {synthetic.shape}, mask {inside.shape}"
        )
    if not inside.any():
        return "the mask is empty"
    for name, volume in (("reference", reference), ("synthetic CT", synthetic)):
        bad = int(np.count_nonzero(~np.isfinite(volume[inside])))
        if bad:
            return f"the {name} is not a finite number in {bad} voxel(s) of the mask"
    return None


def within(volume: Volume, inside: Inside, limits: Limits) -> npt.NDArray[np.float64]:
    """The volume clipped to the limits, with the low limit outside the mask, minus the low limit.

    Returns:
        (X, Y, Z) float64 in [0, high - low], exactly 0 outside the mask whatever the volume holds there.
    """
    low, high = limits
    shifted = np.zeros(volume.shape, dtype=np.float64)
    shifted[inside] = np.clip(volume[inside].astype(np.float64), low, high) - low
    return shifted


def metric(
    formula: Callable[Concatenate[Volume, Volume, Inside, Limits, More], Score],
) -> Callable[Concatenate[Volume, Volume, Mask | None, Limits, More], Score]:
    """Make a metric of a formula that takes the mask as (X, Y, Z) bool."""

    def measured(
        reference: Volume, synthetic: Volume, mask: Mask | None, limits: Limits, *args: More.args, **more: More.kwargs
    ) -> Score:
        inside = inside_of(mask, reference.shape)
        reason = why_undefined(reference, synthetic, inside)
        return undefined(reason) if reason else formula(reference, synthetic, inside, limits, *args, **more)

    return _named_as(formula, measured)


def voxelwise(
    formula: Callable[[Values, Values, Limits], Score | float],
) -> Callable[[Volume, Volume, Mask | None, Limits], Score]:
    """Make a metric of a formula that takes both CTs as (N,) float64 HU: the N voxels in the mask."""

    def measured(reference: Volume, synthetic: Volume, inside: Inside, limits: Limits) -> Score:
        found = formula(reference[inside].astype(np.float64), synthetic[inside].astype(np.float64), limits)
        return found if isinstance(found, Score) else Score(found)

    return metric(_named_as(formula, measured))


def _named_as(formula: Callable[..., Any], measured: Function) -> Function:
    """Name and docstring of the formula; the signature stays that of the metric."""
    functools.update_wrapper(measured, formula, ("__module__", "__name__", "__qualname__", "__doc__"), ())
    del measured.__wrapped__  # type: ignore[attr-defined]
    return measured
