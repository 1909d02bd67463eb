"""Plant known defects in a cohort of head phantoms, inspect it, and show what was found, missed and falsely suspected.

    python examples/17_planted_defects.py -o OUTPUT_FOLDER [--seed 1000] [--sound 8]

Writes the cohort, an inspection page of it, table.md and table.json. Sound volumes vary in axes, tilt, table and gain.
A false alarm is an error or a warning about a sound volume, or one about a defect that this defect does not explain.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from medcyclegan import phantom
from medcyclegan.phantom import Phantom, Tissue
from medcyclegan.qc.inspection import cores, inspect_cohort

SPACING = (4.0, 4.0, 4.0)
SHAPE = (54, 66, 52)  # from above the vertex to below the chin
AXES = ("RAS", "LPS", "LAS", "PIL")
BRAIN = (Tissue.CSF, Tissue.GRAY, Tissue.WHITE, Tissue.LESION)


@dataclass(frozen=True)
class Defect:
    """A defect: its domain, the findings of which one must be told, those that may be told too, how to plant it."""

    domain: str
    name: str
    expected: tuple[str, ...]
    besides: tuple[str, ...]
    plant: Callable[["Scanner", Path], list[Path]]


class Scanner:
    """Scans a new head at each call."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = np.random.default_rng(seed)

    def scan(
        self,
        shape: tuple[int, int, int] = SHAPE,
        spacing: tuple[float, float, float] = SPACING,
        *,
        lower_mm: float = 0.0,
        scale: float = 1.0,
    ) -> Phantom:
        self.seed += 1
        head = phantom.head(self.seed)
        head = replace(head, pose=head.pose @ np.diag([scale, scale, scale, 1.0]))
        tilt = np.radians(self.rng.uniform(-5, 5))
        affine = np.eye(4)
        affine[:3, :3] = np.array(
            [[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]]
        ) @ np.diag(spacing)
        up = affine[:3, 2] / spacing[2]
        middle, vertex = head.world((0.0, -8.0, 0.0)), head.world((0.0, -10.0, 108.0 - lower_mm))
        center = middle + up * (up @ (vertex - middle) - shape[2] * spacing[2] / 2)
        affine[:3, 3] = center - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
        return phantom.sample(head, shape, affine)

    def mr(self, scanned: Phantom, values: np.ndarray | None = None) -> np.ndarray:
        """T1 with a capsule of oil beside the right cheek, as many sites tape one there."""
        values = scanned.mr_t1.copy() if values is None else values.copy()
        world = nib.affines.apply_affine(scanned.affine, np.argwhere(scanned.body))
        x, y, z = np.quantile(world[:, 0], 0.999), np.median(world[:, 1]) + 10, world[:, 2].max() - 120
        index = np.moveaxis(np.indices(scanned.shape), 0, -1)
        where = nib.affines.apply_affine(scanned.affine, index)
        capsule = np.linalg.norm((where - (x + 2, y, z)) / (8, 10, 14), axis=-1) < 1
        values[capsule] = np.percentile(scanned.mr_t1, 99)
        return values

    def ct(self, scanned: Phantom) -> np.ndarray:
        """CT, every second one with a flat table."""
        values = scanned.ct.copy()
        below = np.flatnonzero(scanned.body.any(axis=(0, 2)))[0] - 2
        if self.seed % 2 and below >= 2:
            table = np.zeros(scanned.shape, dtype=bool)
            table[4:-4, below - 2 : below] = True
            values[table & ~scanned.body] = -600
        return values


def write(path: Path, values: np.ndarray, affine: np.ndarray, axes: str = "RAS") -> Path:
    """int16 where it fits, float32 elsewhere; with the axes given."""
    whole = np.isfinite(values).all() and np.abs(values).max() < 32767 and values.min() < -500
    image = nib.Nifti1Image(np.rint(values).astype(np.int16) if whole else values.astype(np.float32), affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(axes))
    image = image.as_reoriented(turn)
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def changed(change: Callable[[Scanner, Phantom], np.ndarray], **grid: object) -> Callable[[Scanner, Path], list[Path]]:
    """A defect of the voxels."""

    def plant(scanner: Scanner, path: Path) -> list[Path]:
        scanned = scanner.scan(**grid)  # type: ignore[arg-type]
        return [write(path, change(scanner, scanned), scanned.affine, AXES[scanner.seed % len(AXES)])]

    return plant


