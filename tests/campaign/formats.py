"""Every format: what a sound one is, how it is changed, what it means, and how the program reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from campaign import dicom, metaimage, nifti, nrrd, pictures
from campaign.meaning import STREAM, Meaning, Undefined
from campaign.outcomes import GOOD, attempt, judged_volume
from medcyclegan.io.pictures import PICTURE_SUFFIXES
from medcyclegan.io.reader import read_header, read_volume

Files = dict[str, bytes]


@dataclass(frozen=True)
class VolumeFormat:
    """`suffix` is that of the program's tables which the format stands for."""

    suffix: str
    sample: Callable[[Random], Files]
    mutate: Callable[[Random, Files], tuple[str, Files]]
    meaning: Callable[[Path], Meaning]

    def change(self, rng: Random, folder: Path) -> str:
        said, files = self.mutate(rng, self.sample(rng))
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        return said

    def judge(self, folder: Path) -> tuple[str, str]:
        """Read as a volume and by its header alone: the worse of the two outcomes."""
        path = opened(folder)
        meant = self.meant(folder)
        outcomes = [self.volume(path, meant)]
        if self.suffix not in PICTURE_SUFFIXES and outcomes[0][0] != "differs, warned":
            outcomes.append(self.header(path, meant))
        return next((o for o in outcomes if o[0] not in GOOD), outcomes[0])

    def meant(self, folder: Path) -> Meaning | str:
        try:
            return self.meaning(folder)
        except Undefined as reason:
            return str(reason)
        except Exception as reason:
            return f"unreadable: {reason!r}"

    def volume(self, path: Path, meant: Meaning | str) -> tuple[str, str]:
        word, detail, found = attempt(lambda: read_volume(path), path.name)
        if found is None:
            return word, detail
        return judged_volume(word, detail, found.shape[1:], found.affine.numpy(), found[0].numpy(), meant)

    def header(self, path: Path, meant: Meaning | str) -> tuple[str, str]:
        word, detail, found = attempt(lambda: read_header(path), path.name)
        if found is None or meant == STREAM:
            return ("right" if found else word), f"header: {detail}"
        word, detail = judged_volume(word, detail, found.grid.shape, found.grid.affine, None, meant)
        return word, f"header: {detail}"


def opened(folder: Path) -> Path:
    """What of the folder's files is given to the program: the header of two files, or the folder of a series."""
    entries = sorted(folder.iterdir())
    return next((entry for entry in entries if entry.suffix != ".raw"), entries[0])


FORMATS: dict[str, VolumeFormat] = {
    **{
        f"nifti{version}{'-gz' * packed}": VolumeFormat(
            ".nii.gz" if packed else ".nii",
            partial(nifti.sample, version=version, compressed=packed),
            nifti.mutate,
            nifti.meaning,
        )
        for version in (1, 2)
        for packed in (False, True)
    },
    **{
        f"{suffix[1:]}-{layout}": VolumeFormat(
            suffix, partial(metaimage.sample, layout=layout), metaimage.mutate, metaimage.meaning
        )
        for suffix, layout in ((".mha", "raw"), (".mha", "compressed"), (".mhd", "split"))
    },
    **{
        f"nrrd-{encoding}{'-detached' * apart}": VolumeFormat(
            ".nrrd", partial(nrrd.sample, encoding=encoding, detached=apart), nrrd.mutate, nrrd.meaning
        )
        for encoding in ("raw", "gzip")
        for apart in (False, True)
    },
    **{
        f"dicom-{layout}": VolumeFormat("DICOM", partial(dicom.sample, layout=layout), dicom.mutate, dicom.meaning)
        for layout in ("folder", "enhanced")
    },
    "dicom-zip": VolumeFormat("DICOM", dicom.sample_zip, dicom.mutate_zip, dicom.meaning),
    **{
        suffix[1:]: VolumeFormat(suffix, partial(pictures.sample, suffix=suffix), pictures.mutate, pictures.meaning)
        for suffix in (".png", ".tif", ".tiff")
    },
}
