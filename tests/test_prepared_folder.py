"""A prepared folder is whole, of one preparation and as it was written, or it is refused by name; and it heals."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from prepared_cohorts import prepare

from medcyclegan import config, factory
from medcyclegan.atomic import folder_lock
from medcyclegan.cohort.cases import Cohort, from_folders
from medcyclegan.data import examination, stored_case
from medcyclegan.data import prepared as preparing
from medcyclegan.data.prepared import PreparedCohort, open_prepared
from medcyclegan.data.stored_case import checksum, open_case, read_record, write_record
from medcyclegan.errors import InputError
from medcyclegan.progress import Silent
from medcyclegan.training.trainer import Optimization

Folders = tuple[Path, Path]


def head(shape: tuple[int, int, int], ct: bool) -> np.ndarray:
    """An ellipsoid with a shell, in HU or in arbitrary units."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    radius = np.sqrt(((x - 0.1) / 0.8) ** 2 + (y / 0.85) ** 2 + (z / 0.9) ** 2)
    values = np.full(shape, -1000.0 if ct else 0.0)
    values[radius < 1] = 900 if ct else 250
    values[radius < 0.85] = 40 if ct else 600
    return values + (100 * x + 70 * y + 40 * z) * (radius < 1)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Two MR and two CT of 16 x 18 x 14 voxels of 10 mm."""
    folder = tmp_path_factory.mktemp("volumes")
    for domain, ct in (("mr", False), ("ct", True)):
        (folder / domain).mkdir()
        for number in (1, 2):
            image = nib.Nifti1Image(head((16, 18, 14), ct).astype(np.int16) + number, np.diag([10, 10, 10, 1]))
            nib.save(image, folder / domain / f"{number}.nii")
    return folder / "mr", folder / "ct"


def make(volumes: Folders, output: Path, spacing: float = 10.0, **settings: Any) -> PreparedCohort:
    return prepare(from_folders(*volumes), output, spacing=(spacing,) * 3, **settings)


@pytest.fixture(scope="module")
def whole(volumes: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "prepared"
    make(volumes, folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "prepared"))


def content(folder: Path) -> dict[str, bytes]:
    """Every file but the lock, leftovers included."""
    files = (f for f in folder.rglob("*") if f.is_file() and f.name != ".lock")
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in files}


def experiment(folder: Path, **changes: Any) -> config.Experiment:
    content = {
        "data": {"source": str(folder)},
        "model": {"generator": {"filters": 4, "blocks": 1}, "discriminator": {"filters": 4, "layers": 1}},
        "training": {"steps": 1, "precision": "float32"},
        "patches": {"size": [16, 16]},
    }
    return config.parse({**content, **changes}, "the test")


def flip_a_bit(path: Path, at: int = -1000) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def shift(path: Path) -> None:
    np.save(path, np.asfortranarray(np.roll(np.load(path), 1, axis=-3)))


def turn_around(path: Path) -> None:
    """The same bytes, read in the other order."""
    array = np.load(path)
    np.save(path, np.asfortranarray(array[..., ::-1, :, :]))


def save(array: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda path: np.save(path, np.asfortranarray(array(np.load(path))), allow_pickle=True)


def header(**fields: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        raw = path.read_bytes()
        length = int.from_bytes(raw[8:10], "little")
        header_fields = {"descr": "<i2", "fortran_order": True, "shape": (1, 16, 18, 14)} | fields
        path.write_bytes(raw[:10] + repr(header_fields).encode().ljust(length - 1) + b"\n" + raw[10 + length :])

    return write


SEEN_AT_ONCE: dict[str, Callable[[Path], None]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "cut in its header": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0\0"),
    "no array": lambda path: path.write_bytes(b"nothing"),
    "of floats": save(lambda array: array.astype(np.float32)),
    "of another shape": save(lambda array: array[:-1]),
    "of objects": save(lambda array: array.astype(object)),
    "huge": header(shape=(1 << 40, 1 << 40, 1 << 40)),
    "negative": header(shape=(1, -16, 18, 14)),
    "of no type": header(descr="wild"),
    "with a header that is no literal": header(descr="(" * 40),
    "missing": lambda path: path.unlink(),
}
SEEN_BY_CHECKSUM: dict[str, Callable[[Path], None]] = {
    "one bit": flip_a_bit,
    "shifted by a voxel": shift,
    "mirrored": turn_around,
    "another order of axes": header(fortran_order=False),
}


@pytest.mark.parametrize("damage", SEEN_AT_ONCE.values(), ids=SEEN_AT_ONCE)
def test_an_array_of_another_form_is_refused_by_name_and_made_anew(
    damage: Callable[[Path], None], volumes: Folders, folder: Path, whole: Path
) -> None:
    damage(folder / "a/2/image.npy")
    with pytest.raises(InputError, match=r"cannot be used(.|\n)*a/2/image\.npy"):
        open_prepared(folder)
    with pytest.warns(UserWarning, match=r"made anew: .*a/2/image\.npy"):
        make(volumes, folder)
    assert content(folder) == content(whole)


@pytest.mark.parametrize("name", ["a/1/image.npy", "b/2/body.npy"])
@pytest.mark.parametrize("damage", SEEN_BY_CHECKSUM.values(), ids=SEEN_BY_CHECKSUM)
def test_a_training_notices_every_changed_array_before_it_begins(
    name: str, damage: Callable[[Path], None], volumes: Folders, folder: Path, whole: Path, tmp_path: Path
) -> None:
    if damage is SEEN_BY_CHECKSUM["another order of axes"] and "body" in name:
        damage = header(fortran_order=False, descr="|b1", shape=(16, 18, 14))
    damage(folder / name)
    with pytest.raises(InputError, match=rf"is prepared again(.|\n)*{name} is damaged or was changed"):
        factory.train(experiment(folder), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
    with pytest.warns(UserWarning, match=rf"made anew: .*{name}"):
        make(volumes, folder)
    assert content(folder) == content(whole)
    open_prepared(folder).verify(Silent())


@pytest.mark.parametrize("name", ["a/1/case.json", "prepared.json"])
def test_a_record_that_is_damaged_is_refused_by_name_and_made_anew(
    name: str, volumes: Folders, folder: Path, whole: Path
) -> None:
    file = folder / name
    text = file.read_text()
    for damaged in (
        text.replace("10.0", "12.0", 1),
        text.replace('"version"', '"versions"', 1),
        text[: len(text) // 2],
        "[" * 100_000,
        '{"key": ' + "9" * 5_000 + "}",
        "[]",
        "\0",
        "",
    ):
        assert damaged != text
        file.write_text(damaged)
        with pytest.raises(
            InputError, match=r"is prepared again from the same volumes|run the same command again"
        ) as caught:
            open_prepared(folder)
        assert len(str(caught.value)) < 1500
        make(volumes, folder)
        assert content(folder) == content(whole)
    file.unlink()
    with pytest.raises(InputError, match=r"there is no record .*case\.json|Its preparation was interrupted"):
        open_prepared(folder)
    make(volumes, folder)
    assert content(folder) == content(whole)


def test_a_folder_of_an_earlier_format_is_refused_by_name_and_made_anew(
    volumes: Folders, folder: Path, whole: Path
) -> None:
    record = read_record(folder / "prepared.json")
    cases = {group: list(keys) for group, keys in record["cases"].items()}
    (folder / "prepared.json").write_text(json.dumps({**record, "version": 4, "cases": cases}))
    for case in folder.glob("*/*/case.json"):
        stored = read_record(case)
        del stored["checksums"]
        case.write_text(json.dumps(stored))
    with pytest.raises(
        InputError, match=r"another version .*\(format 4, now 5\). Prepare the same volumes into it again"
    ):
        open_prepared(folder)
    make(volumes, folder)
    assert content(folder) == content(whole)


def test_cases_of_two_preparations_are_refused(volumes: Folders, folder: Path, tmp_path: Path) -> None:
    make(volumes, tmp_path / "coarse", spacing=12)
    shutil.rmtree(folder / "a/1")
    shutil.copytree(tmp_path / "coarse/a/1", folder / "a/1")
    with pytest.raises(InputError, match="a/1 is of another preparation, which was interrupted or failed"):
        open_prepared(folder)
    with pytest.raises(InputError, match="a/1 is of another preparation"):
        factory.train(experiment(folder), tmp_path / "run", device="cpu")


@pytest.mark.parametrize("changed", ["first", "settings", "volumes"])
def test_killed_at_any_write_the_same_preparation_completes_as_if_undisturbed(
    changed: str, volumes: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file that is written, moved or removed may be the last; nothing cleans up, as after SIGKILL."""
    for domain, source in zip(("mr", "ct"), volumes, strict=True):
        shutil.copytree(source, tmp_path / domain)
    given, initial = (tmp_path / "mr", tmp_path / "ct"), tmp_path / "initial"
    spacing = 12.0 if changed == "settings" else 10.0
    # What is computed is the same every time: it is computed once.
    known: dict[str, Any] = {}

    def once(function: Callable[..., Any]) -> Callable[..., Any]:
        def remembered(subjects: Any, *arguments: Any, **options: Any) -> Any:
            key = repr((function, [v.meta.get("filename_or_obj", v) for v in subjects], arguments))
            if key not in known:
                known[key] = function(subjects, *arguments, **options)
            return known[key]

        return remembered

    monkeypatch.setattr(preparing, "prepare", once(preparing.prepare))
    monkeypatch.setattr(preparing, "landmark_shares", once(preparing.landmark_shares))
    monkeypatch.setattr(examination, "_findings", lambda *_: ())
    monkeypatch.setattr(os, "fsync", lambda _: None)  # power stays on

    class Killed(BaseException):
        pass

    make(given, initial, mr_standardization="nyul")
    if changed == "volumes":
        (tmp_path / "mr/2.nii").rename(tmp_path / "mr/3.nii")
        flip_a_bit(tmp_path / "ct/1.nii", -900)
        known.clear()
    make(given, tmp_path / "wanted", spacing, mr_standardization="nyul")
    expected = content(tmp_path / "wanted")
    left = 0

    def step(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return function(*arguments, **options)

        return counted

    # What follows the kill does not happen: neither does what would clean up.
    monkeypatch.setattr(Path, "replace", step(Path.replace))
    monkeypatch.setattr(shutil, "rmtree", step(shutil.rmtree))
    monkeypatch.setattr(np, "save", step(np.save))
    monkeypatch.setattr(Path, "unlink", step(Path.unlink))
    monkeypatch.setattr(Path, "write_text", step(Path.write_text))
    kills, usable = 0, 0
    while True:
        output = tmp_path / "prepared"
        left = 10_000
        if output.exists():
            shutil.rmtree(output)
        if changed != "first":
            shutil.copytree(initial, output)
        left = kills
        try:
            make(given, output, spacing, mr_standardization="nyul")
        except Killed:
            left = 10_000
        else:
            break
        try:
            found = open_prepared(output)
        except InputError:
            pass
        else:  # the old state or the new one, whole
            usable += 1
            spacings = {tuple(np.round(case.grid.spacing)) for cases in found.cases.values() for case in cases}
            assert len(spacings) == 1
        make(given, output, spacing, mr_standardization="nyul")
        assert content(output) == expected, f"killed at step {kills}"
        kills += 1
    # Per case two arrays are written, a record and the folder moved; then the record of all.
    assert kills > 12 and usable and content(output) == expected


def test_a_second_preparation_is_refused_and_changes_nothing(
    volumes: Folders, folder: Path, whole: Path, tmp_path: Path
) -> None:
    with folder_lock(folder):
        with pytest.raises(InputError, match="is in use: another process prepares it or trains on it"):
            make(volumes, folder, spacing=12)
        with pytest.raises(InputError, match="is being prepared by another process at this moment"):
            open_prepared(folder)
        with pytest.raises(InputError, match="is being prepared by another process at this moment"):
            factory.train(experiment(folder), tmp_path / "run", device="cpu")
        assert content(folder) == content(whole)
    assert open_prepared(folder).cases["a"]


def test_nobody_prepares_what_is_trained_on(volumes: Folders, folder: Path, whole: Path) -> None:
    found = open_prepared(folder)
    with found.in_use(), open_prepared(folder).in_use():  # trainings share it
        with pytest.raises(InputError, match="is in use"):
            make(volumes, folder, spacing=12)
        assert content(folder) == content(whole)
    make(volumes, folder)  # changes nothing
    with found.in_use():
        pass
    make(volumes, folder, spacing=12)
    with pytest.raises(InputError, match="was prepared anew a moment ago"), found.in_use():
        pass


def test_a_training_keeps_its_data_from_being_prepared(volumes: Folders, folder: Path, tmp_path: Path) -> None:
    tried = []

    def train() -> None:
        with pytest.raises(InputError, match="is in use"):
            make(volumes, folder, spacing=12)
        tried.append(True)

    found, settings = open_prepared(folder), experiment(folder)
    loader = SimpleNamespace(dataset=SimpleNamespace(left_out={}))
    state = {"iteration": 1, "interrupted": False, "companions": {}, "best": None, "optimization": Optimization()}
    trainer = SimpleNamespace(run=train, data_loader=loader, state=SimpleNamespace(**state), **state)
    factory.runs._run(trainer, factory.Training(settings, found, tmp_path, torch.device("cpu")))  # type: ignore[arg-type]
    assert tried == [True]


FOREIGN: dict[str, dict[str, str]] = {
    "patients in the folders of the domains": {"a/patient/1.dcm": "", "b/patient/1.dcm": ""},
    "volumes in the folders of the domains": {"a/1.nii": "", "b/1.nii": ""},
    "a prepared.json of another program": {"prepared.json": '{"format": "other"}', "a/1/case.json": ""},
    "a prepared.json that is no JSON": {"prepared.json": "yesterday"},
    "a file that is called as a domain": {"a": ""},
    "a note": {"thesis.docx": ""},
}


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
def test_what_is_not_ours_is_left_as_it_is(files: dict[str, str], volumes: Folders, tmp_path: Path) -> None:
    for name, text in {**files, ".partial-report.txt": "mine"}.items():
        (tmp_path / "other" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "other" / name).write_text(text)
    before = content(tmp_path)
    with pytest.raises(InputError, match="holds something else"):
        make(volumes, tmp_path / "other")
    with pytest.raises(InputError, match=r"is not a prepared folder|cannot be used"):
        open_prepared(tmp_path / "other")
    assert content(tmp_path) == before and not (tmp_path / "other/.lock").exists()


def test_what_somebody_put_into_a_prepared_folder_stays(volumes: Folders, folder: Path, whole: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    make(volumes, folder)
    assert (folder / "notes.txt").read_text() == "mine"
    (folder / "a/1/notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds something else \(a/1\)"):
        make(volumes, folder, spacing=12)
    assert (folder / "a/1/notes.txt").read_text() == "mine"


def test_a_refused_preparation_leaves_no_folder(volumes: Folders, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="seem to be swapped"):
        make(volumes[::-1], tmp_path / "prepared")
    assert not (tmp_path / "prepared").exists()


def test_every_file_of_every_input_counts(volumes: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images, masks, second channels and pairs: a changed byte in any of their files makes the case another."""
    from medcyclegan.cohort.cases import Case

    names = ["mr.x", "mask.x", "t2.x", "ct.x", "pair_a.x", "pair_b.x", "pair_mask.x"]
    for name in names:
        for part in (name, f"{name}.1", f"{name}.2"):
            (tmp_path / part).write_bytes(part.encode())
    monkeypatch.setattr(examination, "volume_files", lambda path: [path, *(Path(f"{path}.{n}") for n in (1, 2))])
    at = {name: tmp_path / name for name in names}
    cohort = Cohort(
        (Case("1", (at["mr.x"], at["t2.x"]), at["mask.x"]),),
        (Case("2", (at["ct.x"],)),),
        (tuple(Case("3", (at[f"pair_{domain}.x"],), at["pair_mask.x"]) for domain in "ab"),),
    )
    jobs = preparing._cases(cohort)

    def hashes() -> dict[str, str]:
        return {name: json.dumps(examination.content_of(job)) for name, job in jobs.items()}

    belongs = {"mr.x": "a/1", "mask.x": "a/1", "t2.x": "a/1", "ct.x": "b/2", "pair_a.x": "pairs_a/3"}
    belongs |= {"pair_b.x": "pairs_b/3"}
    before = hashes()
    for name in names:
        for part in (name, f"{name}.1", f"{name}.2"):
            raw = (tmp_path / part).read_bytes()
            (tmp_path / part).write_bytes(raw[:-1] + b"?")
            now = hashes()
            changed = {job for job in now if now[job] != before[job]}
            assert changed == ({belongs[name]} if name in belongs else {"pairs_a/3", "pairs_b/3"})
            (tmp_path / part).write_bytes(raw)
    # What is moved from one file to the next is a change, too.
    (tmp_path / "ct.x").write_bytes(b"ct.xc")
    (tmp_path / "ct.x.1").write_bytes(b"t.x.1")
    assert hashes() != before


def test_the_checksum_is_that_of_zip_and_png(tmp_path: Path) -> None:
    """CRC-32 of "123456789" is cbf43926 (the catalogue's check value); a file of several blocks is one."""
    (tmp_path / "x").write_bytes(b"123456789")
    assert checksum(tmp_path / "x") == 0xCBF43926
    (tmp_path / "x").write_bytes(bytes(stored_case._BLOCK) + b"123456789")
    import zlib

    assert checksum(tmp_path / "x") == zlib.crc32(b"123456789", zlib.crc32(bytes(stored_case._BLOCK)))


def test_a_record_survives_exactly_and_notices_a_digit(tmp_path: Path) -> None:
    content = {"x": 0.1 + 0.2, "y": [1, None, "ä"], "z": {"b": True, "a": -1e-300}}
    write_record(tmp_path / "r.json", content)
    assert read_record(tmp_path / "r.json") == content
    raw = (tmp_path / "r.json").read_text()
    (tmp_path / "r.json").write_text(raw.replace("0.30000000000000004", "0.30000000000000005"))
    assert read_record(tmp_path / "r.json") == content  # the same number
    (tmp_path / "r.json").write_text(raw.replace("0.30000000000000004", "0.3"))
    with pytest.raises(InputError, match=r"r\.json is damaged or was changed"):
        read_record(tmp_path / "r.json")


def test_a_file_that_may_not_be_read_is_not_called_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path, *_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    with pytest.raises(InputError, match=r"prepared\.json cannot be read: .*Permission denied"):
        open_prepared(folder)
    monkeypatch.undo()
    case = open_case(folder / "a/1")
    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(InputError, match=r"image\.npy cannot be read: Permission denied"):
        _ = case.image
    assert "image.npy cannot be read: Permission denied" in next(case.damage())


def test_an_array_that_is_damaged_while_it_is_used_is_refused_by_name(folder: Path) -> None:
    case = open_prepared(folder).cases["a"][0]
    SEEN_AT_ONCE["cut"](folder / "a/1/image.npy")
    with pytest.raises(InputError, match=r"a/1/image\.npy is damaged: it has \d+ bytes"):
        _ = case.image


@pytest.fixture(autouse=True)
def no_lock_is_kept(tmp_path: Path) -> Iterator[None]:
    yield
    for lock in tmp_path.rglob(".lock"):
        with folder_lock(lock.parent):
            pass