def put(values: np.ndarray, where: np.ndarray, value: float) -> np.ndarray:
    values = values.astype(np.float32)
    values[where] = value
    return values


def positions(scanned: Phantom) -> np.ndarray:
    """World position relative to the vertex and the head's middle, (X, Y, Z, 3), mm."""
    index = np.moveaxis(np.indices(scanned.shape), 0, -1)
    where = nib.affines.apply_affine(scanned.affine, index)
    body = where[scanned.body]
    top = body[body[:, 2] > body[:, 2].max() - 100]
    return where - [top[:, 0].mean(), (top[:, 1].min() + top[:, 1].max()) / 2, body[:, 2].max()]


def vessels(scanned: Phantom) -> np.ndarray:
    """Arteries and sinuses: tubes of 4 mm radius through the brain."""
    brain = np.isin(scanned.labels, BRAIN)
    x, y, z = np.moveaxis(positions(scanned), -1, 0)
    tubes = [np.hypot(x - a, z - b - 0.2 * y) < 4 for a, b in ((-20, -60), (22, -55), (-34, -75), (35, -70))]
    return brain & (np.any(tubes, axis=0) | (np.hypot(x, y + 20) < 4))


def stripped(values: np.ndarray, scanned: Phantom, air: float) -> np.ndarray:
    upper = positions(scanned)[..., 2] > -140
    return put(np.full(scanned.shape, air, np.float32), (keep := np.isin(scanned.labels, BRAIN) & upper), 0) + np.where(
        keep, values, 0
    )


def defaced(values: np.ndarray, scanned: Phantom) -> np.ndarray:
    _, y, z = np.moveaxis(positions(scanned), -1, 0)
    return put(values, (z < -100) & (y > 45 + 0.15 * (z + 100)), 0)


def truncated(scanner: Scanner, path: Path) -> list[Path]:
    scanned = scanner.scan()
    write(path, scanner.mr(scanned), scanned.affine)
    path.write_bytes(path.read_bytes()[:-5000])
    return [path]


def empty(_: Scanner, path: Path) -> list[Path]:
    path.write_bytes(b"")
    return [path]


def looping(_: Scanner, path: Path) -> list[Path]:
    path.symlink_to(path.name)
    return [path]


def frames(scanner: Scanner, path: Path) -> list[Path]:
    scanned = scanner.scan()
    nib.save(nib.Nifti1Image(np.stack([scanner.mr(scanned)] * 2, axis=-1), scanned.affine), path)
    return [path]


def mirrored(scanner: Scanner, path: Path) -> list[Path]:
    scanned = scanner.scan()
    return [write(path, scanner.mr(scanned)[::-1], scanned.affine)]


def upside_down(scanner: Scanner, path: Path) -> list[Path]:
    scanned = scanner.scan()
    return [write(path, scanner.mr(scanned)[:, :, ::-1], scanned.affine)]


def exchanged(scanner: Scanner, path: Path) -> list[Path]:
    scanned = scanner.scan((60, 60, 60))
    return [write(path, scanner.ct(scanned).transpose(0, 2, 1), scanned.affine)]


def centimeters(scanner: Scanner, path: Path) -> list[Path]:
    scanned = scanner.scan()
    return [write(path, scanner.mr(scanned), np.diag([0.1, 0.1, 0.1, 1]) @ scanned.affine)]


