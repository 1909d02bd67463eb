"""Several contrasts of a patient: which files belong together, and how they come onto one working grid."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_files import write_series
from monai.data import MetaTensor, load_decathlon_datalist
from monai.transforms import LoadImaged
from prepared_cohorts import prepare as prepare_cases

from medcyclegan import config, factory, phantom
from medcyclegan.cohort.assembly import Assembly, assemble
from medcyclegan.cohort.cases import Case, Cohort
from medcyclegan.cohort.datalist import from_json
from medcyclegan.cohort.domains import Selection
from medcyclegan.cohort.splits import SplitPlan
from medcyclegan.data.augment import Augmentation
from medcyclegan.data.patches import PatchSpec, Sampling, TrainingPatches, stack_of_slices
from medcyclegan.data.prepared import PreparedCohort
from medcyclegan.data.probe import probe_patches
from medcyclegan.data.slices import Slices, measure_slices
from medcyclegan.data.stored_image import StoredImage, encode
from medcyclegan.errors import InputError
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import read_volume
from medcyclegan.transforms.overlay import apart_mm, covered
from medcyclegan.transforms.pipeline import Preparation, landmark_shares, prepare

MODALITIES = {"a": "MR", "b": "CT"}


def volume(path: Path, seed: int, *, shape: tuple[int, ...] = (4, 5, 6)) -> Path:
    """A small volume that no other seed gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    nib.Nifti1Image(values, np.diag([1.0, 2.0, 3.0, 1.0])).to_filename(path)
    return path


def make(root: Path, wanted: str = "T1w,T2w", b: str | None = None, val: float = 0.0) -> Assembly:
    return assemble(Selection(root, MODALITIES, contrasts={"a": wanted, "b": b}), SplitPlan(val))


def images(found: Assembly) -> list[list[str]]:
    return [[image.name for image in case.images] for case in found.cohort().a]


def test_bids_files_of_a_session_are_joined_in_the_order_asked_for(tmp_path: Path) -> None:
    for i, name in enumerate(("01_ses-1", "01_ses-2", "02_acq-fast")):
        folder = tmp_path / f"sub-{name.split('_')[0]}" / (name.split("_")[1] if "ses" in name else "") / "anat"
        volume(folder / f"sub-{name}_T1w.nii", i)
        # The case ids of patient 02 differ, because the sequences are named: the patient tells.
        volume(folder / f"sub-{name.replace('acq-fast', 'acq-slow')}_T2w.nii", 10 + i)
    volume(tmp_path / "sub-09" / "ct" / "sub-09_ct.nii", 30)
    found = make(tmp_path)
    assert sorted(images(found)) == [
        ["sub-01_ses-1_T1w.nii", "sub-01_ses-1_T2w.nii"],
        ["sub-01_ses-2_T1w.nii", "sub-01_ses-2_T2w.nii"],
        ["sub-02_acq-fast_T1w.nii", "sub-02_acq-slow_T2w.nii"],
    ]
    assert found.contrasts == {"a": ("T1w", "T2w")}
    turned = make(tmp_path, "t2w, T1w")
    assert turned.contrasts == {"a": ("T2w", "T1w")}
    assert sorted(images(turned))[0] == ["sub-01_ses-1_T2w.nii", "sub-01_ses-1_T1w.nii"]


def test_nnunet_channels_are_joined(tmp_path: Path) -> None:
    for n in (1, 2):
        for channel in (0, 1):
            volume(tmp_path / "Dataset001" / "imagesTr" / f"k{n}_000{channel}.nii.gz", 10 * n + channel)
    volume(tmp_path / "Dataset002" / "imagesTr" / "q_0000.nii.gz", 40)
    (tmp_path / "Dataset001" / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "FLAIR"}}))
    (tmp_path / "Dataset002" / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}}))
    found = make(tmp_path, "FLAIR,T1")
    assert images(found) == [["k1_0001.nii.gz", "k1_0000.nii.gz"], ["k2_0001.nii.gz", "k2_0000.nii.gz"]]
    assert [case.id for case in found.cohort().a] == ["k1", "k2"]


