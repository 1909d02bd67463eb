"""What the columns of cases.csv mean: label, unit, and which direction is better.

A column that is not known here keeps its own name, without a unit and without a direction.
"""

from __future__ import annotations

from dataclasses import dataclass

from medcyclegan.evaluation.statistics import Better

# The start of a column's name -> label, unit, which direction is better. Longer starts are tried first.
_KNOWN: dict[str, tuple[str, str, Better | None]] = {
    "mae": ("MAE", "HU", "lower"),
    "me": ("ME", "HU", "zero"),
    "rmse": ("RMSE", "HU", "lower"),
    "psnr": ("PSNR", "dB", "higher"),
    "ssim": ("SSIM", "", "higher"),
    "ms_ssim": ("MS-SSIM", "", "higher"),
    "ncc": ("NCC", "", "higher"),
    "mutual_information": ("Mutual information", "", "higher"),
    "gradient_similarity": ("Gradient similarity", "", "higher"),
    "wasserstein": ("Wasserstein distance", "HU", "lower"),
    "dice": ("Dice", "", "higher"),
    "hd95": ("HD95", "mm", "lower"),
    "surface_distance": ("Surface distance", "mm", "lower"),
    "classes_found": ("Classes found", "", "higher"),
    "wepl": ("WEPL difference", "mm", "lower"),
    "radiological": ("Radiological depth difference", "mm", "lower"),
    "share": ("Share of the mask", "", None),
    "misregistration": ("Misregistration estimate", "mm", "lower"),
    "shift": ("Shift", "mm", None),
    "rotation": ("Rotation", "°", None),
}
_STARTS = sorted(_KNOWN, key=len, reverse=True)
_UNITS = {"mm": "mm", "hu": "HU", "deg": "°", "percent": "%"}
_ARROWS = {"lower": " ↓", "higher": " ↑", "zero": " → 0", None: ""}
TISSUES = ("air", "soft", "bone")


@dataclass(frozen=True)
class Heading:
    """A column's heading.

    Attributes:
        label: words, such as "MAE bone".
        unit: such as "HU"; empty where there is none or it is unknown.
        better: which direction is better; None if neither is, as for the share of a tissue.
    """

    label: str
    unit: str = ""
    better: Better | None = None

    def __str__(self) -> str:
        return self.label + (f" [{self.unit}]" if self.unit else "") + _ARROWS[self.better]


def heading(column: str) -> Heading:
    """The heading of a column of cases.csv, made from its name: "hd95_bone_mm" becomes "HD95 bone [mm] ↓"."""
    start = next((start for start in _STARTS if column == start or column.startswith(start + "_")), "")
    label, unit, better = _KNOWN.get(start, ("", "", None))
    words = column.removeprefix(start).strip("_").split("_")
    if words[-1] in _UNITS and (start or len(words) > 1):
        unit = _UNITS[words.pop()]
    if start and len(words) > 1 and words[-1].isdigit():  # a threshold: dice_bone_200
        words[-1] = f"> {words[-1]} HU"
    return Heading(" ".join([label, *words]).strip(), unit, better)
