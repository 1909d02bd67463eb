"""From a layout to a datalist: domains, copies, leaks, splits, and what MONAI and prepare read of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from monai.data import load_decathlon_datalist
from typer.testing import CliRunner

from medcyclegan import config, factory, phantom
from medcyclegan.cli import app
from medcyclegan.cohort.assembly import Assembly, assemble
from medcyclegan.cohort.datalist import from_json
from medcyclegan.cohort.domains import Selection
from medcyclegan.cohort.duplicates import survey_images
from medcyclegan.cohort.splits import SplitPlan
from medcyclegan.errors import InputError

MODALITIES = {"a": "MR", "b": "CT"}


def volume(path: Path, seed: int, *, shape: Sequence[int] = (4, 5, 6), shift: float = 0.0) -> Path:
    """A volume that no other seed gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[0, 3] = shift
    nib.Nifti1Image(np.random.default_rng(seed).normal(size=shape).astype(np.float32), affine).to_filename(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve patients, p0 to p5 with MR and CT on one grid, p6 to p8 with MR alone, p9 to p11 with CT alone."""
    for i in range(12):
        if i < 9:
            volume(tmp_path / "data" / "mr" / f"p{i}_mr.nii", i)
        if i < 6 or i > 8:
            volume(tmp_path / "data" / "ct" / f"p{i}_ct.nii", 100 + i)
    return tmp_path / "data"


def make(root: Path, modalities: Mapping[str, str] = MODALITIES, **options: Any) -> Assembly:
    """Options of `Selection` and of `SplitPlan`."""
    split = {key: options.pop(key) for key in ("val", "test", "folds", "seed") if key in options}
    return assemble(Selection(root, modalities, **options), SplitPlan(**split))


def people(content: dict, *names: str) -> set[str]:
    return {entry["patient"] for name in names for entry in content.get(name, [])}


def test_everything_is_trained_on_without_a_split(root: Path) -> None:
    found = make(root)
    assert found.counts() == {"a": 9, "b": 9, "pairs": 0}
    assert [case.id for case in found.cohort().a] == [f"p{i}_mr" for i in range(9)]


def test_patients_stay_on_one_side_and_monai_reads_every_list(root: Path) -> None:
    file = root / "cohort.json"
    make(root, val=0.25, test=0.25, seed=1).write(file)
    content = json.loads(file.read_text())
    sides = [people(content, *names) for names in (("a", "b"), ("val_a", "val_b"), ("test_a", "test_b"))]
    assert [len(side) for side in sides] == [6, 3, 3]
    assert len(set.union(*sides)) == 12
    assert people(content, "pairs") <= sides[1] and people(content, "test_pairs") <= sides[2]
    both = {f"p{i}" for i in range(6)}
    assert people(content, "pairs", "test_pairs") == (sides[1] | sides[2]) & both
    listed: set[Path] = set()
    for name in ("a", "b", "val_a", "val_b", "test_a", "test_b"):
        items = load_decathlon_datalist(str(file), is_segmentation=False, data_list_key=name)
        assert [item["image"] for item in items] == [str(root / entry["image"]) for entry in content[name]]
        listed |= {Path(item["image"]) for item in items}
    assert listed == set(root.rglob("*.nii"))
    pairs = load_decathlon_datalist(str(file), is_segmentation=False, data_list_key="pairs")
    assert all(Path(item[domain]).is_file() for item in pairs for domain in ("a", "b"))
    cohort = from_json(file)
    assert [len(cohort.a), len(cohort.b), len(cohort.pairs)] == [len(content[n]) for n in ("a", "b", "pairs")]
    assert cohort == make(root, val=0.25, test=0.25, seed=1).cohort()


def test_the_same_seed_writes_the_same_file(root: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("1.json", "2.json", "3.json")]
    for file, seed in zip(files, (0, 0, 5), strict=True):
        make(root, val=0.3, seed=seed).write(file)
    one, two, three = (json.loads(file.read_text()) for file in files)
    assert one == two and people(one, "val_a", "val_b") != people(three, "val_a", "val_b")


def test_only_a_datalist_is_written_over(root: Path) -> None:
    file = root / "dataset.json"
    file.write_text('{"modality": {"0": "MR"}}')
    with pytest.raises(InputError, match="no datalist of this program"):
        make(root).write(file)
    file.unlink()
    make(root).write(file)
    make(root, val=0.25).write(file)
    assert "val_a" in json.loads(file.read_text())


def test_folds(root: Path) -> None:
    file = root / "folds.json"
    make(root, folds=3, test=0.25).write(file)
    content = json.loads(file.read_text())
    tested = people(content, "test_a", "test_b")
    held = []
    for fold in range(3):
        cohort = from_json(file, fold)
        trained = {case.id.split("_")[0] for case in (*cohort.a, *cohort.b)}
        held.append(people(content, "a", "b") - trained)
        assert {a.id.split("_")[0] for a, _ in cohort.pairs} == held[-1] & {f"p{i}" for i in range(6)}
    assert [len(part) for part in held] == [3, 3, 3]
    assert set.union(*held, tested) == {f"p{i}" for i in range(12)} and len(tested) == 3
    for wrong in (None, 3):
        with pytest.raises(InputError, match="has the folds 0, 1, 2"):
            from_json(file, wrong)
    del content["a"][0]["fold"]
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="without a fold"):
        from_json(file, 0)


def test_a_datalist_with_a_leak_is_refused(root: Path) -> None:
    file = root / "cohort.json"
    make(root, val=0.25).write(file)
    content = json.loads(file.read_text())
    content["val_a"].append({**content["a"][0], "case": "another"})
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"'{content['a'][0]['patient']}' is in val_a too"):
        from_json(file)


def test_the_same_name_on_two_sides_is_a_leak(tmp_path: Path) -> None:
    for i, name in enumerate(("trainA/p1.nii", "trainB/p2.nii", "testA/p3.nii", "testB/p1.nii")):
        volume(tmp_path / name, i)
    with pytest.raises(InputError, match=r"patient 'p1': test: .*testB/p1.nii; train: .*trainA/p1.nii"):
        make(tmp_path)
    assert make(tmp_path, patient="(.*)").counts()["test_b"] == 1


def test_a_copy_on_two_sides_is_a_leak_whatever_its_format_and_axes(tmp_path: Path) -> None:
    volume(tmp_path / "trainA/p1.nii", 1)
    volume(tmp_path / "trainB/p2.nii", 2)
    image = nib.load(tmp_path / "trainA/p1.nii")
    turned = image.as_reoriented(nib.orientations.axcodes2ornt(("P", "S", "L")))
    nib.save(
        nib.Nifti1Image(np.ascontiguousarray(turned.get_fdata(dtype=np.float32)), turned.affine), tmp_path / "t.nii"
    )
    (tmp_path / "testA").mkdir()
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "t.nii")), str(tmp_path / "testA/q.mha"))
    (tmp_path / "t.nii").unlink()
    with pytest.raises(InputError, match=r"copies of one scan are in more than one(.|\n)*q\.mha, .*p1\.nii"):
        make(tmp_path)


def test_a_copy_is_left_out_and_its_owners_are_one_patient(root: Path) -> None:
    (root / "mr/p7_mr.nii").write_bytes((root / "mr/p0_mr.nii").read_bytes())
    volume(root / "ct/p7_ct.nii", 777)
    found = make(root, folds=5)
    assert [note for note in found.notes if "p0_mr.nii, " in note and "p7_mr.nii" in note]
    assert "p0_mr" in {scan.case for scan in found.scans} and "p7_mr" not in {scan.case for scan in found.scans}
    assert found.counts()["a"] == 8
    owners = {scan.case: scan.patient for scan in found.scans}
    assert owners["p7_ct"] == owners["p0_mr"] == "p0"


def test_one_scan_in_both_domains_is_refused(root: Path) -> None:
    (root / "ct/x.nii").write_bytes((root / "mr/p0_mr.nii").read_bytes())
    with pytest.raises(InputError, match="the same scan is in both domains"):
        make(root)


def test_a_moved_header_is_still_a_copy_and_other_voxels_are_none(tmp_path: Path) -> None:
    files = [volume(tmp_path / "1.nii", 1), volume(tmp_path / "2.nii", 1, shift=50.0), volume(tmp_path / "3.nii", 2)]
    found, failed = survey_images(files)
    assert not failed
    first, moved, other = (found[file].digest for file in files)
    assert first == moved != other


def test_one_file_listed_twice_is_a_copy_of_itself(tmp_path: Path) -> None:
    for i, name in enumerate(("1.nii", "2.nii", "3.nii")):
        volume(tmp_path / name, i)
    lines = ["image,case,patient,domain,split", "1.nii,x,p,a,train", "2.nii,y,q,b,train", "1.nii,z,r,a,train"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    assert make(tmp_path).counts()["a"] == 1
    (tmp_path / "list.csv").write_text("\n".join([*lines[:3], "1.nii,z,r,a,test"]))
    with pytest.raises(InputError, match="copies of one scan are in more than one"):
        make(tmp_path)
    (tmp_path / "list.csv").write_text("\n".join([*lines[:3], "3.nii,../z,r,a,test"]))
    with pytest.raises(InputError, match=r"cannot be case ids(.|\n)*'\.\./z'"):
        make(tmp_path)


def test_what_cannot_be_read_is_named_and_in_no_split(root: Path) -> None:
    """With every seed the 3 patients of 11 who validate are ones that can be read."""
    (root / "mr/p6_mr.nii").write_bytes(b"nonsense")
    found = make(root)
    assert list(found.failed) == [root / "mr/p6_mr.nii"] and found.counts()["a"] == 8
    assert len(found.cohort().a) == 9, "preparation reports it by name"
    for seed in range(8):
        found = make(root, val=0.27, seed=seed)
        assert len({scan.patient for scan in found.scans if scan.split == "val"}) == 3
        assert all(scan.patient != "p6" for scan in found.scans if scan.split == "val")


def test_nothing_left_to_train_on_is_refused(tmp_path: Path) -> None:
    for i, name in enumerate(("mr/p1.nii", "mr/p2.nii", "ct/p3.nii")):
        volume(tmp_path / name, i)
    refused = 0
    for seed in range(8):
        try:
            assert make(tmp_path, val=0.3, seed=seed).counts()["b"] == 1
        except InputError as error:
            refused += 1
            assert "domain b: 1 scans, all of which validate or test" in str(error)
    assert 0 < refused < 8


def test_several_kinds_are_asked_about(tmp_path: Path) -> None:
    for i, kind in enumerate(("t1", "t2", "ct")):
        volume(tmp_path / kind / "p1.nii", i)
    with pytest.raises(InputError) as caught:
        make(tmp_path)
    assert "t1 (1), t2 (1); name one with --contrast-a" in str(caught.value)
    found = make(tmp_path, contrasts={"a": "T2"})
    assert [scan.image.parent.name for scan in found.scans] == ["t2", "ct"]
    assert "not taken: 1 scans of MR t1" in found.notes
    with pytest.raises(InputError, match=r"no scans of this domain and contrast 'pd'"):
        make(tmp_path, contrasts={"a": "pd"})
    with pytest.raises(InputError, match=r"contrasts are not joined as channels(.|\n)*'p1': t1, t2"):
        make(tmp_path, contrasts={"a": "t?"})
    same = make(tmp_path, modalities={"a": "MR", "b": "MR"}, contrasts={"a": "t1", "b": "t2"})
    assert same.counts() == {"a": 1, "b": 1, "pairs": 0}
    with pytest.raises(InputError, match="1 scans fit both domains"):
        make(tmp_path, modalities={"a": "MR", "b": "MR"}, contrasts={"a": "t1", "b": "t1"})


def test_cbct_is_no_mr(tmp_path: Path) -> None:
    for i, kind in enumerate(("cbct", "ct")):
        volume(tmp_path / "2BA001" / f"{kind}.nii.gz", i)
    with pytest.raises(InputError, match=r"domain a \(MR\): no scans of this domain"):
        make(tmp_path)
    assert make(tmp_path, modalities={"a": "CT", "b": "CT"}).counts() == {"a": 1, "b": 1, "pairs": 0}


def test_pairs_need_one_grid_and_one_partner(tmp_path: Path) -> None:
    rows = ["image,domain,patient,case,split"]
    scans = (
        ("a1", "p1", "a", 0.0),
        ("b1", "p1", "b", 0.01),
        ("a2", "p2", "a", 0.0),
        ("b2", "p2", "b", 3.0),
        ("a3", "p3", "a", 0.0),
        ("b3", "p3", "b", 0.0),
        ("c3", "p3", "b", 0.0),
    )
    for seed, (case, patient, domain, shift) in enumerate(scans):
        volume(tmp_path / f"{case}.nii", seed, shift=shift)
        rows.append(f"{case}.nii,{domain},{patient},{case},{'val' if domain == 'a' else ''}")
    for domain in "ab":
        volume(tmp_path / f"t{domain}.nii", ord(domain))
        rows.append(f"t{domain}.nii,{domain},t{domain},t{domain},train")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    found = make(tmp_path)
    assert [(a.case, b.case) for a, b in found.pairs] == [("a1", "b1")]
    none = "no pairs for validation or testing, because"
    assert f"{none} no scan of b lies on the grid of that of a: a2" in found.notes
    assert f"{none} several scans of b lie on the grid of that of a: a3" in found.notes
    # The CT of a patient who validates have no split of their own, and go with the patient.
    assert found.counts() == {"a": 1, "b": 1, "pairs": 1, "val_a": 3, "val_b": 4}


def test_a_set_of_the_layout_is_not_drawn_again(tmp_path: Path) -> None:
    for i, name in enumerate(("trainA/p1.nii", "trainB/p1.nii", "trainA/p3.nii", "trainB/p3.nii", "testA/p4.nii")):
        volume(tmp_path / name, i)
    with pytest.raises(InputError, match="the layout has its own test set"):
        make(tmp_path, test=0.2)
    found = make(tmp_path, val=0.3)
    assert found.counts() == {"a": 1, "b": 1, "pairs": 1, "val_a": 1, "val_b": 1, "test_a": 1}
    with pytest.raises(InputError, match="each of them validates once"):
        make(tmp_path, val=0.3, folds=2)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("(", "no regular expression"), ("p", "has no group"), ("mr/(x)", "finds nobody in")],
)
def test_patient_pattern_mistakes(root: Path, pattern: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(root, patient=pattern)


def test_a_pattern_unites_what_names_keep_apart(root: Path) -> None:
    owners = {scan.patient for scan in make(root, patient=r"/p(\d)").scans}
    assert owners == set("0123456789")  # p1, p10 and p11 are one


def test_unicode_and_spaces_go_through_the_datalist(tmp_path: Path) -> None:
    volume(tmp_path / "my dätä/mr/Zoë Müller mr.nii.gz", 1)
    volume(tmp_path / "my dätä/ct/Åsa ct.nii.gz", 2)
    file = tmp_path / "lïst ø.json"
    make(tmp_path / "my dätä").write(file)
    cohort = from_json(file)
    assert cohort.a[0].images[0].is_file() and cohort.b[0].id == "Åsa ct"


def test_the_verb_writes_warns_and_fails(root: Path, tmp_path: Path) -> None:
    (root / "mr/p3_mr.nii").write_bytes(b"nonsense")
    volume(root / "other/x.nii", 5)
    file = tmp_path / "cohort.json"
    done = CliRunner().invoke(app, ["datalist", str(root), "-o", str(file), "--val", "0.2", "--json"])
    assert done.exit_code == 1, done.stderr
    assert "p3_mr.nii" in done.stderr and "1 in other" in done.stderr
    content = json.loads(done.stdout)
    assert content["lists"] == {n: len(v) for n, v in json.loads(file.read_text()).items() if n != "about"}
    wrong = CliRunner().invoke(app, ["datalist", str(root), "-o", str(file), "--folds", "2", "--val", "0.1"])
    assert isinstance(wrong.exception, InputError) and "each of them validates once" in str(wrong.exception)
    wrong = CliRunner().invoke(app, ["datalist", str(root), "-o", str(file), "--set", "domains.b.modality=PET"])
    assert isinstance(wrong.exception, InputError) and "'MR' or 'CT'" in str(wrong.exception)


def test_the_command_line_keeps_how_pictures_are_understood(tmp_path: Path) -> None:
    given = config.load(None, ["data.picture_window=[-1000,2000]", "data.source=old"])
    moved = config.with_data(given, {"source": tmp_path, "layout": "cyclegan", "a": None})
    assert moved.data == config.Data(source=tmp_path, layout="cyclegan", picture_window=(-1000.0, 2000.0))
    assert config.with_data(given, {"a": None}) == given


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"layout": "bids"}, "belong to source"),
        ({"a": "x", "b": "y", "fold": 1}, "belong to source"),
        ({"source": "x", "a": "y", "b": "z"}, "give only one of"),
        ({"source": "x", "picture_window": [2, 1]}, "the first value must be below the second"),
        ({"root": "x", "layout": "bids"}, "root: this key is called source now"),
    ],
)
def test_configs_that_contradict_themselves(data: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        config.parse({"data": data}, "the test")


def test_a_layout_in_a_config_is_no_path(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("data: {source: cohort, layout: bids, contrast_a: T1w, patient: '(.*)'}")
    data = config.load(tmp_path / "x.yaml").data
    assert (data.source, data.layout, data.contrast_a, data.patient) == (tmp_path / "cohort", "bids", "T1w", "(.*)")


def test_phantoms_are_prepared_from_a_root_and_from_a_fold(cohort: phantom.Cohort, tmp_path: Path) -> None:
    """The synthrad layout end to end: two heads with both scans, one of which validates."""
    for name in ("1BA001", "1BA002", "1BB003"):
        (tmp_path / "data" / name).mkdir(parents=True)
    sources = [*zip(cohort.train_mr, cohort.train_ct, strict=True), (cohort.test_mr[0], cohort.test_ct[0])]
    for name, files in zip(("1BA001", "1BA002", "1BB003"), sources, strict=True):
        for kind, file in zip(("mr", "ct"), files, strict=True):
            (tmp_path / "data" / name / f"{kind}.nii.gz").symlink_to(file)
    make(tmp_path / "data", folds=3).write(tmp_path / "folds.json")
    fold = next(e["fold"] for e in json.loads((tmp_path / "folds.json").read_text())["pairs"] if e["case"] == "1BB003")
    given = {"data": {"source": str(tmp_path / "folds.json"), "fold": fold}}
    prepared = factory.prepare(config.parse(given, "the test"), tmp_path / "prepared")
    assert [case.id for case in prepared.cases["a"]] == ["1BA001", "1BA002"]
    assert [case.id for case in prepared.cases["pairs_b"]] == ["1BB003"]
    given = {"data": {"source": str(tmp_path / "data")}}
    prepared = factory.prepare(config.parse(given, "the test"), tmp_path / "again")
    assert [len(prepared.cases[group]) for group in ("a", "b", "pairs_a")] == [3, 3, 0]