def test_folders_tables_and_dicom_are_joined_by_patient(tmp_path: Path) -> None:
    for n in (1, 2):
        volume(tmp_path / "folders" / "t1" / f"p{n}_t1.nii", n)
        volume(tmp_path / "folders" / "t2" / f"p{n}_t2.nii", 10 + n)
    volume(tmp_path / "folders" / "ct" / "q.nii", 20)
    assert images(make(tmp_path / "folders", "t1,t2")) == [["p1_t1.nii", "p1_t2.nii"], ["p2_t1.nii", "p2_t2.nii"]]

    rows = [("folders/t1/p1_t1.nii", "MR", "A", "T1w"), ("folders/t2/p1_t2.nii", "MR", "A", "T2w")]
    rows += [("folders/ct/q.nii", "CT", "Q", "")]
    table = tmp_path / "list.csv"
    table.write_text("image,modality,patient,kind\n" + "".join(",".join(row) + "\n" for row in rows))
    assert images(make(table)) == [["p1_t1.nii", "p1_t2.nii"]]

    for seed, kind in enumerate(("t1 axial", "t2 axial")):

        def named(ds: object, _: int, kind: str = kind) -> None:
            ds.SeriesDescription = kind  # type: ignore[attr-defined]

        array = np.random.default_rng(seed).integers(1, 900, (6, 7, 5), dtype=np.int16)
        write_series(tmp_path / "dicom" / "P1" / kind[:2], array, change=named)
    array = np.random.default_rng(9).integers(1, 900, (6, 7, 5), dtype=np.int16)
    write_series(
        tmp_path / "dicom" / "P2", array, modality="CT", change=lambda ds, _: setattr(ds, "PatientID", "other")
    )
    (case,) = make(tmp_path / "dicom").cohort().a
    assert len(set(case.images)) == 2
    assert all(image.name.startswith("P1#") for image in case.images)


def test_who_lacks_a_contrast_is_left_out_by_name(tmp_path: Path) -> None:
    for n, kinds in enumerate((("t1", "t2"), ("t1",), ("t2",))):
        for kind in kinds:
            volume(tmp_path / kind / f"p{n}.nii", 10 * n + int(kind[1]))
    volume(tmp_path / "ct" / "q.nii", 20)
    found = make(tmp_path, "t1,t2")
    assert images(found) == [["p0.nii", "p0.nii"]]
    notes = "\n".join(found.notes)
    assert "left out, because a contrast is missing: p1 has no t2" in notes and "p2 has no t1" in notes
    (tmp_path / "t2" / "p0.nii").unlink()
    with pytest.raises(InputError, match=r"nobody has all of t1, t2: p0 has no t2; p1 has no t2; p2 has no t1"):
        make(tmp_path, "t1,t2")
    with pytest.raises(InputError, match="no scans of this domain and contrast 'flair'"):
        make(tmp_path, "t1,flair")


def test_two_files_for_one_contrast_are_refused_by_name(tmp_path: Path) -> None:
    anat = tmp_path / "sub-01" / "anat"
    for i, name in enumerate(("run-1_T1w", "run-2_T1w", "T2w")):
        volume(anat / f"sub-01_{name}.nii", i)
    volume(tmp_path / "sub-02" / "ct" / "sub-02_ct.nii", 9)
    with pytest.raises(InputError, match=r"sub-01: more than one T1w: .*run-1_T1w.nii, .*run-2_T1w.nii"):
        make(tmp_path)
    with pytest.raises(InputError, match=r"fits 'T\*w' and 'T2w'"):
        make(tmp_path, "T*w,T2w")


def test_a_copy_as_second_contrast_and_contrasts_of_ct_are_refused(tmp_path: Path) -> None:
    for kind in ("t1", "t2"):
        volume(tmp_path / kind / "p.nii", 1)
    volume(tmp_path / "ct" / "q.nii", 20)
    with pytest.raises(InputError, match=r"two contrasts of a case are copies of one scan:(.|\n)*t1.p.nii, .*t2.p.nii"):
        make(tmp_path, "t1,t2")
    with pytest.raises(InputError, match="joined as channels of MR only, got ct, cbct"):
        make(tmp_path, "t1", b="ct,cbct")


