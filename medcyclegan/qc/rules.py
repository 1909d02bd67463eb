"""The rules of quality control, with their rationale, and the records: findings and volumes."""

from __future__ import annotations

from dataclasses import dataclass

from medcyclegan.survey.volume import Survey

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)


@dataclass(frozen=True)
class Rule:
    """A severity, and the criterion with its rationale."""

    severity: str
    criterion: str


RULES: dict[str, Rule] = {
    "unreadable": Rule(ERROR, "the file cannot be read as one scalar 3D volume; the reader's own reason is given"),
    "not_finite": Rule(ERROR, "a voxel is NaN or infinite: it would spread through every convolution"),
    "constant": Rule(ERROR, "every voxel holds the same value"),
    "impossible_hu": Rule(
        ERROR, "a CT has values below -32768 or above 32767 HU, which no CT has: padding, a lost slope or damage"
    ),
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
        "a volume looks more like the mean of its domain when its axes are exchanged or reversed, other than left "
        "and right (correlation higher by 0.05)",
    ),
    "mirrored": Rule(
        WARNING,
        "the heads of the domain share a left-right asymmetry (a marker, a coil), more of them than chance explains "
        "(sign test, 0.1 %, so 15 heads at least), and this one, of which nothing else is suspected, has it reversed. "
        "Heads alone are mostly too symmetric to tell",
    ),
    "symmetric": Rule(
        NOTE, "no left-right asymmetry that four heads or more have in common: mirrored ones cannot be found"
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
        "different ages have heads of one size, and are not distinguished",
    ),
}

# What several rules measure with.
T1, T2 = 0.52, 0.36  # of `Head.t1_score`: above, below
AXES = ("left-right", "front-back", "head-foot")


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        code: a key of `RULES`.
        domain: "a", "b", or empty where none was named or both are meant.
        file: which volume; empty where a domain is meant.
        message: what was found, with the number.
        remedy: what to do.
    """

    code: str
    domain: str
    file: str
    message: str
    remedy: str

    @property
    def severity(self) -> str:
        return RULES[self.code].severity

    @property
    def fixable(self) -> bool:
        """Whether `--fix` can repair it safely; the remedy then says so."""
        return "--fix" in self.remedy

    def __str__(self) -> str:
        where = self.file or (f"domain {self.domain}" if self.domain else "the domains")
        return f"{where}: {self.message}. {self.remedy}"


@dataclass(frozen=True)
class Volume:
    """A measured volume and its place: domain "a", "b" or "", case id, modality "MR", "CT" or None where unknown."""

    domain: str
    case: str
    modality: str | None
    survey: Survey
