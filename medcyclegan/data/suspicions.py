"""What is suspicious about volumes: of one by itself, of one beside the others of its domain, of the two domains.

A *suspicion* is a reason to look, with its remedy. Its severity says what follows: an *error* makes training or its
result wrong, a *warning* may, a *note* is worth knowing. Each has a criterion with a stated rationale, `RULES`; the
thresholds were set on phantom heads (seeds below 400) and seven real heads, and are tested on other phantoms.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medcyclegan.data.anatomy import SIGNATURE
from medcyclegan.data.facts import METAL_HU, Facts

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)


@dataclass(frozen=True)
class Rule:
    """When something is suspected, and why then."""

    severity: str
    criterion: str


RULES: dict[str, Rule] = {
    "unreadable": Rule(ERROR, "the file cannot be read as one scalar 3D volume; the reader's own reason is given"),
    "not_finite": Rule(ERROR, "a voxel is NaN or infinite: it would spread through every convolution"),
    "constant": Rule(ERROR, "every voxel holds the same value"),
    "no_body": Rule(WARNING, "no connected piece brighter than the background fills 0.5 % of the volume"),
    "modality": Rule(
        ERROR,
        "Hounsfield units have air near -1000 and tissue near 0, each in 1 % of the voxels; an MR folder holds such a "
        "volume, a CT folder one without, or a DICOM header says another modality",
    ),
    "hu_offset": Rule(ERROR, "the values look like HU + 1024: an export that left the intercept out"),
    "eight_bit": Rule(ERROR, "a CT has 256 different values or fewer and they are no HU: it was made a picture"),
    "few_values": Rule(
        WARNING, "a CT has 256 different values or fewer, though its air and water are where they belong"
    ),
    "air": Rule(
        WARNING, "the most frequent value outside the body of a CT is not within 60 of -1000 HU, which noise cannot do"
    ),
    "padding": Rule(NOTE, "a CT has values below -1100 HU, which no matter has: scanners pad round fields of view so"),
    "table": Rule(NOTE, "something wider than 80 mm lies beside the body of a CT; the body mask leaves it out"),
    "contrast": Rule(
        WARNING,
        "a DICOM header names an agent; or more than 0.5 % of the brain deep in the upper head is above 110 HU in CT, "
        "or 1.4 times as bright as its white matter in MR that is not T2-weighted. Faint or extracranial enhancement "
        "is not seen",
    ),
    "stripped": Rule(
        WARNING,
        "MR: no dark layer under a scalp (dip below 7.5 % of the brightness) and nothing but one value around it; "
        "CT: no layer under the surface of a head has 15 % above 250 HU",
    ),
    "defaced": Rule(
        WARNING,
        "where the nose should be, the head lies 12 mm or more behind the forehead. Only of heads whose volume reaches "
        "the upper lip; faces that were blurred are not noticed",
    ),
    "cut_off": Rule(
        WARNING,
        "the body meets the upper face of the volume with 30 cm2 or more (6 mm of a head's vertex), or another face, "
        "the lower one aside, with 75 cm2 or more",
    ),
    "metal": Rule(
        WARNING,
        "0.05 ml of a CT or more is above 3000 HU, denser than enamel. Metal in MR leaves a void that looks like air "
        "and is not noticed",
    ),
    "thick_slices": Rule(WARNING, "voxels are above 3 mm along one axis and 3 times as long as along another"),
    "oblique": Rule(NOTE, "an axis of the volume is turned 15 degrees or more from the patient's"),
    "header": Rule(WARNING, "the header contradicts itself or leaves the orientation open; the reader says how"),
    "size": Rule(
        WARNING, "the body is shorter than 40 mm along every axis or longer than 2.2 m along one: a unit of length?"
    ),
    "same_id": Rule(ERROR, "two volumes of one domain have one case id, and results would overwrite each other"),
    "duplicate": Rule(ERROR, "two volumes have the same voxels, or look the same (correlation 0.998)"),
    "mirrored_copy": Rule(ERROR, "one volume looks like the mirror image of another one (correlation 0.998)"),
    "turned": Rule(
        WARNING,
        "a volume looks more like the mean of its domain when its axes are exchanged or reversed otherwise than left "
        "and right (correlation higher by 0.05)",
    ),
    "mirrored": Rule(
        WARNING,
        "the heads of the domain share a left-right asymmetry (a marker, a coil), more of them than chance explains "
        "(sign test, 0.1 %, so 15 heads at least), and this one, of which nothing else is suspected, has it reversed. "
        "Heads alone are mostly too symmetric to tell",
    ),
    "symmetric": Rule(
        NOTE, "no left-right asymmetry that four heads or more have in common: mirrored ones cannot be told"
    ),
    "mixed_contrast": Rule(
        WARNING,
        "a domain has T1- and T2-weighted heads: the median of the brain lies above 0.52 (T1) or below 0.36 (T2) of "
        "its range; between them, as in FLAIR, nothing is said",
    ),
    "other_body": Rule(WARNING, "four fifths of a domain of five or more are heads and this is none, or the reverse"),
    "spacing_unlike": Rule(WARNING, "a voxel size differs from the domain's median by more than a factor of 2.5"),
    "size_unlike": Rule(WARNING, "the body is 1.5 times as wide or long as the domain's median, or less than 1/1.5"),
    "domains_view": Rule(
        WARNING,
        "the median extent of the body seen, along an axis, differs between the domains by a factor of 1.3: a network "
        "learns to invent or remove what only one of them shows",
    ),
    "domains_size": Rule(
        WARNING,
        "heads of the domains differ in size by 8 %, three or more in each: other ages or populations? Adults of "
        "different ages have heads of one size, and are not told apart",
    ),
}

_CUT_TOP_CM2, _CUT_SIDE_CM2 = 30.0, 75.0
_FACES = ("left", "right", "back", "front", "lower", "upper")
_AXES = ("left-right", "front-back", "head-foot")
_SAME = 0.998
_TURNED = 0.05
_T1, _T2 = 0.52, 0.36
_CHANCE = 0.001
_COMMON = 0.4
_REVERSED = 0.5
_SHARP_MM = 4.0  # in slices of larger voxels skull and brain share many
_OF_UPRIGHT_HEADS = {"contrast", "stripped", "defaced"}


@dataclass(frozen=True)
class Suspicion:
    """One reason to look.

    Attributes:
        code: a key of `RULES`.
        domain: "a", "b", or empty where none was named or both are meant.
        file: which volume; empty where a domain is meant.
        message: what was found, with the number.
        remedy: what to do.
        fixable: whether `--fix` mends it safely.
    """

    code: str
    domain: str
    file: str
    message: str
    remedy: str
    fixable: bool = False

    @property
    def severity(self) -> str:
        return RULES[self.code].severity

    def __str__(self) -> str:
        where = self.file or (f"domain {self.domain}" if self.domain else "the domains")
        return f"{where}: {self.message}. {self.remedy}"


@dataclass(frozen=True)
class Member:
    """A measured volume and its place: domain "a", "b" or "", case id, modality "MR", "CT" or None where unknown."""

    domain: str
    case: str
    modality: str | None
    facts: Facts


def of_volume(member: Member) -> list[Suspicion]:
    """What is suspicious about one volume by itself."""
    return [
        Suspicion(code, member.domain, str(member.facts.file), message, remedy, fixable)
        for code, message, remedy, fixable in _of_facts(member.facts, member.modality)
    ]


def suspicions_of(members: Sequence[Member], modalities: Mapping[str, str]) -> list[Suspicion]:
    """Everything that is suspicious about a cohort, errors first, then in the order of `RULES`.

    Args:
        members: of all domains; domain "" is no cohort, its volumes are compared for duplicates only.
        modalities: domain -> "MR" or "CT".
    """
    beside = of_cohort(members, modalities)
    turned = {s.file for s in beside if s.code == "turned"}
    alone = [s for member in members for s in of_volume(member)]
    # Where the axes are wrong, the face is not where it is looked for.
    found = [s for s in alone if s.file not in turned or s.code not in _OF_UPRIGHT_HEADS]
    # A head that is cut or defaced is unlike the others for that reason.
    doubtful = {s.file for s in alone if s.severity != NOTE}
    found += [s for s in beside if s.code != "mirrored" or s.file not in doubtful]
    order = {code: (SEVERITIES.index(rule.severity), n) for n, (code, rule) in enumerate(RULES.items())}
    return sorted(found, key=lambda s: (order[s.code], s.domain, s.file))


def of_cohort(members: Sequence[Member], modalities: Mapping[str, str]) -> list[Suspicion]:
    """What is suspicious about volumes beside each other, and about the domains "a" and "b" beside each other.

    Args:
        members: of all domains.
        modalities: domain to modality, for words only.
    """
    found: list[Suspicion] = [*_same_ids(members), *_duplicates(members)]
    domains: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        domains[member.domain].append(member)
    for domain, inside in domains.items():
        # Volumes of no domain need not belong together.
        for check in (_turned, _mixed_contrasts, _unlike) if domain else ():
            found += check(domain, inside)
    if "a" in domains and "b" in domains:
        found += _between(domains["a"], domains["b"], modalities)
    return found


_Found = tuple[str, str, str, bool]


def _of_facts(facts: Facts, modality: str | None) -> Iterator[_Found]:
    if facts.problem is not None:
        text = facts.problem.removeprefix(f"{facts.file}: ").removeprefix(f"{facts.file} ").strip()
        message, _, remedy = text.partition(". ")
        yield "unreadable", message.rstrip("."), remedy or "Copy or export it again.", False
        return
    for remark in facts.remarks:
        yield "header", remark.rstrip("."), "Look at the volume beside another one in a viewer.", False
    yield from _of_geometry(facts)
    if facts.not_finite:
        inside = facts.not_finite_inside
        safe = inside == 0
        place = "" if inside is None else f", {inside} of them in the body" if inside else ", none of them in the body"
        yield (
            "not_finite",
            f"{facts.not_finite} voxels are NaN or infinite{place}",
            "--fix writes a copy with air there." if safe else "Export it again.",
            safe,
        )
    if facts.constant:
        yield "constant", f"every voxel holds the same value ({facts.minimum:g})", "Export it again.", False
    if facts.kind is None:
        return
    yield from _of_values(facts, modality)
    if facts.no_body is not None:
        yield (
            "no_body",
            facts.no_body.split(". ")[0].rstrip("."),
            "Check that it shows a patient, or give a body mask.",
            False,
        )
    if facts.anatomy is not None:
        yield from _of_body(facts, modality)


def _of_geometry(facts: Facts) -> Iterator[_Found]:
    if facts.spacing and max(facts.spacing) > 3 and max(facts.spacing) >= 3 * min(facts.spacing):
        axis = _AXES[int(np.argmax(facts.spacing))]
        yield (
            "thick_slices",
            f"slices are {max(facts.spacing):.3g} mm thick {axis} with pixels of {min(facts.spacing):.3g} mm",
            "Translate slice by slice (2D), or use a thin reconstruction.",
            False,
        )
    if facts.tilt_degrees is not None and facts.tilt_degrees >= 15:
        yield (
            "oblique",
            f"the axes are turned by {facts.tilt_degrees:.0f} degrees",
            "Nothing needs to be done: results lie on the volume's own grid.",
            False,
        )


def _of_values(facts: Facts, modality: str | None) -> Iterator[_Found]:
    told = facts.header_modality
    if told and modality and told != modality:
        yield "modality", f"the DICOM header says {told}, the domain is {modality}", "Move it to its domain.", False
    elif modality == "MR" and facts.kind in ("hu", "hu_offset"):
        shifted = " + 1024" if facts.kind == "hu_offset" else ""
        yield "modality", f"values look like a CT in Hounsfield units{shifted}, not like an MR", "Move it to CT.", False
    elif modality == "CT" and facts.kind == "other":
        if facts.distinct is not None and facts.distinct <= 256:
            yield (
                "eight_bit",
                f"{facts.distinct} different values from {facts.minimum:g} to {facts.maximum:g}: no Hounsfield units",
                "Convert the original DICOM again; HU cannot be recovered from pictures.",
                False,
            )
        else:
            yield (
                "modality",
                f"values ({facts.minimum:g} to {facts.maximum:g}) do not look like Hounsfield units: no air near "
                "-1000 beside tissue near 0",
                "If it is an MR, move it; if it is a CT that was windowed, scaled or masked, export it again in HU.",
                False,
            )
    if facts.kind == "hu_offset" and modality in ("CT", None):
        yield (
            "hu_offset",
            f"values from {facts.minimum:g} to {facts.maximum:g} look like HU + 1024",
            "--fix writes a copy less 1024." if modality == "CT" else "If it is a CT, subtract 1024.",
            modality == "CT",
        )
    if facts.kind == "hu" and facts.distinct is not None and facts.distinct <= 256 and modality != "MR":
        yield (
            "few_values",
            f"only {facts.distinct} different values from {facts.minimum:g} to {facts.maximum:g} HU",
            "It passed through 8 bits; take the original where HU must be exact.",
            False,
        )
    if facts.kind == "hu" and modality != "MR" and facts.padding:
        yield (
            "padding",
            f"{100 * facts.padding:.2g} % of the voxels lie below -1100 HU (smallest {facts.minimum:g})",
            "Preparation clips them to air; --fix writes a copy with -1024 there.",
            modality == "CT",
        )


def _of_body(facts: Facts, modality: str | None) -> Iterator[_Found]:
    body = facts.anatomy
    assert body is not None
    ct = facts.kind != "other"
    if max(body.extent_mm) < 40 or max(body.extent_mm) > 2200:
        size = " x ".join(f"{e:.3g}" for e in body.extent_mm)
        yield "size", f"the body measures {size} mm", "Check the unit of length in the header.", False
    faces = [
        f"{name} ({area:.0f} cm2)"
        for name, area in zip(_FACES, body.contact_cm2, strict=True)
        if name != "lower" and area >= (_CUT_TOP_CM2 if name == "upper" else _CUT_SIDE_CM2)
    ]
    if faces:
        yield (
            "cut_off",
            f"the body is cut at the {', '.join(faces)} face of the volume",
            "What is not in the volume cannot be translated; use a larger field of view, or leave it out of training.",
            False,
        )
    if ct and facts.kind == "hu" and body.air is not None and abs(body.air + 1000) > 60:
        yield (
            "air",
            f"the air around the body has {body.air:.0f} HU, not about -1000",
            "Check slope and intercept, and whether the background was masked.",
            False,
        )
    if body.table:
        yield "table", "a table or holder lies beside the body", "Nothing: preparation leaves it out.", False
    if ct and facts.metal_ml is not None and facts.metal_ml >= 0.05:
        yield (
            "metal",
            f"{facts.metal_ml:.2g} ml above {METAL_HU:g} HU",
            "Look for streaks; leave it out of training if they cross what matters.",
            False,
        )
    if ct or modality != "CT":
        yield from _of_contrast_agent(facts)
    if body.head is None:
        return
    stripped = body.head.skull_share is not None and body.head.skull_share < 0.15
    if body.head.skull_dip is not None and modality != "CT":
        stripped = body.head.skull_dip < 0.075 and body.outside[1] > 0.98
    if stripped:
        yield (
            "stripped",
            "no skull under a scalp: the head is skull-stripped",
            "Use the original volume; a CT has the skull that this MR lacks."
            if not ct
            else "Use the original volume; an MR has the scalp that this CT lacks.",
            False,
        )
    recession = body.head.recession_mm
    if recession is not None and recession >= 12 and body.contact_cm2[3] < _CUT_TOP_CM2 and not stripped:
        yield (
            "defaced",
            f"the face lies {recession:.0f} mm behind the forehead: defaced",
            "Keep defaced volumes in both domains or in none, and do not judge the face.",
            False,
        )


def _of_contrast_agent(facts: Facts) -> Iterator[_Found]:
    head = facts.anatomy.head if facts.anatomy else None
    share = head.enhanced_share if head else None
    weighted = head is None or head.t1_score is None or head.t1_score >= _T2
    reason = None
    if facts.contrast_agent:
        reason = "the DICOM header names a contrast agent"
    elif share is not None and share > 0.005 and weighted and facts.spacing and sorted(facts.spacing)[1] <= _SHARP_MM:
        reason = f"{100 * share:.2g} % of the inner brain is brighter than brain can be, as with a contrast agent"
    if reason:
        yield "contrast", reason, "Train on volumes of one kind; enhanced vessels turn into false density.", False


def _same_ids(members: Sequence[Member]) -> Iterator[Suspicion]:
    places: dict[tuple[str, str], list[Member]] = defaultdict(list)
    for member in members:
        if member.domain:
            places[member.domain, member.case].append(member)
    for (domain, case), twins in places.items():
        for member in twins if len(twins) > 1 else ():
            others = ", ".join(str(m.facts.file) for m in twins if m is not member)
            yield Suspicion(
                "same_id",
                domain,
                str(member.facts.file),
                f"the case id '{case}' is that of {others} too",
                "Rename one.",
            )


def _duplicates(members: Sequence[Member]) -> Iterator[Suspicion]:
    by_digest: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        if member.facts.digest and not member.facts.constant:
            by_digest[member.facts.digest].append(member)
    for same in by_digest.values():
        for index, member in enumerate(same if len(same) > 1 else ()):
            yield _copy_of(member, same[index - 1], "duplicate", "it has the same voxels as")
    # Numbers that are linear in each other have the same signature, in whatever type or format they are.
    singles = [same[0] for same in by_digest.values() if same[0].facts.anatomy is not None]
    if not singles:
        return
    upright = _unit([m.facts.anatomy.signatures[2] for m in singles if m.facts.anatomy])
    for start in range(0, len(singles), 512):  # block by block: ten thousand volumes make a hundred million pairs
        block = slice(start, start + 512)
        turned = upright[block].reshape(-1, SIGNATURE, SIGNATURE, SIGNATURE)[:, ::-1].reshape(-1, SIGNATURE**3)
        straight, reversed_ = upright[block] @ upright.T, turned @ upright.T
        for i, j in np.argwhere((straight > _SAME) | (reversed_ > _SAME)):
            first, second = singles[j], singles[start + i]
            if j != start + i and straight[i, j] >= reversed_[i, j]:
                yield _copy_of(second, first, "duplicate", "it looks the same as")
            elif j != start + i:
                yield _copy_of(second, first, "mirrored_copy", "it is the left-right mirror image of")


def _copy_of(member: Member, other: Member, code: str, words: str) -> Suspicion:
    across = member.domain != other.domain
    remedy = "The domains must not share volumes; remove one." if across else "Remove one."
    if code == "mirrored_copy":
        remedy = "Find out which one has left and right exchanged, and remove it."
    return Suspicion(code, member.domain, str(member.facts.file), f"{words} {other.facts.file}", remedy)


def _turned(domain: str, members: Sequence[Member]) -> Iterator[Suspicion]:
    """Volumes that fit the others better when they are turned or mirrored."""
    known = [m for m in members if m.facts.anatomy is not None and m.facts.anatomy.head is not None]
    loose = [m for m in members if m.facts.anatomy is not None and m.facts.anatomy.head is None]
    if len(known) < 4:
        return
    pictures = _unit([m.facts.anatomy.signatures[2] for m in known if m.facts.anatomy])
    total = pictures.sum(axis=0)
    wrong: set[int] = set()
    for index, member in enumerate((*known, *loose)):
        rest = total - pictures[index] if index < len(known) else total
        as_is, better, words = _best_turn(member.facts, rest / np.linalg.norm(rest))
        if better > as_is + _TURNED and better > 0.7:
            wrong.add(index)
            yield Suspicion(
                "turned",
                domain,
                str(member.facts.file),
                f"it fits the others better {words} (correlation {better:.2f} instead of {as_is:.2f})",
                "The axes in its header are probably wrong: convert it again from DICOM.",
            )
    yield from _mirrored(domain, [m for index, m in enumerate(known) if index not in wrong])


def _best_turn(facts: Facts, rest: npt.NDArray[np.float32]) -> tuple[float, float, str]:
    """Correlation as the header has it, the best one of any other way, and that way in words."""
    assert facts.anatomy is not None
    as_is, best, words = 0.0, -1.0, ""
    for up, stack in enumerate(facts.anatomy.signatures):
        for swap, x, y in itertools.product((False, True), (1, -1), (1, -1)):
            turned = (stack.transpose(1, 0, 2) if swap else stack)[::x, ::y]
            correlation = float(_unit([turned])[0] @ rest)
            if up == 2 and not swap and y == 1:
                as_is = max(as_is, correlation)  # a mirrored volume stands upright
            elif correlation > best:
                best = correlation
                words = "upside down" if up == 5 else "with front and back exchanged" if up == 2 else "with other axes"
                words = "with its axes within the slice exchanged" if up == 2 and swap else words
    return as_is, best, words


def _mirrored(domain: str, members: Sequence[Member]) -> Iterator[Suspicion]:
    """Volumes on the wrong side of an asymmetry that the domain has in common, where it has one."""
    if len(members) < 4:
        return
    uneven = np.stack([_uneven(m.facts.anatomy.signatures[2]) for m in members if m.facts.anatomy])
    fits = np.array([_with_the_others(uneven, index) for index in range(len(members))])
    against = int((fits < 0).sum())
    # Two-sided sign test: without a common asymmetry, either sign is as likely as the other.
    chance = 2 * sum(math.comb(len(fits), n) for n in range(against + 1)) / 2 ** len(fits)
    if against > len(fits) / 4 or chance > _CHANCE or np.median(fits) < _COMMON:
        yield Suspicion(
            "symmetric",
            domain,
            "",
            f"its {len(fits)} heads have no left-right asymmetry in common that would show a mirrored one",
            "Check the converter once with a volume that carries a marker.",
        )
        return
    for member, fit in zip(members, fits, strict=True):
        if fit < -_REVERSED:
            yield Suspicion(
                "mirrored",
                domain,
                str(member.facts.file),
                f"its left-right asymmetry is the reverse of that of the others (correlation {fit:.2f})",
                "Check left and right in the original; convert it again from DICOM.",
            )


def _uneven(signature: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
    """What a signature differs in from its mirror image, about the plane that leaves least of it; flat, of length 1."""
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
    """Correlation of one asymmetry with the median of the others, where these agree most: 2 % of the picture."""
    rest = np.delete(uneven, index, axis=0)
    middle = np.median(rest, axis=0)
    spread = np.median(np.abs(rest - middle), axis=0)
    steady = np.abs(middle) / (spread + np.median(spread) + 1e-9)
    chosen = steady > np.quantile(steady, 0.98)
    own, usual = uneven[index][chosen], middle[chosen]
    return float(own @ usual / max(float(np.linalg.norm(own) * np.linalg.norm(usual)), 1e-9))


def _mixed_contrasts(domain: str, members: Sequence[Member]) -> Iterator[Suspicion]:
    heads = {
        m.facts.file: m.facts.anatomy.head.t1_score
        for m in members
        if m.modality != "CT" and m.facts.anatomy and m.facts.anatomy.head and m.facts.anatomy.head.t1_score is not None
    }
    kinds = {"T1": [f for f, s in heads.items() if s > _T1], "T2": [f for f, s in heads.items() if s < _T2]}
    if not all(kinds.values()):
        return
    rare, usual = sorted(kinds, key=lambda kind: len(kinds[kind]))
    if len(kinds[rare]) == len(kinds[usual]):
        files = ", ".join(map(str, kinds[rare][:3]))
        yield Suspicion(
            "mixed_contrast",
            domain,
            "",
            f"{len(kinds[rare])} volumes look {rare}-weighted ({files}{', ...' if len(kinds[rare]) > 3 else ''}), "
            f"as many {usual}-weighted",
            "Train on one contrast, or give them as channels.",
        )
        return
    for file in kinds[rare]:
        yield Suspicion(
            "mixed_contrast",
            domain,
            str(file),
            f"it looks {rare}-weighted, {len(kinds[usual])} others of the domain {usual}-weighted",
            "Train on one contrast.",
        )


def _unlike(domain: str, members: Sequence[Member]) -> Iterator[Suspicion]:
    spacings = [(m, m.facts.spacing) for m in members if m.facts.spacing]
    if len(spacings) >= 4:
        median = np.median([s for _, s in spacings], axis=0)
        for member, spacing in spacings:
            off = [i for i in range(3) if not 0.4 <= spacing[i] / median[i] <= 2.5]
            if off:
                words = ", ".join(f"{spacing[i]:.3g} mm {_AXES[i]} (median {median[i]:.3g})" for i in off)
                yield Suspicion(
                    "spacing_unlike",
                    domain,
                    str(member.facts.file),
                    f"voxels measure {words}",
                    "Check the header; leave it out if it is another kind of scan.",
                )
    bodies = [(m, m.facts.anatomy) for m in members if m.facts.anatomy]
    heads = [(m, b) for m, b in bodies if b.head]
    if len(bodies) >= 5 and len(heads) not in (0, len(bodies)):
        most = len(heads) >= 0.8 * len(bodies)
        odd = [m for m, b in bodies if (b.head is None) == most] if most or len(heads) <= 0.2 * len(bodies) else []
        for member in odd:
            what = "no head, as most of the domain are" if most else "a head, as few of the domain are"
            yield Suspicion(
                "other_body", domain, str(member.facts.file), f"it shows {what}", "Leave it out, or crop it."
            )
    if len(bodies) >= 4:
        usual = np.median([b.extent_mm for _, b in bodies], axis=0)
        for member, body in bodies:
            off = [i for i in (0, 1) if not 1 / 1.5 <= body.extent_mm[i] / usual[i] <= 1.5]
            if off:
                words = ", ".join(f"{body.extent_mm[i]:.0f} mm {_AXES[i]} (median {usual[i]:.0f})" for i in off)
                yield Suspicion(
                    "size_unlike",
                    domain,
                    str(member.facts.file),
                    f"the body measures {words}",
                    "Check its voxel size and what it shows.",
                )


def _between(a: Sequence[Member], b: Sequence[Member], modalities: Mapping[str, str]) -> Iterator[Suspicion]:
    bodies = [[m.facts.anatomy for m in domain if m.facts.anatomy] for domain in (a, b)]
    if not all(bodies):
        return
    first, second = (np.median([body.extent_mm for body in domain], axis=0) for domain in bodies)
    names = [f"a ({modalities.get('a', '?')})", f"b ({modalities.get('b', '?')})"]
    for i in range(3):
        if not 1 / 1.3 <= first[i] / second[i] <= 1.3:
            yield Suspicion(
                "domains_view",
                "",
                "",
                f"the body seen measures {first[i]:.0f} mm {_AXES[i]} in {names[0]} and {second[i]:.0f} in {names[1]}",
                "Crop to what both show, or match positions (patches.matching).",
            )
    heads: list[list[float]] = [
        [
            float(np.sqrt(body.head.width_mm * body.head.length_mm))
            for body in domain
            if body.head and max(body.contact_cm2[:4]) < _CUT_TOP_CM2 and body.contact_cm2[5] < _CUT_TOP_CM2
        ]
        for domain in bodies
    ]
    if min(map(len, heads)) >= 3:
        ratio = float(np.median(heads[0]) / np.median(heads[1]))
        if not 1 / 1.08 <= ratio <= 1.08:
            yield Suspicion(
                "domains_size",
                "",
                "",
                f"heads of {names[0]} are {100 * abs(ratio - 1):.0f} % {'larger' if ratio > 1 else 'smaller'} than "
                f"those of {names[1]}",
                "Compare the ages of the patients; children's heads must be in both domains.",
            )


def _unit(pictures: Sequence[npt.NDArray[np.generic]]) -> npt.NDArray[np.float32]:
    """(N, voxels), zero mean, length 1."""
    flat = np.stack([np.asarray(picture, dtype=np.float32).ravel() for picture in pictures])
    flat -= flat.mean(axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9))