def test_a_written_datalist_reads_back_and_monai_stacks_it(tmp_path: Path) -> None:
    for n in range(4):
        for kind in ("t1", "t2", "ct"):
            volume(tmp_path / "data" / kind / f"p{n}.nii", 10 * n + len(kind) + ord(kind[1]))
    found = make(tmp_path / "data", "t1,t2", val=0.25)
    file = tmp_path / "data" / "cohort.json"
    found.write(file)
    content = json.loads(file.read_text())
    assert content["a"][0]["image"] == ["t1/p0.nii", "t2/p0.nii"] and content["a"][0]["contrast"] == ["t1", "t2"]
    (pair,) = content["pairs"]
    assert pair["a"] == [f"t1/{pair['case']}.nii", f"t2/{pair['case']}.nii"] and isinstance(pair["b"], str)
    again = from_json(file)
    assert [case.images for case in again.a] == [case.images for case in found.cohort().a]
    assert again.contrasts == {"a": ("t1", "t2")} and again.pairs == found.cohort().pairs
    (first, *_) = load_decathlon_datalist(str(file), is_segmentation=False, data_list_key="a")
    loaded = LoadImaged("image", image_only=True)({"image": first["image"]})["image"]
    wanted = [nib.load(tmp_path / "data" / kind / "p0.nii").get_fdata() for kind in ("t1", "t2")]
    np.testing.assert_allclose(loaded.numpy(), wanted, rtol=1e-6)


def write_list(folder: Path, **lists: list[dict[str, object]]) -> Path:
    for name in ("1", "2", "3", "4", "5", "c", "d"):
        volume(folder / f"{name}.nii", ord(name))
    file = folder / "list.json"
    file.write_text(json.dumps({"b": [{"image": "c.nii"}], **lists}))
    return file


def test_datalists_that_contradict_themselves_are_refused(tmp_path: Path) -> None:
    two, one = {"image": ["1.nii", "2.nii"], "case": "x"}, {"image": "3.nii", "case": "y"}
    with pytest.raises(InputError, match=r"a: every case needs the same number of contrasts.* 1 in y; 2 in x"):
        from_json(write_list(tmp_path, a=[two, one]))
    pair = {"case": "z", "a": ["3.nii", "4.nii", "5.nii"], "b": "d.nii"}
    with pytest.raises(InputError, match=r"2 in x; 3 in z \(pair\)"):
        from_json(write_list(tmp_path, a=[two], pairs=[pair]))
    named = {**two, "contrast": ["T1w", "T2w"]}
    other = {"image": ["3.nii", "4.nii"], "case": "y", "contrast": ["T2w", "T1w"]}
    with pytest.raises(InputError, match=r"T1w, T2w: in a\[0\](.|\n)*T2w, T1w: in a\[1\]"):
        from_json(write_list(tmp_path, a=[named, other]))
    with pytest.raises(InputError, match="2 files need as many different names in contrast, got T1w"):
        from_json(write_list(tmp_path, a=[{**two, "contrast": "T1w"}]))
    with pytest.raises(InputError, match=r"image: a list must hold text, one per contrast, got \[\]"):
        from_json(write_list(tmp_path, a=[{"image": []}]))
    with pytest.raises(InputError, match=r"case x: there is no file .*absent.nii"):
        from_json(write_list(tmp_path, a=[{"image": ["1.nii", "absent.nii"], "case": "x"}]))
    assert from_json(write_list(tmp_path, a=[{"image": ["1.nii"]}])).a[0].images == (tmp_path / "1.nii",)


