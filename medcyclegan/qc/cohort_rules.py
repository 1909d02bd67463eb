"""Findings from comparing the volumes of a domain, and the two domains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from medcyclegan.qc.orientation import turned_or_mirrored, unit
from medcyclegan.qc.rules import AXES, T1, T2, Finding, Volume
from medcyclegan.survey.anatomy import CUT_TOP_CM2, SIGNATURE

_SAME = 0.998


def cohort_findings(volumes: Sequence[Volume], modalities: Mapping[str, str]) -> list[Finding]:
    """Findings from comparing volumes within a domain, and the domains "a" and "b".

    Args:
        volumes: of all domains.
        modalities: domain to modality, for messages only.
    """
    found: list[Finding] = [*_same_ids(volumes), *_duplicates(volumes)]
    domains: dict[str, list[Volume]] = defaultdict(list)
    for volume in volumes:
        domains[volume.domain].append(volume)
    for domain, inside in domains.items():
        # Volumes of no domain need not belong together.
        for check in (turned_or_mirrored, _mixed_contrasts, _unlike) if domain else ():
            found += check(domain, inside)
    if "a" in domains and "b" in domains:
        found += _between(domains["a"], domains["b"], modalities)
    return found


def _same_ids(volumes: Sequence[Volume]) -> Iterator[Finding]:
    places: dict[tuple[str, str], list[Volume]] = defaultdict(list)
    for volume in volumes:
        if volume.domain:
            places[volume.domain, volume.case].append(volume)
    for (domain, case), twins in places.items():
        for volume in twins if len(twins) > 1 else ():
            others = ", ".join(str(m.survey.file) for m in twins if m is not volume)
            yield Finding(
                "same_id",
                domain,
                str(volume.survey.file),
                f"the case id '{case}' is that of {others} too",
                "Rename one.",
            )


def _duplicates(volumes: Sequence[Volume]) -> Iterator[Finding]:
    by_digest: dict[str, list[Volume]] = defaultdict(list)
    for volume in volumes:
        if volume.survey.digest and not volume.survey.constant:
            by_digest[volume.survey.digest].append(volume)
    for same in by_digest.values():
        for index, volume in enumerate(same if len(same) > 1 else ()):
            yield _copy_of(volume, same[index - 1], "duplicate", "it has the same voxels as")
    # A linear rescaling of the values does not change the signature, nor does the type or format.
    singles = [same[0] for same in by_digest.values() if same[0].survey.anatomy is not None]
    if not singles:
        return
    upright = unit([m.survey.anatomy.signatures[2] for m in singles if m.survey.anatomy])
    for start in range(0, len(singles), 512):  # in blocks: ten thousand volumes make a hundred million pairs
        block = slice(start, start + 512)
        turned = upright[block].reshape(-1, SIGNATURE, SIGNATURE, SIGNATURE)[:, ::-1].reshape(-1, SIGNATURE**3)
        straight, reversed_ = upright[block] @ upright.T, turned @ upright.T
        for i, j in np.argwhere((straight > _SAME) | (reversed_ > _SAME)):
            first, second = singles[j], singles[start + i]
            if j != start + i and straight[i, j] >= reversed_[i, j]:
                yield _copy_of(second, first, "duplicate", "it looks the same as")
            elif j != start + i:
                yield _copy_of(second, first, "mirrored_copy", "it is the left-right mirror image of")


def _copy_of(volume: Volume, other: Volume, code: str, words: str) -> Finding:
    across = volume.domain != other.domain
    remedy = "The domains must not share volumes; remove one." if across else "Remove one."
    if code == "mirrored_copy":
        remedy = "Find out which one has left and right exchanged, and remove it."
    return Finding(code, volume.domain, str(volume.survey.file), f"{words} {other.survey.file}", remedy)


def _mixed_contrasts(domain: str, volumes: Sequence[Volume]) -> Iterator[Finding]:
    heads = {
        m.survey.file: m.survey.anatomy.head.t1_score
        for m in volumes
        if m.modality != "CT"
        and m.survey.anatomy
        and m.survey.anatomy.head
        and m.survey.anatomy.head.t1_score is not None
    }
    kinds = {"T1": [f for f, s in heads.items() if s > T1], "T2": [f for f, s in heads.items() if s < T2]}
    if not all(kinds.values()):
        return
    rare, usual = sorted(kinds, key=lambda kind: len(kinds[kind]))
    if len(kinds[rare]) == len(kinds[usual]):
        files = ", ".join(map(str, kinds[rare][:3]))
        yield Finding(
            "mixed_contrast",
            domain,
            "",
            f"{len(kinds[rare])} volumes look {rare}-weighted ({files}{', ...' if len(kinds[rare]) > 3 else ''}), "
            f"as many {usual}-weighted",
            "Train on one contrast, or give them as channels.",
        )
        return
    for file in kinds[rare]:
        yield Finding(
            "mixed_contrast",
            domain,
            str(file),
            f"it looks {rare}-weighted, {len(kinds[usual])} others of the domain {usual}-weighted",
            "Train on one contrast.",
        )


def _unlike(domain: str, volumes: Sequence[Volume]) -> Iterator[Finding]:
    spacings = [(m, m.survey.spacing) for m in volumes if m.survey.spacing]
    if len(spacings) >= 4:
        median = np.median([s for _, s in spacings], axis=0)
        for volume, spacing in spacings:
            off = [i for i in range(3) if not 0.4 <= spacing[i] / median[i] <= 2.5]
            if off:
                words = ", ".join(f"{spacing[i]:.3g} mm {AXES[i]} (median {median[i]:.3g})" for i in off)
                yield Finding(
                    "spacing_unlike",
                    domain,
                    str(volume.survey.file),
                    f"voxels measure {words}",
                    "Check the header; leave it out if it is another kind of scan.",
                )
    bodies = [(m, m.survey.anatomy) for m in volumes if m.survey.anatomy]
    heads = [(m, b) for m, b in bodies if b.head]
    if len(bodies) >= 5 and len(heads) not in (0, len(bodies)):
        most = len(heads) >= 0.8 * len(bodies)
        odd = [m for m, b in bodies if (b.head is None) == most] if most or len(heads) <= 0.2 * len(bodies) else []
        for volume in odd:
            what = "no head, as most of the domain are" if most else "a head, as few of the domain are"
            yield Finding(
                "other_body", domain, str(volume.survey.file), f"it shows {what}", "Leave it out, or crop it."
            )
    if len(bodies) >= 4:
        usual = np.median([b.extent_mm for _, b in bodies], axis=0)
        for volume, body in bodies:
            off = [i for i in (0, 1) if not 1 / 1.5 <= body.extent_mm[i] / usual[i] <= 1.5]
            if off:
                words = ", ".join(f"{body.extent_mm[i]:.0f} mm {AXES[i]} (median {usual[i]:.0f})" for i in off)
                yield Finding(
                    "size_unlike",
                    domain,
                    str(volume.survey.file),
                    f"the body measures {words}",
                    "Check its voxel size and what it shows.",
                )


def _between(a: Sequence[Volume], b: Sequence[Volume], modalities: Mapping[str, str]) -> Iterator[Finding]:
    bodies = [[m.survey.anatomy for m in domain if m.survey.anatomy] for domain in (a, b)]
    if not all(bodies):
        return
    first, second = (np.median([body.extent_mm for body in domain], axis=0) for domain in bodies)
    names = [f"a ({modalities.get('a', '?')})", f"b ({modalities.get('b', '?')})"]
    for i in range(3):
        if not 1 / 1.3 <= first[i] / second[i] <= 1.3:
            yield Finding(
                "domains_view",
                "",
                "",
                f"the body seen measures {first[i]:.0f} mm {AXES[i]} in {names[0]} and {second[i]:.0f} in {names[1]}",
                "Crop to what both show, or match positions (patches.matching).",
            )
    heads: list[list[float]] = [
        [
            float(np.sqrt(body.head.width_mm * body.head.length_mm))
            for body in domain
            if body.head and max(body.contact_cm2[:4]) < CUT_TOP_CM2 and not body.cut_at_top
        ]
        for domain in bodies
    ]
    if min(map(len, heads)) >= 3:
        ratio = float(np.median(heads[0]) / np.median(heads[1]))
        if not 1 / 1.08 <= ratio <= 1.08:
            yield Finding(
                "domains_size",
                "",
                "",
                f"heads of {names[0]} are {100 * abs(ratio - 1):.0f} % {'larger' if ratio > 1 else 'smaller'} than "
                f"those of {names[1]}",
                "Compare the ages of the patients; children's heads must be in both domains.",
            )
