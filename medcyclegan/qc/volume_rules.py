"""Findings about a single volume: its header, geometry, values and body."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from medcyclegan.io.plausible import impossible_hu
from medcyclegan.qc.rules import AXES, T2, Finding, Volume
from medcyclegan.survey.anatomy import CUT_TOP_CM2, SKULL_DIP
from medcyclegan.survey.volume import METAL_HU, Survey

_CUT_SIDE_CM2 = 75.0
_FACES = ("left", "right", "back", "front", "lower", "upper")
_SHARP_MM = 4.0  # in slices with larger voxels, skull and brain share many voxels


def volume_findings(volume: Volume) -> list[Finding]:
    """Findings about a single volume."""
    return [
        Finding(code, volume.domain, str(volume.survey.file), message, remedy)
        for code, message, remedy in _of_survey(volume.survey, volume.modality)
    ]


_Found = tuple[str, str, str]  # code, message, remedy


def _of_survey(survey: Survey, modality: str | None) -> Iterator[_Found]:
    if survey.problem is not None:
        text = survey.problem.removeprefix(f"{survey.file}: ").removeprefix(f"{survey.file} ").strip()
        message, _, remedy = text.partition(". ")
        yield "unreadable", message.rstrip("."), remedy or "Mend that, or leave the volume out."
        return
    for remark in survey.remarks:
        yield "header", remark.rstrip("."), "Look at the volume beside another one in a viewer."
    yield from _of_geometry(survey)
    if survey.not_finite:
        inside = survey.not_finite_inside
        place = "" if inside is None else f", {inside} of them in the body" if inside else ", none of them in the body"
        yield (
            "not_finite",
            f"{survey.not_finite} voxels are NaN or infinite{place}",
            "--fix writes a copy with air there." if inside == 0 else "Export it again.",
        )
    if survey.constant:
        yield "constant", f"every voxel holds the same value ({survey.minimum:g})", "Export it again."
    if survey.kind is None:
        return
    yield from _of_values(survey, modality)
    if survey.no_body is not None:
        yield (
            "no_body",
            survey.no_body.split(". ")[0].rstrip("."),
            "Check that it shows a patient, or give a body mask.",
        )
    if survey.anatomy is not None:
        yield from _of_body(survey, modality)


def _of_geometry(survey: Survey) -> Iterator[_Found]:
    if survey.spacing and max(survey.spacing) > 3 and max(survey.spacing) >= 3 * min(survey.spacing):
        axis = AXES[int(np.argmax(survey.spacing))]
        yield (
            "thick_slices",
            f"slices are {max(survey.spacing):.3g} mm thick {axis} with pixels of {min(survey.spacing):.3g} mm",
            "Translate slice by slice (2D), or use a thin reconstruction.",
        )
    if survey.tilt_degrees is not None and survey.tilt_degrees >= 15:
        yield (
            "oblique",
            f"the axes are turned by {survey.tilt_degrees:.0f} degrees",
            "Nothing needs to be done: results lie on the volume's own grid.",
        )


def _of_values(survey: Survey, modality: str | None) -> Iterator[_Found]:
    header = survey.header_modality
    assert survey.minimum is not None and survey.maximum is not None
    if header and modality and header != modality:
        yield "modality", f"the DICOM header says {header}, the domain is {modality}", "Move it to its domain."
    elif modality == "MR" and survey.kind in ("hu", "hu_offset"):
        shifted = " + 1024" if survey.kind == "hu_offset" else ""
        yield "modality", f"values look like a CT in Hounsfield units{shifted}, not like an MR", "Move it to CT."
    elif modality == "CT" and (why := impossible_hu(survey.minimum, survey.maximum)):
        yield "impossible_hu", why, "Give the CT in HU, with air (-1024) where nothing was measured."
    elif modality == "CT" and survey.kind == "other":
        if survey.distinct is not None and survey.distinct <= 256:
            yield (
                "eight_bit",
                f"{survey.distinct} values from {survey.minimum:g} to {survey.maximum:g}: no Hounsfield units",
                "Convert the original DICOM again; HU cannot be recovered from pictures.",
            )
        else:
            yield (
                "modality",
                f"values ({survey.minimum:g} to {survey.maximum:g}) do not look like Hounsfield units: no air near "
                "-1000 beside tissue near 0",
                "If it is an MR, move it; if it is a CT that was windowed, scaled or masked, export it again in HU.",
            )
    if survey.kind == "hu_offset" and modality in ("CT", None):
        yield (
            "hu_offset",
            f"values from {survey.minimum:g} to {survey.maximum:g} look like HU + 1024",
            "--fix writes a copy less 1024." if modality == "CT" else "If it is a CT, subtract 1024.",
        )
    if survey.kind == "hu" and survey.distinct is not None and survey.distinct <= 256 and modality != "MR":
        yield (
            "few_values",
            f"only {survey.distinct} different values from {survey.minimum:g} to {survey.maximum:g} HU",
            "It passed through 8 bits; take the original where HU must be exact.",
        )
    if survey.kind == "hu" and modality != "MR" and survey.padding:
        yield (
            "padding",
            f"{100 * survey.padding:.2g} % of the voxels lie below -1100 HU (smallest {survey.minimum:g})",
            "Preparation clips them to air" + "; --fix writes a copy with -1024 there" * (modality == "CT") + ".",
        )


def _of_body(survey: Survey, modality: str | None) -> Iterator[_Found]:
    body = survey.anatomy
    assert body is not None
    ct = survey.kind != "other"
    if max(body.extent_mm) < 40 or max(body.extent_mm) > 2200:
        size = " x ".join(f"{e:.3g}" for e in body.extent_mm)
        yield "size", f"the body measures {size} mm", "Check the unit of length in the header."
    faces = [
        f"{name} ({area:.0f} cm2)"
        for name, area in zip(_FACES, body.contact_cm2, strict=True)
        if name != "lower" and area >= (CUT_TOP_CM2 if name == "upper" else _CUT_SIDE_CM2)
    ]
    if faces:
        yield (
            "cut_off",
            f"the body is cut at the {', '.join(faces)} face of the volume",
            "What is not in the volume cannot be translated; use a larger field of view, or leave it out of training.",
        )
    if ct and survey.kind == "hu" and body.air is not None and abs(body.air + 1000) > 60:
        yield (
            "air",
            f"the air around the body has {body.air:.0f} HU, not about -1000",
            "Check slope and intercept, and whether the background was masked.",
        )
    if body.table:
        yield "table", "a table or holder lies beside the body", "Nothing: preparation leaves it out."
    if ct and survey.metal_ml is not None and survey.metal_ml >= 0.05:
        yield (
            "metal",
            f"{survey.metal_ml:.2g} ml above {METAL_HU:g} HU",
            "Look for streaks; leave it out of training if they cross what matters.",
        )
    if ct or modality != "CT":
        yield from _of_contrast_agent(survey)
    if body.head is None:
        return
    stripped = body.head.skull_share is not None and body.head.skull_share < 0.15
    if body.head.skull_dip is not None and modality != "CT":
        stripped = body.head.skull_dip < SKULL_DIP and body.outside[1] > 0.98
    if stripped:
        yield (
            "stripped",
            "no skull under a scalp: the head is skull-stripped",
            "Use the original volume; a CT has the skull that this MR lacks."
            if not ct
            else "Use the original volume; an MR has the scalp that this CT lacks.",
        )
    recession = body.head.recession_mm
    if recession is not None and recession >= 12 and body.contact_cm2[3] < CUT_TOP_CM2 and not stripped:
        yield (
            "defaced",
            f"the face lies {recession:.0f} mm behind the forehead: defaced",
            "Keep defaced volumes in both domains or in none, and do not judge the face.",
        )


def _of_contrast_agent(survey: Survey) -> Iterator[_Found]:
    head = survey.anatomy.head if survey.anatomy else None
    share = head.enhanced_share if head else None
    weighted = head is None or head.t1_score is None or head.t1_score >= T2
    reason = None
    if survey.contrast_agent:
        reason = "the DICOM header names a contrast agent"
    elif share is not None and share > 0.005 and weighted and survey.spacing and sorted(survey.spacing)[1] <= _SHARP_MM:
        reason = f"{100 * share:.2g} % of the inner brain is brighter than brain can be, as with a contrast agent"
    if reason:
        yield "contrast", reason, "Train on volumes of one kind; enhanced vessels turn into false density."
