"""How synthetic CTs are scored: one description, checked as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from medcyclegan.errors import InputError
from medcyclegan.evaluation.metrics.tissue import Tissues
from medcyclegan.evaluation.protocol import Protocol
from medcyclegan.evaluation.protocol import protocol as protocol_named
from medcyclegan.evaluation.range_error import ANGLES, Curve, load_calibration
from medcyclegan.transforms.intensity import CT_WINDOW


@dataclass(frozen=True)
class Scoring:
    """How synthetic CTs are scored.

    Attributes:
        protocol: name of the metrics and the HU range, see `medcyclegan.evaluation.protocol`.
        tissues: thresholds between air, soft tissue and bone.
        bone: thresholds in HU at which bone surfaces are compared.
        angles: gantry angles of the range errors, degrees.
        calibration: HU to relative stopping power and electron density, from `load_calibration`.
        range_maps: write a map of range errors in the target per case.
        segment: make the label maps with TotalSegmentator, which must be installed.
        resample: bring a prediction on another grid onto the reference's, instead of failing the case.
        register: move the prediction rigidly onto the reference before it is graded; it changes the scores.
        device: where SSIM and MS-SSIM are computed: "cpu", "cuda" or "cuda:N".

    Raises:
        InputError: a value cannot be used.
    """

    protocol: str = "native"
    tissues: Tissues = field(default_factory=Tissues)
    bone: tuple[float, ...] = (200.0,)
    angles: tuple[float, ...] = ANGLES
    calibration: Mapping[str, Curve] = field(default_factory=load_calibration)
    range_maps: bool = False
    segment: bool = False
    resample: bool = False
    register: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        protocol_named(self.protocol)
        for name, values in (("angles", self.angles), ("bone thresholds", self.bone)):
            if not values or not np.isfinite(values).all() or len(set(values)) < len(values):
                raise InputError(f"{name} {list(values)}: different, finite numbers are needed, at least one.")
        low, high = CT_WINDOW
        if not all(low < threshold < high for threshold in self.bone):
            raise InputError(f"bone thresholds {list(self.bone)}: each lies between {low:g} and {high:g} HU.")
        if self.range_maps and "relative_stopping_power" not in self.calibration:
            raise InputError("A map of range errors needs the relative_stopping_power of the calibration.")
        if self.resample and self.register:
            raise InputError("Resampling and registering would interpolate twice.", "Give one of the two.")
        _refuse_device(self.device)

    @property
    def rules(self) -> Protocol:
        """The protocol of that name."""
        return protocol_named(self.protocol)


def _refuse_device(name: str) -> None:
    try:
        known = torch.device(name)
    except RuntimeError:
        known = None
    if known is None or known.type not in ("cpu", "cuda"):
        raise InputError(f"The device '{name}' cannot be used here; it is cpu, cuda or cuda:N (float64 is needed).")
    if known.type == "cuda" and (not torch.cuda.is_available() or (known.index or 0) >= torch.cuda.device_count()):
        raise InputError(f"There is no device '{name}': {torch.cuda.device_count()} CUDA devices can be seen.")