def test_the_config_must_agree_with_the_data(tmp_path: Path) -> None:
    two = {"image": ["1.nii", "2.nii"], "contrast": ["T1w", "T2w"]}
    data = {"source": str(write_list(tmp_path, a=[two]))}

    def named(*contrasts: str) -> dict[str, tuple[str, ...]]:
        domains = {"a": {"name": "MR", "modality": "MR", "contrasts": list(contrasts)}}
        return dict(factory.cohort(config.parse({"data": data, "domains": domains}, "the test")).contrasts)

    assert named() == named("T1w", "T2w") == {"a": ("T1w", "T2w")}
    with pytest.raises(InputError, match=r"domains.a.contrasts is T2w, T1w, but the files are T1w, T2w"):
        named("T2w", "T1w")
    with pytest.raises(InputError, match=r"names 3 \(x, y, z\), but a case of a has 2 files \(T1w, T2w\)"):
        named("x", "y", "z")
    data["source"] = str(write_list(tmp_path, a=[{"image": ["1.nii", "2.nii"]}]))
    assert named() == {"a": ("contrast 1", "contrast 2")}
    for wrong, words in ((["T1w", "T1w"], "each has a name of its own"), (["x", "y"], "several are for MR")):
        domain = {"name": "X", "modality": "CT" if wrong[0] == "x" else "MR", "contrasts": wrong}
        with pytest.raises(InputError, match=words):
            config.parse({"domains": {"a": domain}}, "the test")


# --- onto one working grid ---------------------------------------------------------------------------------------


def tilted(spacing: tuple[float, float, float], shape: tuple[int, int, int], degrees: float, axes: str = "RAS") -> Grid:
    """A grid around the origin, turned about the x axis, its axes in any order."""
    angle = np.radians(degrees)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    ornt = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(axes))
    )
    sizes = [0, 0, 0]
    for source, axis in enumerate(ornt[:, 0].astype(int)):
        sizes[axis] = shape[source]
    return Grid((sizes[0], sizes[1], sizes[2]), affine @ nib.orientations.inv_ornt_aff(ornt, shape))


def world(grid: Grid) -> np.ndarray:
    """(3, X, Y, Z), mm."""
    index = np.indices(grid.shape, dtype=np.float64).reshape(3, -1)
    return (grid.affine[:3, :3] @ index + grid.affine[:3, 3:]).reshape(3, *grid.shape)


def as_volume(values: np.ndarray, grid: Grid, name: str = "x.nii") -> MetaTensor:
    tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None]
    return MetaTensor(tensor, affine=torch.from_numpy(grid.affine.copy()), meta={"filename_or_obj": name})


def ball(grid: Grid, radius: float = 40.0) -> np.ndarray:
    return np.asarray(np.linalg.norm(world(grid), axis=0) < radius)


SECOND = {
    "the same grid": tilted((4, 4, 4), (28, 30, 26), 0),
    "other axes": tilted((4, 4, 4), (28, 30, 26), 0, "PIL"),
    "finer and anisotropic": tilted((2, 3, 5), (60, 40, 26), 0),
    "oblique": tilted((3, 3, 4), (40, 42, 34), 17, "ASR"),
    "coarse slices": tilted((3, 3, 8), (40, 42, 16), -9),
}
PLAIN = Preparation("MR", (4.0, 4.0, 4.0), mr_percentiles=(0.0, 100.0))


@pytest.mark.parametrize("second", SECOND.values(), ids=SECOND.keys())
def test_every_contrast_lies_where_its_header_says(second: Grid) -> None:
    """A value that is linear in world coordinates survives linear interpolation, whatever the grids."""
    first = SECOND["the same grid"]
    x, y, z = world(first)
    u, v, w = world(second)
    one, two = 500 + 3 * x - y + 2 * z, 1000 + 5 * u + 2 * v - 3 * w
    case = prepare([as_volume(one, first), as_volume(two, second)], [PLAIN, PLAIN], ball(first))
    assert case.image.shape == (2, *case.body.shape) and len(case.channels) == 2
    alone = prepare([as_volume(one, first)], [PLAIN], ball(first))
    np.testing.assert_array_equal(case.image[:1], alone.image)
    np.testing.assert_array_equal(case.body, alone.body)
    assert (
        case.channels[:1] == alone.channels
        and case.grid.matches(alone.grid, 1e-9)
        and case.source_grid.matches(first, 1e-9)
    )
    inner = np.linalg.norm(world(case.grid), axis=0) < 20
    x, y, z = world(case.grid)
    wanted = case.channels[1].scaler.apply((1000 + 5 * x + 2 * y - 3 * z).astype(np.float32))
    np.testing.assert_allclose(case.image[1][inner], wanted[inner], atol=2e-3)
    assert (case.image[:, ~case.body] == -1).all() and case.channels[1].covered == 1.0


