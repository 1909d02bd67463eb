"""Volumes of a domain with another orientation: with other axes, or with left and right exchanged."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from medcyclegan.qc.rules import Finding, Volume
from medcyclegan.survey.anatomy import SIGNATURE
from medcyclegan.survey.volume import Survey

_TURNED = 0.05
_CHANCE = 0.001
_PLACES = 4  # of a cube of 13 mm, and as many on the other side: a marker, or where a coil is nearest
_COMMON = 0.4
_REVERSED = 0.5


def turned_or_mirrored(domain: str, volumes: Sequence[Volume]) -> Iterator[Finding]:
    """Volumes that fit the others better when they are turned or mirrored."""
    known = [m for m in volumes if m.survey.anatomy is not None and m.survey.anatomy.head is not None]
    loose = [m for m in volumes if m.survey.anatomy is not None and m.survey.anatomy.head is None]
    if len(known) < 4:
        return
    pictures = unit([m.survey.anatomy.signatures[2] for m in known if m.survey.anatomy])
    total = pictures.sum(axis=0)
    wrong: set[int] = set()
    for index, volume in enumerate((*known, *loose)):
        rest = total - pictures[index] if index < len(known) else total
        as_is, better, words = _best_turn(volume.survey, rest / np.linalg.norm(rest))
        if better > as_is + _TURNED and better > 0.7:
            wrong.add(index)
            yield Finding(
                "turned",
                domain,
                str(volume.survey.file),
                f"it fits the others better {words} (correlation {better:.2f} instead of {as_is:.2f})",
                "The axes in its header are probably wrong: convert it again from DICOM.",
            )
    yield from _mirrored(domain, [m for index, m in enumerate(known) if index not in wrong])


def _best_turn(survey: Survey, rest: npt.NDArray[np.float32]) -> tuple[float, float, str]:
    """Correlation in the header's orientation, the best one in another orientation, and that orientation in words."""
    assert survey.anatomy is not None
    as_is, best, words = 0.0, -1.0, ""
    for up, stack in enumerate(survey.anatomy.signatures):
        for swap, x, y in itertools.product((False, True), (1, -1), (1, -1)):
            turned = (stack.transpose(1, 0, 2) if swap else stack)[::x, ::y]
            correlation = float(unit([turned])[0] @ rest)
            if up == 2 and not swap and y == 1:
                as_is = max(as_is, correlation)  # a mirrored volume stands upright
            elif correlation > best:
                best = correlation
                words = "upside down" if up == 5 else "with front and back exchanged" if up == 2 else "with other axes"
                words = "with its axes within the slice exchanged" if up == 2 and swap else words
    return as_is, best, words


def _mirrored(domain: str, volumes: Sequence[Volume]) -> Iterator[Finding]:
    """Volumes with the reverse of the left-right asymmetry that the domain shares, if it shares one."""
    if len(volumes) < 4:
        return
    uneven = np.stack([_uneven(m.survey.anatomy.signatures[2]) for m in volumes if m.survey.anatomy])
    fits = np.array([_with_the_others(uneven, index) for index in range(len(volumes))])
    against = int((fits < 0).sum())
    # Two-sided sign test: without a common asymmetry, either sign is as likely as the other.
    chance = 2 * sum(math.comb(len(fits), n) for n in range(against + 1)) / 2 ** len(fits)
    if against > len(fits) / 4 or chance > _CHANCE or np.median(fits) < _COMMON:
        yield Finding(
            "symmetric",
            domain,
            "",
            f"its {len(fits)} heads have no left-right asymmetry in common that would show a mirrored one",
            "Check the converter once with a volume that carries a marker.",
        )
        return
    for volume, fit in zip(volumes, fits, strict=True):
        if fit < -_REVERSED:
            yield Finding(
                "mirrored",
                domain,
                str(volume.survey.file),
                f"its left-right asymmetry is the reverse of that of the others ({fit:.2f} times it)",
                "Check left and right in the original; convert it again from DICOM.",
            )


def _uneven(signature: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
    """The asymmetric part of a signature about its best mirror plane; flattened, of norm 1."""
    picture, least, rest = signature.astype(np.float32), np.inf, None
    index = np.arange(SIGNATURE, dtype=np.float32)
    for shift in np.linspace(-1.2, 1.2, 13):
        low = np.clip(np.floor(index + shift).astype(int), 0, SIGNATURE - 2)
        part = np.clip(index + shift - low, 0, 1)[:, None, None]
        moved = picture[low] * (1 - part) + picture[low + 1] * part
        difference = moved - moved[::-1]
        left = float((difference**2).sum() / max(((moved - moved.mean()) ** 2).sum(), 1e-9))
        if left < least:
            least, rest = left, difference
    assert rest is not None
    return np.asarray(rest.ravel() / max(float(np.linalg.norm(rest)), 1e-9), dtype=np.float32)


def _with_the_others(uneven: npt.NDArray[np.float32], index: int) -> float:
    """One asymmetry as a multiple of the median of the others, at the positions where these agree most.

    Elsewhere left and right differ by chance, which hides the common asymmetry.
    """
    rest = np.delete(uneven, index, axis=0)
    middle = np.median(rest, axis=0)
    spread = np.median(np.abs(rest - middle), axis=0)
    steady = np.abs(middle) / (spread + np.median(spread) + 1e-9)
    chosen = np.argsort(steady)[-2 * _PLACES :]  # every place with its mirror image
    own, usual = uneven[index][chosen], middle[chosen]
    return float(own @ usual / max(float(usual @ usual), 1e-12))


def unit(pictures: Sequence[npt.NDArray[np.generic]]) -> npt.NDArray[np.float32]:
    """(N, voxels), zero mean, length 1."""
    flat = np.stack([np.asarray(picture, dtype=np.float32).ravel() for picture in pictures])
    flat -= flat.mean(axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9))
