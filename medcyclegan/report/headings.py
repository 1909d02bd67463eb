"""What the columns of a table of scores mean: label, unit, which direction is better, and which tissue they belong to.

A column that is not known here is shown under its own name, without a unit and without a direction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Better is: down (smaller), up (larger), zero (nearer 0), or nothing where neither is better.
_ARROWS = {"down": " ↓", "up": " ↑", "zero": " → 0", "": ""}
_BETTER = {"down": "smaller is better", "up": "larger is better", "zero": "nearer 0 is better", "": ""}

# The start of a column's name -> label, unit, better. Longer starts are tried first.
_KNOWN = {
    "mae": ("MAE", "HU", "down"),
    "me": ("ME", "HU", "zero"),
    "rmse": ("RMSE", "HU", "down"),
    "psnr": ("PSNR", "dB", "up"),
    "ssim": ("SSIM", "", "up"),
    "ms_ssim": ("MS-SSIM", "", "up"),
    "ncc": ("NCC", "", "up"),
    "mi": ("Mutual information", "", "up"),
    "mutual_information": ("Mutual information", "", "up"),
    "dice": ("Dice", "", "up"),
    "kid": ("KID", "", "down"),
    "mmd": ("MMD", "", "down"),
    "hd95": ("HD95", "mm", "down"),
    "surface_distance": ("Surface distance", "mm", "down"),
    "assd": ("Surface distance", "mm", "down"),
    "msd": ("Surface distance", "mm", "down"),
    "wasserstein": ("Wasserstein distance", "HU", "down"),
    "gms": ("Gradient similarity", "", "up"),
    "gradient_similarity": ("Gradient similarity", "", "up"),
    "wepl": ("WEPL difference", "mm", "down"),
    "radiological": ("Radiological depth difference", "mm", "down"),
    "share": ("Share of the mask", "", ""),
    "misregistration": ("Misregistration estimate", "mm", ""),
    "shift": ("Shift", "mm", ""),
    "rotation": ("Rotation", "°", ""),
}
_UNITS = {"mm": "mm", "hu": "HU", "deg": "°", "degrees": "°", "percent": "%"}
TISSUES = ("air", "soft", "bone")
TISSUE_SCORES = ("mae", "me", "share")
_TISSUE = re.compile(rf"({'|'.join(TISSUE_SCORES)})_({'|'.join(TISSUES)})")


@dataclass(frozen=True)
class Heading:
    """A column's heading.

    Attributes:
        label: words, such as "MAE bone".
        unit: such as "HU"; empty where there is none or it is unknown.
        better: "down", "up", "zero", or empty where neither is known to be better.
    """

    label: str
    unit: str = ""
    better: str = ""

    def __str__(self) -> str:
        return self.label + (f" [{self.unit}]" if self.unit else "") + _ARROWS[self.better]

    @property
    def words(self) -> str:
        """The same for a sentence: "MAE in HU, smaller is better"."""
        return (
            self.label
            + (f" in {self.unit}" if self.unit else "")
            + (f", {_BETTER[self.better]}" if self.better else "")
        )


def heading(column: str) -> Heading:
    """The heading of a column of cases.csv, made from its name: "hd95_bone_mm" becomes "HD95 bone [mm] ↓"."""
    for start in sorted(_KNOWN, key=len, reverse=True):
        if column == start or column.startswith(start + "_"):
            label, unit, better = _KNOWN[start]
            words = column.removeprefix(start).strip("_").split("_")
            if words and words[-1] in _UNITS:
                unit = _UNITS[words.pop()]
            if len(words) > 1 and words[-1].isdigit():  # a threshold: dice_bone_200
                words[-1] = f"> {words[-1]} HU"
            return Heading(" ".join([label, *words]).strip(), unit, better)
    words = column.split("_")
    unit = _UNITS[words.pop()] if len(words) > 1 and words[-1] in _UNITS else ""
    return Heading(" ".join(words), unit)


def tissue_of(column: str) -> tuple[str, str] | None:
    """("mae", "bone") for "mae_bone": which score of which tissue a column is; None for any other column."""
    found = _TISSUE.fullmatch(column)
    return (found[1], found[2]) if found else None