def test_contrasts_have_scalers_of_their_own_fitted_in_one_body() -> None:
    grid = SECOND["the same grid"]
    body = ball(grid)
    values = np.random.default_rng(0).uniform(0, 100, grid.shape)
    other = np.random.default_rng(1).uniform(3000, 9000, grid.shape)
    preparation = dataclasses.replace(PLAIN, mr_percentiles=(10.0, 90.0), mr_inverted=True, mr_floor=-0.5)
    case = prepare([as_volume(values, grid), as_volume(other, grid)], [preparation] * 2, body)
    for number, (volume, scaler) in enumerate(zip((values, other), (c.scaler for c in case.channels), strict=True)):
        low, high = np.percentile(volume[body], (10, 90))
        assert (scaler.low, scaler.high) == pytest.approx((low, high), rel=1e-5)
        assert scaler.inverted and scaler.floor == -0.5
        np.testing.assert_allclose(case.image[number][body], scaler.apply(volume[body].astype(np.float32)), atol=1e-6)


def test_a_contrast_that_misses_a_tenth_of_the_body_is_refused_with_numbers() -> None:
    grid = SECOND["the same grid"]
    values = np.random.default_rng(0).uniform(0, 100, grid.shape)
    body = ball(grid)

    def cut(slices: int) -> tuple[np.ndarray, Grid]:
        affine = grid.affine.copy()
        affine[:3, 3] += affine[:3, 2] * slices
        return values[:, :, slices:], Grid((*grid.shape[:2], grid.shape[2] - slices), affine)

    part, there = cut(5)
    share = covered(body, grid, there)
    assert share == body[:, :, 5:].sum() / body.sum() and 0.9 < share < 1
    case = prepare([as_volume(values, grid), as_volume(part, there)], [PLAIN] * 2, body)
    assert case.channels[1].covered == share
    assert (case.image[1][:, :, :5] == -1).all() and case.body[:, :, :5].any()
    part, there = cut(9)
    share = covered(body, grid, there)
    with pytest.raises(InputError) as caught:
        prepare(
            [as_volume(values, grid, "t1.nii"), as_volume(part, there, "t2.nii")],
            [dataclasses.replace(PLAIN, name=name) for name in ("T1w", "T2w")],
            body,
        )
    assert f"t2.nii (T2w) covers {100 * share:.1f} % of the body in t1.nii (T1w); at least 90 % are needed" in str(
        caught.value
    )


def test_a_patient_who_moved_between_two_contrasts_is_estimated() -> None:
    head = phantom.head(4)
    grid = tilted((4, 4, 4), (56, 68, 50), 0)
    affine = grid.affine.copy()
    affine[:3, 3] += head.world((0, -10, 20))
    scan = phantom.sample(head, grid.shape, affine)
    one = as_volume(scan.mr_t1, Grid(grid.shape, affine))
    still = apart_mm(one, as_volume(scan.mr_t2, Grid(grid.shape, affine)), scan.body)
    affine = affine.copy()
    affine[:3, 3] += (6, -4, 0)
    moved = apart_mm(one, as_volume(scan.mr_t2, Grid(grid.shape, affine)), scan.body)
    assert still < 1.0
    assert moved == pytest.approx(np.hypot(6, 4), abs=1.0)