def twins(scanner: Scanner, path: Path) -> list[Path]:
    first, second = scanner.scan(), scanner.scan()
    other = path.with_name(path.name.replace(".nii.gz", ".mha"))
    image = sitk.GetImageFromArray(scanner.mr(second).T)
    image.SetSpacing(SPACING)
    image.SetDirection([-1, 0, 0, 0, -1, 0, 0, 0, 1])
    sitk.WriteImage(image, str(other))
    return [write(path, scanner.mr(first), first.affine), other]


def copied(scanner: Scanner, path: Path) -> list[Path]:
    """The first sound CT again: as float32, with other axes, as another format."""
    source = nib.load(path.parent / "sound_00.nii.gz")
    turned = nib.as_closest_canonical(source)
    image = sitk.GetImageFromArray(np.asarray(turned.dataobj, dtype=np.float32).T)
    image.SetSpacing([float(s) for s in turned.header.get_zooms()])
    lps = np.diag([-1, -1, 1]) @ turned.affine[:3, :3] / turned.header.get_zooms()
    image.SetDirection(lps.ravel().tolist())
    other = path.with_name(path.name.replace(".nii.gz", ".nrrd"))
    sitk.WriteImage(image, str(other))
    return [other]


def reflected(scanner: Scanner, path: Path) -> list[Path]:
    """The second sound CT again, left and right exchanged."""
    source = nib.as_closest_canonical(nib.load(path.parent / "sound_01.nii.gz"))
    return [write(path, np.asarray(source.dataobj)[::-1], source.affine)]


def trunk(scanner: Scanner, path: Path) -> list[Path]:
    """A trunk with lungs and spine."""
    shape, rng = (80, 60, 52), np.random.default_rng(scanner.seed)
    x, y, _ = (4.0 * (i - (n - 1) / 2) for i, n in zip(np.indices(shape), shape, strict=True))
    values = np.full(shape, -1000.0)
    values[np.hypot(x / 150, y / 105) < 1] = 40
    values[np.hypot((np.abs(x) - 70) / 50, y / 75) < 1] = -820
    values[np.hypot(x / 18, (y + 75) / 18) < 1] = 500
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    return [write(path, values + rng.normal(0, 12, shape), affine)]


def uncoded(scanner: Scanner, path: Path) -> list[Path]:
    scanned = scanner.scan()
    image = nib.Nifti1Image(np.rint(scanner.ct(scanned)).astype(np.int16), scanned.affine)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, path)
    return [path]


def to_bits(values: np.ndarray) -> np.ndarray:
    return np.rint(255 * (np.clip(values, -1000, 2000) + 1000) / 3000)


def round_view(values: np.ndarray, scanned: Phantom) -> np.ndarray:
    x, y, _ = np.moveaxis(positions(scanned), -1, 0)
    return put(values, np.hypot(x, y) > 125, -3024)


def metal(values: np.ndarray, scanned: Phantom) -> np.ndarray:
    x, y, z = np.moveaxis(positions(scanned), -1, 0)
    return put(values, np.linalg.norm([x - 20, y - 60, z + 180], axis=0) < 6, 3071)


