"""One changed volume among sound ones, through a whole verb: it alone is refused by name, and the others go on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from campaign import metaimage, nifti, nrrd
from campaign.meaning import Meaning, Undefined, apart
from campaign.scenarios import Words
from campaign.workplace import verb, workplace
from medcyclegan.io.reader import grid_of, read_volume
from medcyclegan.io.writer import to_int16, write_volume

_FORMATS = {".nii": nifti, ".nii.gz": nifti, ".mha": metaimage, ".nrrd": nrrd}


@dataclass(frozen=True)
class Verb:
    """`words(folder)` works on the volumes in `folder/in`, those of domain `domain`; each good one gives `result`."""

    domain: str
    words: Callable[[Path], Words]
    result: str = ""

    def change(self, rng: Random, folder: Path) -> str:
        suffix = rng.choice(list(_FORMATS))
        said, files = _FORMATS[suffix].mutate(rng, {f"x{suffix}": _sample(self.domain, suffix)})
        for place in ("in", "alone"):
            (folder / place).mkdir()
            (folder / place / f"x{suffix}").write_bytes(files[f"x{suffix}"])
        (folder / "in" / "good.nii").write_bytes(_sample(self.domain, ".nii"))
        shutil.copytree(folder / "in", folder / "ref", ignore=shutil.ignore_patterns("x*"))
        (folder / "ref" / "x.nii").write_bytes(_sample(self.domain, ".nii"))
        return f"x{suffix}: {said}"

    def judge(self, folder: Path) -> tuple[str, str]:
        said = verb(*self.words(folder))
        detail = said.error.strip()[-250:]
        if said.code is None:
            return "traceback", detail
        if self.result and not list(folder.glob(self.result)):
            return "ended", f"the sound case was not done: {detail}"
        if said.code in (1, 2):
            return (
                "refused" if "x.n" in said.error + said.out or "x.mha" in said.error + said.out else "unnamed"
            ), detail
        word = "warned" if "warning:" in said.error else "right"
        wrong = self._wrong(folder)
        return (word, detail) if not wrong else ("silent" if word == "right" else "differs, warned", wrong)

    def _wrong(self, folder: Path) -> str:
        (file,) = (folder / "alone").iterdir()
        try:
            meant: Meaning = _FORMATS[file.name[1:]].meaning(folder / "alone")
        except Undefined as reason:
            return f"went on with what has no meaning: {reason}"
        if meant.values is None:
            return "went on with damaged data"
        made = next(iter((folder / "out").glob("x_sct.nii.gz")), None)
        if made is None or meant.affine is None:
            return ""
        grid = grid_of(read_volume(made))
        same = grid.shape == meant.shape and not apart(meant.shape, meant.affine, grid.affine, 1e-2)
        return "" if same else "the result lies elsewhere than its source"


@cache
def _sample(domain: str, suffix: str) -> bytes:
    volume = read_volume(next(iter((workplace() / "phantoms" / "test" / domain).iterdir())))
    path = workplace() / f"sample-{domain}{suffix}"
    write_volume(path, to_int16(volume.numpy()[0]), grid_of(volume))
    return path.read_bytes()


VERBS = {
    "verb-convert": Verb(
        "mr",
        lambda f: ["convert", workplace() / "run", f / "in", "-o", f / "out", "--device", "cpu"],
        "out/good_sct.nii.gz",
    ),
    "verb-prepare": Verb(
        "mr",
        lambda f: [
            *("prepare", "--a", f / "in", "--b", workplace() / "phantoms" / "train" / "ct"),
            *("-o", f / "out", "--workers", "1"),
        ],
        "out/a/good/image.npy",
    ),
    "verb-evaluate": Verb("ct", lambda f: ["evaluate", f / "in", f / "ref", "-o", f / "out", "--workers", "1"]),
    "verb-inspect": Verb("mr", lambda f: ["inspect", f / "in", "--workers", "1"]),
}