def test_what_was_blanked_in_any_contrast_is_no_body(cohort: phantom.Cohort) -> None:
    head = phantom.head(5)
    grid = tilted((4, 4, 4), (56, 68, 50), 0)
    affine = grid.affine.copy()
    affine[:3, 3] += head.world((0, -10, 20))
    grid = Grid(grid.shape, affine)
    scan = phantom.sample(head, grid.shape, affine)
    defaced = scan.mr_t2 + 1.0
    front = (scan.body.cumsum(axis=1)[:, -1:] > 0) & (np.arange(grid.shape[1])[None, :, None] > 48)
    low = np.broadcast_to(np.arange(grid.shape[2]) < 20, grid.shape)
    defaced[front & low] = 0.0
    preparation = Preparation("MR", (4.0, 4.0, 4.0))
    plain = prepare([as_volume(scan.mr_t1, grid), as_volume(scan.mr_t2, grid)], [preparation] * 2)
    case = prepare([as_volume(scan.mr_t1, grid), as_volume(defaced, grid)], [preparation] * 2)
    lost = plain.body & ~case.body
    assert plain.blanked_ml == 0 and case.blanked_ml > 10
    assert lost.any() and (front & low)[lost].all() and (case.image[:, lost] == -1).all()


def test_landmarks_are_those_of_each_contrast() -> None:
    grid = SECOND["the same grid"]
    other = SECOND["oblique"]
    one = np.random.default_rng(0).uniform(0, 1, grid.shape)
    two = np.random.default_rng(1).uniform(0, 1, other.shape) ** 3
    shares = landmark_shares([as_volume(one, grid), as_volume(two, other)], [PLAIN, PLAIN], ball(grid))
    np.testing.assert_allclose(shares[0], np.linspace(0.1, 0.9, 9), atol=0.02)
    np.testing.assert_allclose(shares[1], np.linspace(0.1, 0.9, 9) ** 3, atol=0.03)


# --- the prepared cache ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three heads in T1 and T2, the second on another grid for one of them; three CTs, the last of the last head."""
    folder = tmp_path_factory.mktemp("heads")
    for n in range(3):
        head = phantom.head(20 + n)
        for kind, shape, spacing in (("t1", (36, 44, 22), (6, 6, 8)), ("t2", (44, 52, 30), (5, 5, 6))):
            grid = tilted(spacing, shape, 0) if n or kind == "t1" else tilted(spacing, shape, 8, "LPS")
            affine = grid.affine.copy()
            affine[:3, 3] += head.world((0, -10, 20))
            scan = phantom.sample(head, grid.shape, affine)
            path = folder / kind / f"p{n}.nii"
            path.parent.mkdir(exist_ok=True)
            nib.Nifti1Image(scan.mr_t1 if kind == "t1" else scan.mr_t2, affine).to_filename(path)
            if kind == "t1":
                other = phantom.head(50 + n) if n < 2 else head
                shift = other.world((0, -10, 20)) - head.world((0, -10, 20))
                affine[:3, 3] += shift
                ct = phantom.sample(other, grid.shape, affine).ct
                (folder / "ct").mkdir(exist_ok=True)
                nib.Nifti1Image(np.rint(ct).astype(np.int16), affine).to_filename(folder / "ct" / f"q{n}.nii")
    entries = [{"image": [f"t1/p{n}.nii", f"t2/p{n}.nii"], "contrast": ["T1w", "T2w"]} for n in range(2)]
    pair = {"case": "both", "a": ["t1/p2.nii", "t2/p2.nii"], "b": "ct/q2.nii"}
    content = {"a": entries, "b": [{"image": f"ct/q{n}.nii"} for n in range(2)], "pairs": [pair]}
    (folder / "list.json").write_text(json.dumps(content))
    return folder


def prepared_from(file: Path, output: Path, **settings: Any) -> PreparedCohort:
    return prepare_cases(from_json(file), output, **settings)