def not_a_number(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    return put(values, where, np.nan)


def brain_spot(scanned: Phantom) -> np.ndarray:
    return np.asarray(np.linalg.norm(positions(scanned) - [0, 0, -60], axis=-1) < 8)


DEFECTS = (
    Defect("a", "T2 among T1", ("mixed_contrast",), (), changed(lambda s, p: s.mr(p, p.mr_t2))),
    Defect(
        "a",
        "skull-stripped MR",
        ("stripped",),
        ("size_unlike", "mirrored"),
        changed(lambda s, p: stripped(p.mr_t1, p, 0)),
    ),
    Defect("a", "defaced MR", ("defaced",), (), changed(lambda s, p: defaced(s.mr(p), p))),
    Defect(
        "a",
        "MR with contrast agent",
        ("contrast",),
        (),
        changed(lambda s, p: put(s.mr(p), vessels(p), 2.2 * np.median(p.mr_t1[p.labels == Tissue.WHITE]))),
    ),
    Defect("a", "vertex cut off", ("cut_off",), (), changed(lambda s, p: s.mr(p), lower_mm=30.0)),
    Defect(
        "a",
        "thick slices",
        ("thick_slices",),
        ("spacing_unlike",),
        changed(lambda s, p: s.mr(p), shape=(86, 104, 22), spacing=(2.5, 2.5, 9.0)),
    ),
    Defect("a", "constant", ("constant",), (), changed(lambda s, p: np.full(p.shape, 7.0))),
    Defect("a", "cut short", ("unreadable",), (), truncated),
    Defect("a", "two frames", ("unreadable",), (), frames),
    Defect("a", "CT in the MR folder", ("modality",), ("mirrored",), changed(lambda s, p: s.ct(p))),
    Defect("a", "left and right exchanged", ("mirrored",), (), mirrored),
    Defect("a", "upside down", ("turned",), ("cut_off",), upside_down),
    Defect("a", "NaN in the brain", ("not_finite",), (), changed(lambda s, p: not_a_number(s.mr(p), brain_spot(p)))),
    Defect(
        "a",
        "voxel size in centimeters",
        ("size",),
        ("size_unlike", "spacing_unlike", "other_body", "no_body"),
        centimeters,
    ),
    Defect("a", "two files of one case id", ("same_id",), (), twins),
    Defect("b", "CT stored as HU + 1024", ("hu_offset",), (), changed(lambda s, p: np.clip(s.ct(p) + 1024, 0, None))),
    Defect("b", "8-bit CT", ("eight_bit",), (), changed(lambda s, p: to_bits(s.ct(p)))),
    Defect(
        "b", "CT through a soft-tissue window", ("modality",), (), changed(lambda s, p: np.clip(s.ct(p), -160, 240))
    ),
    Defect("b", "padding of -3024", ("padding",), (), changed(lambda s, p: round_view(s.ct(p), p))),
    Defect("b", "CT with contrast agent", ("contrast",), (), changed(lambda s, p: put(s.ct(p), vessels(p), 280))),
    Defect("b", "dental metal", ("metal",), (), changed(lambda s, p: metal(s.ct(p), p))),
    Defect("b", "MR in the CT folder", ("modality",), (), changed(lambda s, p: s.mr(p))),
    Defect(
        "b",
        "NaN in the air",
        ("not_finite",),
        (),
        changed(lambda s, p: not_a_number(s.ct(p), np.linalg.norm(positions(p)[..., :2], axis=-1) > 125)),
    ),
    Defect("b", "a copy in another format", ("duplicate",), (), copied),
    Defect("b", "a mirrored copy", ("mirrored_copy",), (), reflected),
    Defect("b", "a trunk", ("other_body",), ("size_unlike", "cut_off", "turned"), trunk),
    Defect(
        "b", "background masked with 0", ("air", "modality"), ("no_body",), changed(lambda s, p: put(p.ct, ~p.body, 0))
    ),
    Defect("b", "skull-stripped CT", ("stripped",), ("size_unlike",), changed(lambda s, p: stripped(p.ct, p, -1000))),
    Defect(
        "b", "narrow field of view", ("cut_off",), ("size_unlike",), changed(lambda s, p: s.ct(p), shape=(32, 66, 52))
    ),
    Defect("b", "empty file", ("unreadable",), (), empty),
    Defect("b", "orientation not coded", ("header",), ("turned",), uncoded),
    Defect("b", "axes exchanged", ("turned",), ("cut_off",), exchanged),
    Defect("b", "a link to itself", ("unreadable",), (), looping),
)


def plant_all(folder: Path, seed: int, sound: int) -> dict[str, Defect]:
    """Write the cohort; file -> its defect."""
    scanner, planted = Scanner(seed), {}
    for domain in "ab":
        (folder / domain).mkdir(parents=True)
        for number in range(sound):
            scanned = scanner.scan()
            values = scanner.mr(scanned) if domain == "a" else scanner.ct(scanned)
            write(folder / domain / f"sound_{number:02d}.nii.gz", values, scanned.affine, AXES[number % len(AXES)])
        for number, defect in enumerate(d for d in DEFECTS if d.domain == domain):
            for path in defect.plant(scanner, folder / domain / f"defect_{number:02d}.nii.gz"):
                planted[str(path)] = defect
    return planted


def plant_between(folder: Path, seed: int) -> None:
    """MR of heads of children down to the brow, CT of adults down to the neck."""
    scanner = Scanner(seed)
    for number in range(4):
        scanned = scanner.scan((54, 66, 28), scale=0.85)
        write(folder / "a" / f"{number}.nii.gz", scanned.mr_t1, scanned.affine)
        scanned = scanner.scan()
        write(folder / "b" / f"{number}.nii.gz", scanner.ct(scanned), scanned.affine)


def rows(folder: Path, seed: int, sound: int) -> Iterator[tuple[str, str, str]]:
    """Domain and defect, "found" or "MISSED" or "FALSE ALARM", and what was said."""
    workers = int(os.environ.get("WORKERS", cores()))
    planted = plant_all(folder / "cohort", seed, sound)
    result = inspect_cohort(
        {"a": folder / "cohort/a", "b": folder / "cohort/b"}, output=folder / "inspection.html", workers=workers
    )
    said: dict[str, list[str]] = {}
    said_of_domain = {d: [s.code for s in result.findings if s.domain == d and not s.file] for d in "ab"}
    for finding in result.findings:
        said.setdefault(finding.file, []).append(finding.code)
    for defect in DEFECTS:
        codes = [code for file, of in planted.items() if of is defect for code in said.get(file, [])]
        verdict = "found" if set(codes) & set(defect.expected) else "MISSED"
        if verdict == "MISSED" and "mirrored" in defect.expected and "symmetric" in said_of_domain[defect.domain]:
            codes.append("(said that it cannot be told)")
        yield f"{defect.domain}: {defect.name}", verdict, ", ".join(dict.fromkeys(codes))
    plant_between(folder / "between", seed + 500)
    between = inspect_cohort({d: folder / "between" / d for d in "ab"}, workers=workers)
    codes = [s.code for s in between.findings]
    for name, code in (("other fields of view", "domains_view"), ("children and adults", "domains_size")):
        yield f"a and b: {name}", "found" if code in codes else "MISSED", code if code in codes else ""
    for finding in result.findings:
        allowed: tuple[str, ...] = ("table", "padding", "symmetric", "oblique")
        if (defect_of := planted.get(finding.file)) is not None:
            allowed += defect_of.expected + defect_of.besides
        if finding.file.endswith(("b/sound_00.nii.gz", "b/sound_01.nii.gz")):
            allowed += ("duplicate", "mirrored_copy")  # of these there are copies
        if finding.code not in allowed:
            yield (
                finding.file or f"domain {finding.domain}",
                "FALSE ALARM",
                f"{finding.code}: {finding.message}",
            )
    for finding in between.findings:
        if finding.code not in ("table", "symmetric", "domains_view", "domains_size"):
            yield finding.file, "FALSE ALARM", f"{finding.code}: {finding.message}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--sound", type=int, default=8, help="sound volumes in each domain")
    options = parser.parse_args()
    table = list(rows(options.output, options.seed, options.sound))
    lines = ["| defect | verdict | said |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in table)]
    verdicts = [verdict for _, verdict, _ in table]
    counts = {
        name: verdicts.count(key)
        for name, key in (("found", "found"), ("missed", "MISSED"), ("false alarms", "FALSE ALARM"))
    }
    lines.append(
        f"\n{2 * options.sound} sound volumes, {len(DEFECTS) + 2} defects: "
        + ", ".join(f"{n} {k}" for k, n in counts.items())
    )
    (options.output / "table.md").write_text("\n".join(lines) + "\n")
    (options.output / "table.json").write_text(json.dumps({"rows": table, **counts}, indent=1))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
