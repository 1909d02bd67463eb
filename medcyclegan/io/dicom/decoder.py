"""JPEG, JPEG-LS and JPEG 2000 in DICOM, decoded by SimpleITK in a process of its own.

The libraries behind it print a message for a damaged stream and return a partial image, or crash. In a process of its
own the message can be caught, and a crash is harmless.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset

_SECONDARY_CAPTURE = {False: "1.2.840.10008.5.1.4.1.1.7", True: "1.2.840.10008.5.1.4.1.1.7.3"}  # one or many frames
_PIXEL_DESCRIPTION = (
    *("SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
)
_PROGRAM = """
import sys, numpy, SimpleITK
for line in sys.stdin:
    file = line.rstrip()
    numpy.save(file + ".npy", SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(file)))
    print("done", flush=True)
"""


class Decoder:
    """Decodes one image after the other; its process starts with the first and ends with the `with` block."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Decoder:
        self._folder = tempfile.TemporaryDirectory()
        self._file = Path(self._folder.name) / "pixels.dcm"
        self._complaints: IO[bytes] = (Path(self._folder.name) / "complaints").open("w+b")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._complaints.close()
        self._folder.cleanup()

    def __call__(self, content: Dataset) -> npt.NDArray[Any]:
        """The stored values, (frames, rows, columns) or (rows, columns).

        Raises:
            ValueError: the decoder failed or complained, with its words.
        """
        _bare(content).save_as(self._file, enforce_file_format=True)
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                text=True,
            )
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(f"{self._file}\n")
            stdin.flush()
            done = stdout.readline() == "done\n"
        except BrokenPipeError:
            done = False
        self._complaints.seek(0)
        words = [line.strip() for line in self._complaints.read().decode("utf-8", "replace").splitlines()]
        if not done or any(words):
            raise ValueError(next(filter(None, words)) if done else "the decoder gave up")
        return np.asarray(np.load(f"{self._file}.npy"))


def _bare(content: Dataset) -> Dataset:
    """The compressed image as one that means nothing but its stored values.

    Only the pixels and their description are handed on, in an object of a class that has no slope, no intercept and no
    geometry, and as MONOCHROME2, since SimpleITK turns the values of MONOCHROME1 around.
    """
    bare = Dataset()
    bare.SOPClassUID = _SECONDARY_CAPTURE[int(content.get("NumberOfFrames") or 1) > 1]
    bare.SOPInstanceUID = "2.25.1"
    for keyword in _PIXEL_DESCRIPTION:
        if keyword in content:
            setattr(bare, keyword, content[keyword].value)
    bare.PhotometricInterpretation = "MONOCHROME2"
    bare["PixelData"] = content["PixelData"]
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = content.file_meta.TransferSyntaxUID
    return bare