def test_the_cache_holds_all_contrasts_memory_mapped(heads: Path, tmp_path: Path) -> None:
    found = prepared_from(heads / "list.json", tmp_path / "prepared")
    assert found.failed == {} and found.channels("a") == ("T1w", "T2w") and found.channels("b") == ("CT",)
    case = found.cases["a"][0]
    wanted = prepare([read_volume(heads / kind / "p0.nii") for kind in ("t1", "t2")], found.preparations["a"])
    np.testing.assert_allclose(np.asarray(case.image), wanted.image, atol=0.5 / 32767 + 1e-7)
    assert [channel.scaler for channel in case.channels] == [channel.scaler for channel in wanted.channels]
    assert [channel.preparation for channel in case.channels] == list(found.preparations["a"])
    stored = np.load(case.folder / "image.npy", mmap_mode="r")
    assert stored.dtype == np.int16 and isinstance(stored, np.memmap)
    # A slice with all its contrasts is one piece of the file.
    assert stored[..., 3].flags["F_CONTIGUOUS"] and stored.ndim == 4
    pair = found.cases["pairs_a"][0]
    assert np.asarray(pair.image).shape[1:] == found.cases["pairs_b"][0].body.shape
    content = json.loads((case.folder / "case.json").read_text())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "prepared").rglob("image.npy")}
    again = prepared_from(heads / "list.json", tmp_path / "prepared")
    assert again.fingerprint() == found.fingerprint() and content["channels"][1]["covered"] > 0.9
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "prepared").rglob("image.npy")} == before


def test_an_exchanged_order_is_another_cohort(heads: Path, tmp_path: Path) -> None:
    content = json.loads((heads / "list.json").read_text())
    for entry in content["a"]:
        entry["image"].reverse()
        entry["contrast"].reverse()
    content["pairs"][0]["a"].reverse()
    turned = heads / "turned.json"
    turned.write_text(json.dumps(content))
    first = prepared_from(heads / "list.json", tmp_path / "prepared").fingerprint()
    again = prepared_from(turned, tmp_path / "prepared", spacing=(6.0, 6.0, 8.0))
    assert again.fingerprint() != first and again.channels("a") == ("T2w", "T1w")


def test_a_ct_among_the_contrasts_is_refused(heads: Path, tmp_path: Path) -> None:
    content = json.loads((heads / "list.json").read_text())
    content["a"][1]["image"][1] = "ct/q2.nii"
    del content["pairs"]
    file = heads / "mixed.json"
    file.write_text(json.dumps(content))
    found = prepared_from(file, tmp_path / "prepared")
    assert list(found.failed) == ["a/p1"] and len(found.cases["a"]) == 1
    assert "q2.nii: a contrast is MR, and these values look like a CT in Hounsfield units" in found.failed["a/p1"]
    cohort = Cohort(tuple(Case(f"x{i}", (heads / "t1" / "p0.nii",)) for i in range(1)), from_json(file).a[:1])
    with pytest.raises(InputError, match=r"domain b is CT and has 2 contrasts \(x, y\)"):
        prepare_cases(cohort, tmp_path / "other", channels={"b": ("x", "y")})


def test_nyul_landmarks_differ_between_contrasts(heads: Path, tmp_path: Path) -> None:
    found = prepared_from(heads / "list.json", tmp_path / "prepared", mr_standardization="nyul")
    first, second = (p.mr_landmarks for p in found.preparations["a"])
    assert len(first) == len(second) == 9 and np.abs(np.subtract(first, second)).max() > 0.05
    assert [len(channel.scaler.landmarks) for channel in found.cases["a"][0].channels] == [9, 9]
    assert found.typical_scaler("a", 1).high != found.typical_scaler("a").high
    again = prepared_from(heads / "list.json", tmp_path / "prepared", mr_standardization="nyul")
    assert again.preparations == found.preparations


# --- patches -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Numbered:
    """A case whose value says the place, and in the second contrast the same less 0.9."""

    id: str = "p"
    shape: tuple[int, int, int] = (20, 22, 24)

    @property
    def image(self) -> StoredImage:
        x, y, z = np.indices(self.shape)
        code = 0.02 * x + 0.01 * y + 0.011 * z
        return StoredImage(np.asfortranarray(encode(np.stack([code, code - 0.9]).astype(np.float32))))

    @property
    def body(self) -> np.ndarray:
        return np.ones(self.shape, dtype=bool)

    @property
    def slices(self) -> Slices:
        return measure_slices([self.image], self.body)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_channels_are_all_slices_of_the_first_contrast_and_then_of_the_second(plane: str) -> None:
    case = Numbered()
    shape = PatchSpec((16, 16), plane, neighbors=1)  # type: ignore[arg-type]
    dataset = TrainingPatches([case], [case], Sampling(shape, batch_size=2, steps=3))
    item = dataset[1]
    assert item["a"].shape == (2, 6, 16, 16) and item["body_a"].shape == item["a"].shape
    torch.testing.assert_close(item["a"][:, :3] - 0.9, item["a"][:, 3:], atol=1e-4, rtol=0)
    axis = {"sagittal": 0, "coronal": 1, "axial": 2}[plane]
    step = (0.02, 0.01, 0.011)[axis]
    torch.testing.assert_close(item["a"][:, 1] + step, item["a"][:, 2], atol=1e-4, rtol=0)
    stack = stack_of_slices(np.asarray(case.image), axis, 5, 1)
    np.testing.assert_array_equal(stack[:3], stack_of_slices(np.asarray(case.image)[:1], axis, 5, 1))
    np.testing.assert_array_equal(stack[3:], stack_of_slices(np.asarray(case.image)[1:], axis, 5, 1))
    image, body = probe_patches([case], shape)
    assert image.shape == body.shape and image.shape[1] == 6


