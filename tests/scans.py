"""One small scan in files of every format, written field by field: nothing of ours decides what is in them."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

SHAPE = (6, 5, 4)
VALUES = np.random.default_rng(3).integers(-1000, 2000, SHAPE).astype("<i2")
RAW = VALUES.tobytes(order="F")
# LPS: directions, spacing and origin all different.
AXES = np.array([[0.0, 0.6, 0.8], [1.0, 0.0, 0.0], [0.0, 0.8, -0.6]])
AFFINE = np.eye(4)
AFFINE[:3, :3] = np.diag([-1, -1, 1]) @ (AXES.T * [1.5, 1.25, 3.0])
AFFINE[:3, 3] = [-10, 20, -30]

MHA = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "0 0.6 0.8 1 0 0 0 0.8 -0.6",
    "Offset": "10 -20 -30",
    "ElementSpacing": "1.5 1.25 3",
    "DimSize": "6 5 4",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}
NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "6 5 4",
    "space directions": "(0,0.9,1.2) (1.25,0,0) (0,2.4,-1.8)",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(10,-20,-30)",
}
# Where fields lie in NIfTI-1: name -> format and byte.
NIFTI = {
    "dim": ("h", 40),
    "datatype": ("h", 70),
    "bitpix": ("h", 72),
    "qfac": ("f", 76),
    "pixdim": ("f", 80),
    "vox_offset": ("f", 108),
    "scl_slope": ("f", 112),
    "scl_inter": ("f", 116),
    "xyzt_units": ("B", 123),
    "qform_code": ("h", 252),
    "sform_code": ("h", 254),
    "quatern_b": ("f", 256),
    "quatern_d": ("f", 264),
    "qoffset_x": ("f", 268),
    "srow_x": ("f", 280),
    "magic": ("4s", 344),
}


def mha(folder: Path, data: bytes = RAW, **changes: str | None) -> Path:
    """A MetaImage; a field of None is left out, `ElementDataFile` stays last."""
    fields = MHA | changes
    lines = [f"{key} = {value}\n" for key, value in fields.items() if value is not None and key != "ElementDataFile"]
    path = folder / "scan.mha"
    path.write_bytes("".join([*lines, f"ElementDataFile = {fields['ElementDataFile']}\n"]).encode() + data)
    return path


def nrrd(folder: Path, data: bytes = RAW, changes: dict[str, str | None] | None = None) -> Path:
    """An NRRD; a field of None is left out, one with a `data file` ends with it and holds no data."""
    fields = NRRD | (changes or {})
    detached = fields.pop("data file", None)
    lines = [f"{key}: {value}\n" for key, value in fields.items() if value is not None]
    path = folder / "scan.nrrd"
    head = "NRRD0005\n# comment\nowner:=nobody\n" + "".join(lines)
    path.write_bytes(f"{head}\n".encode() + data if detached is None else f"{head}data file: {detached}".encode())
    return path


def nifti(path: Path, forms: str = "sq", affine: np.ndarray = AFFINE, **changes: Any) -> Path:
    """A NIfTI-1 file with the forms named ("s", "q", "sq", ""), then fields changed byte by byte."""
    image = nib.Nifti1Image(VALUES, affine)
    image.set_qform(affine if "q" in forms else None, "q" in forms)
    image.set_sform(affine if "s" in forms else None, "s" in forms)
    image.header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))
    image.header.set_xyzt_units("mm", "sec")
    content = bytearray(image.to_bytes())
    for name, value in changes.items():
        code, place = NIFTI[name]
        struct.pack_into(f"<{code}", content, place, value)
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


def write(folder: Path, kind: str, changes: dict[str, Any] | None = None, data: bytes = RAW) -> Path:
    """The scan as `kind` "nii", "nii.gz", "mha" or "nrrd", with fields of its header changed."""
    changes = changes or {}
    if kind.startswith("nii"):
        return nifti(folder / f"scan.{kind}", **changes)
    return mha(folder, data, **changes) if kind == "mha" else nrrd(folder, data, changes)