def test_boxes_have_a_channel_per_contrast() -> None:
    case = Numbered()
    dataset = TrainingPatches([case], [case], Sampling(PatchSpec((16, 16, 16)), steps=2))
    item = dataset[0]
    assert item["a"].shape == (1, 2, 16, 16, 16)
    torch.testing.assert_close(item["a"][:, 0] - 0.9, item["a"][:, 1], atol=1e-4, rtol=0)
    assert probe_patches([case], PatchSpec((16, 16, 16)))[0].shape == (1, 2, 16, 16, 16)


def test_a_slice_counts_if_any_contrast_shows_something() -> None:
    class Flat(Numbered):
        @property
        def image(self) -> StoredImage:
            values = np.asarray(super().image).copy()
            values[1] = -1
            values[:, :, :, 10:] = 0.5
            values[1, :, :, 10:] = -0.5  # both flat, though not the same
            return StoredImage(encode(values))

    dataset = TrainingPatches([Flat()], [Flat()], Sampling(PatchSpec((16, 16))))
    assert dataset.slices["a"][0].tolist() == list(range(10))


def test_contrasts_move_together_and_vary_in_gamma_apart() -> None:
    patch = np.linspace(-1, 1, 32 * 32, dtype=np.float32).reshape(1, 32, 32).repeat(2, axis=0)
    body = np.ones(patch.shape, dtype=bool)
    moved, _ = Augmentation((1.0, 1.0), rotate=20, translate=3, contrasts=2)(patch, body, 3)
    np.testing.assert_array_equal(moved[0], moved[1])
    bent, _ = Augmentation((1.0, 1.0), gamma=0.5, contrasts=2)(patch, body, 3)
    assert np.abs(bent[0] - bent[1]).max() > 0.05
    joint, _ = Augmentation((1.0, 1.0), gamma=0.5)(patch, body, 3)
    np.testing.assert_allclose(joint[0], joint[1], atol=1e-6)
    shaded, _ = Augmentation((1.0, 1.0), bias_field=0.5, contrasts=2)(patch, body, 3)
    np.testing.assert_allclose(shaded[0], shaded[1], atol=1e-6)


def test_phantoms_give_both_contrasts_of_the_same_heads(tmp_path: Path) -> None:
    few: dict[str, Any] = {"train_mr": 1, "train_ct": 1, "test": 1, "spacing_mm": (8, 8, 8), "shape": (28, 32, 24)}
    one = phantom.write_cohort(tmp_path / "t1", seed=1, contrast="t1", **few)
    two = phantom.write_cohort(tmp_path / "t2", seed=1, contrast="t2", **few)
    a, b = (read_volume(cohort.train_mr[0]) for cohort in (one, two))
    np.testing.assert_array_equal(a.affine, b.affine)
    assert one.train_ct[0].read_bytes() == two.train_ct[0].read_bytes()
    assert one.test_mask[0].read_bytes() == two.test_mask[0].read_bytes()
    body = a.numpy()[0] > np.percentile(a.numpy(), 70)
    assert abs(np.corrcoef(a.numpy()[0][body], b.numpy()[0][body])[0, 1]) < 0.9
