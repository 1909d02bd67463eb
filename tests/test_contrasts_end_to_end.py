"""Models of several contrasts: networks and losses, training, and conversion, from T1 and T2 of phantom heads."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from campaign.workplace import verb
from conftest import TINY
from monai.data import MetaTensor
from test_contrasts import PLAIN, SECOND, as_volume, ball, world
from test_training import StopAt
from torch import Tensor, nn

from medcyclegan import benchmark, config, factory, phantom
from medcyclegan.convert import Options, convert
from medcyclegan.data.prepared import PreparedCohort
from medcyclegan.errors import InputError
from medcyclegan.evaluation.metrics.mae import mae
from medcyclegan.export.formats import export_run
from medcyclegan.inference.ensemble import Ensemble
from medcyclegan.inference.quality import flags
from medcyclegan.inference.sliding_window import SlidingWindow, translate_volume
from medcyclegan.inference.transform import TranslateImage, TranslateImaged
from medcyclegan.inference.translator import ImageDomain, Translator
from medcyclegan.inference.uncertainty import cycle_residual, structure_disagreement
from medcyclegan.io.grid import Grid
from medcyclegan.io.reader import read_volume
from medcyclegan.losses.contrasts import OfEveryContrast
from medcyclegan.losses.structure import View
from medcyclegan.losses.structure.gradient_correlation import GradientCorrelation
from medcyclegan.plan import hypothetical_gpu, make_plan
from medcyclegan.training.checkpoint import load_checkpoint
from medcyclegan.training.guards import TranslationGuards, silent, spread_ratio
from medcyclegan.training.probe import Probe, bodies_for
from medcyclegan.training.recorder import Panel
from medcyclegan.training.validation import structure_disagreement as edges_apart
from medcyclegan.transforms.geometry import resample
from medcyclegan.transforms.pipeline import prepare

CPU = torch.device("cpu")
TWO = [dataclasses.replace(PLAIN, name=name) for name in ("T1w", "T2w")]


class Pick(nn.Module):
    """Gives back the channels from `first` on, `count` of them."""

    def __init__(self, first: int, count: int = 1) -> None:
        super().__init__()
        self.first, self.count = first, count

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.first : self.first + self.count]


# --- a network that gives one contrast back ----------------------------------------------------------------------


def picking(
    number: int, scaler: Any, *, neighbors: int = 0, dims: int = 2, ensemble: Ensemble | None = None
) -> Translator:
    depth = 2 * neighbors + 1
    return Translator(
        Pick(number * depth, depth),
        ImageDomain(tuple(TWO), (scaler, scaler)),
        ImageDomain((PLAIN,), (scaler,)),
        SlidingWindow((32, 32, 32)[:dims], neighbors=neighbors, ensemble=ensemble or Ensemble()),
    )


@pytest.mark.parametrize("ways", ["slices", "stacks", "boxes", "planes and flips"])
@pytest.mark.parametrize("grid", SECOND.values(), ids=SECOND.keys())
def test_the_chosen_contrast_comes_back_on_the_first_ones_grid(grid: Grid, ways: str) -> None:
    """On every kind of first grid, with the second contrast on another: channels are in the order of the files."""
    other = SECOND["oblique"] if grid is not SECOND["oblique"] else SECOND["finer and anisotropic"]
    x, y, z = world(grid)
    u, v, w = world(other)
    one, two = 500 + 3 * x - y + 2 * z, 1000 + 5 * u + 2 * v - 3 * w
    volumes = [as_volume(one, grid), as_volume(two, other)]
    body = ball(grid)
    case = prepare(volumes, TWO, body)
    settings: dict[str, dict[str, Any]] = {
        "slices": {},
        "stacks": {"neighbors": 1},
        "boxes": {"dims": 3},
        "planes and flips": {"ensemble": Ensemble(("axial", "sagittal"), flips=True)},
    }
    inner = np.linalg.norm(world(grid), axis=0) < 20
    wanted = {0: one, 1: 1000 + 5 * x + 2 * y - 3 * z}
    for number, scaler in enumerate(channel.scaler for channel in case.channels):
        result = picking(number, scaler, **settings[ways])(volumes, body=body)
        assert result.grid.matches(grid, 1e-9) and result.array.shape == grid.shape
        width = scaler.high - scaler.low
        np.testing.assert_allclose(result.array[inner], wanted[number][inner], atol=3e-3 * width)
        assert (result.array[np.linalg.norm(world(grid), axis=0) > 60] == np.float32(scaler.low)).all()


@pytest.mark.parametrize("name", ["the same grid", "other axes"])
def test_on_one_grid_both_contrasts_come_back_exactly(name: str) -> None:
    grid = SECOND[name]
    random = np.random.default_rng(0)
    values = [random.uniform(0, 100, grid.shape).astype(np.float32), random.uniform(500, 900, grid.shape)]
    volumes = [as_volume(v, grid) for v in values]
    body = ball(grid)
    case = prepare(volumes, TWO, body)
    for number, scaler in enumerate(channel.scaler for channel in case.channels):
        result = picking(number, scaler)(volumes, body=body)
        np.testing.assert_allclose(result.array[body], values[number][body], rtol=2e-6, atol=1e-4)
        one = MetaTensor(
            torch.cat([v.as_tensor() for v in volumes]), affine=torch.from_numpy(grid.affine.copy())
        )  # all contrasts as channels
        np.testing.assert_array_equal(picking(number, scaler)(one, body=body).array, result.array)


def test_a_wrong_number_of_contrasts_is_refused_with_their_order() -> None:
    grid = SECOND["the same grid"]
    volume = as_volume(np.random.default_rng(0).uniform(0, 9, grid.shape), grid)
    case = prepare([volume, volume], TWO, ball(grid))
    translator = picking(0, case.channels[0].scaler)
    for given in (volume, [volume], [volume] * 3):
        with pytest.raises(InputError, match=r"given, and the model takes 2 contrasts, T1w, T2w. Give all of them"):
            translator(given)
    domain = ImageDomain((PLAIN,), (case.channels[0].scaler,))
    single = Translator(nn.Identity(), domain, domain, SlidingWindow((32, 32)))
    with pytest.raises(InputError, match="2 volumes given, and the model takes one volume"):
        single([volume, volume])
    with pytest.raises(ValueError, match="the generator gives 2 channels, and 1 x 1 are expected"):
        translate_volume(nn.Identity(), case.image, case.body, SlidingWindow((32, 32)))


def test_networks_may_make_several_contrasts() -> None:
    random = np.random.default_rng(0)
    image = random.uniform(-1, 1, (2, 20, 22, 9)).astype(np.float32)
    body = np.ones(image.shape[1:], bool)
    for dims, neighbors in ((2, 0), (2, 1), (3, 0)):
        result = translate_volume(
            nn.Identity(), image, body, SlidingWindow((32,) * dims, neighbors=neighbors), out_channels=2
        )
        np.testing.assert_allclose(result, image, atol=1e-6)


def test_uncertainty_maps_are_means_over_the_contrasts() -> None:
    random = np.random.default_rng(0)
    image = random.uniform(-1, 1, (2, 12, 12, 12)).astype(np.float32)
    returned, result = random.uniform(-1, 1, image.shape).astype(np.float32), image[0] * 0.5
    body = np.ones(result.shape, bool)
    np.testing.assert_allclose(
        cycle_residual(image, returned, body), np.abs(image - returned).mean(axis=0) / 2, atol=1e-6
    )
    apart = structure_disagreement(image, result, body)
    each = [structure_disagreement(channel[None], result, body) for channel in image]
    assert each[0].mean() < 0.01 < each[1].mean()
    np.testing.assert_allclose(apart, (each[0] + each[1]) / 2, atol=1e-6)


# --- losses and guards -------------------------------------------------------------------------------------------


def test_structure_losses_are_means_over_the_contrasts() -> None:
    random = torch.Generator().manual_seed(0)
    source, translated = torch.rand(2, 6, 20, 20, generator=random), torch.rand(2, 3, 20, 20, generator=random)
    body = torch.ones(source.shape, dtype=torch.bool)
    loss = GradientCorrelation(weight=3.0)
    joint = OfEveryContrast(loss, {"a": 2})
    view = View(source, translated, source * 0.5, body, "b", nn.Identity())
    parts = [loss(View(source[:, k : k + 3], translated, None, body[:, k : k + 3], "b", nn.Identity())) for k in (0, 3)]
    assert joint.weight == 3.0
    torch.testing.assert_close(joint(view), torch.stack(parts).mean())
    back = View(translated, source, None, body[:, :3], "a", nn.Identity())
    torch.testing.assert_close(joint(back), torch.stack(parts).mean())
    seen: list[View] = []

    class Sees:
        weight = 1.0

        def __call__(self, view: View) -> Tensor:
            seen.append(view)
            return view.source.mean()

    OfEveryContrast(Sees(), {"a": 2})(view)
    assert torch.equal(seen[1].source, source[:, 3:]) and torch.equal(seen[1].cycle, source[:, 3:] * 0.5)
    # An inverted copy of the same borders would vanish from a mean of the channels.
    opposite = torch.cat([translated, -translated], dim=1)
    contrasts = {"a": 2, "b": 1}
    assert edges_apart(opposite, translated, body, contrasts) < 1e-5
    assert edges_apart(opposite, translated, body) > 0.5


def test_guards_take_other_numbers_of_channels() -> None:
    body = torch.zeros(3, 2, 32, 32, dtype=torch.bool)
    body[:, :, 4:28, 4:28] = True
    random = torch.Generator().manual_seed(0)
    inputs = torch.rand(3, 2, 32, 32, generator=random)
    assert spread_ratio(inputs[:, :1], inputs[:, :1].repeat(1, 2, 1, 1), body) == pytest.approx(1)
    assert spread_ratio(torch.zeros(3, 1, 32, 32), inputs, body) == 0
    assert bodies_for(body[:, :1], inputs).shape == inputs.shape
    depth = torch.from_numpy(np.minimum.reduce(np.indices((24, 24))).astype(np.float32) / 24)
    rim = torch.full((3, 1, 32, 32), -1.0)
    rim[:, :, 4:28, 4:28] = depth
    real = {"a": torch.cat([rim, rim], dim=1), "b": rim}
    guard = TranslationGuards(Probe(real, {"a": body, "b": body[:, :1]}, {"a": 2}), silent)
    assert guard.ordered == {"a": True, "b": True}
    half = torch.cat([rim, -rim], dim=1)  # the second contrast is inverted
    found = guard.observe(1, {"a": half, "b": rim})
    assert found["order_ba"] < -0.9 and found["order_ab"] > 0.9


def test_panels_show_the_middle_slice_of_the_first_contrast() -> None:
    a = torch.zeros(1, 6, 4, 4)
    a[:, 1] = 1.0
    images = {"real_a": a, "fake_b": torch.ones(1, 3, 4, 4), "real_b": torch.ones(1, 3, 4, 4)}
    panel = Panel({}, {"a": (0, 1), "b": (0, 1)}, {"a": 2, "b": 1}).picture(images)
    assert panel[:4, :8].min() == 1


# --- a trained model ---------------------------------------------------------------------------------------------


def write(values: np.ndarray, affine: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.to_filename(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """t1/, t2/ and ct/ with the same ids: six training heads, one that validates; T2 on finer slices of its own."""
    root = tmp_path_factory.mktemp("two")
    for n in range(7):
        head = phantom.head(70 + n)
        for kinds, shape, spacing in ((("t1", "ct"), (36, 44, 22), (6, 6, 8)), (("t2",), (44, 46, 34), (5, 6, 5.5))):
            affine = np.diag([*spacing, 1.0])
            affine[:3, 3] = head.world((0, -10, 20)) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
            scan = phantom.sample(head, shape, affine)
            values = {"t1": scan.mr_t1, "t2": scan.mr_t2, "ct": np.rint(scan.ct).astype(np.int16)}
            for kind in kinds:
                place = root / "test" if n == 6 else root
                write(values[kind], affine, place / kind / f"p{n}.nii.gz")
    entries = [{"image": [f"t1/p{n}.nii.gz", f"t2/p{n}.nii.gz"], "contrast": ["T1w", "T2w"]} for n in range(6)]
    pair = {"case": "p6", "a": ["test/t1/p6.nii.gz", "test/t2/p6.nii.gz"], "b": "test/ct/p6.nii.gz"}
    content = {"a": entries, "b": [{"image": f"ct/p{n}.nii.gz"} for n in range(6)], "pairs": [pair]}
    (root / "list.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def two(folder: Path) -> PreparedCohort:
    data = {"source": str(folder / "list.json")}
    return factory.prepare(config.parse({"data": data}, "the test"), folder / "prepared")


def experiment(prepared: PreparedCohort, **changes: Any) -> config.Experiment:
    return config.parse({**TINY, "data": {"source": str(prepared.folder)}, **changes}, "the test")


@pytest.fixture(scope="module")
def model(two: PreparedCohort) -> Iterator[Path]:
    run = two.folder.parent / "run"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        factory.train(experiment(two), run, device="cpu")
    yield run


def test_channels_of_networks_are_contrasts_times_slices(two: PreparedCohort) -> None:
    resolved = factory.cohorts.resolve(experiment(two, patches={"size": [32, 32], "neighbors": 1}), two)
    assert resolved.domains.a.contrasts == ("T1w", "T2w") and resolved.domains.b.contrasts == ()
    assert (resolved.channels("a"), resolved.channels("b")) == (6, 3)
    networks = factory.make_networks(resolved)
    a, b = torch.zeros(1, 6, 32, 32), torch.zeros(1, 3, 32, 32)
    assert networks["gen_ab"](a).shape == b.shape and networks["gen_ba"](b).shape == a.shape
    networks["disc_a"](a), networks["disc_b"](b)
    paired = factory.make_networks(resolved.model_copy(update={"objective": {"_target_": "pix2pix"}}))
    paired["disc_b"](torch.cat([a, b], dim=1))
    assert factory.predict_memory(resolved, bf16=False, device="cpu").total > 0  # type: ignore[union-attr]
    assert factory.measure_step(resolved, CPU, least=1, most=1).median > 0


def test_parts_that_need_as_many_channels_on_both_sides_are_refused_by_name(two: PreparedCohort) -> None:
    changes: dict[str, Any] = {
        "model": {"generator": {"_target_": "mask_guided"}},
        "losses": {"structure": [{"_target_": "patch_nce"}]},
    }
    with pytest.raises(InputError) as caught:
        factory.make_objective(factory.cohorts.resolve(experiment(two, **changes), two))
    said = str(caught.value)
    assert "images of a have 2 channels and images of b 1, because a has 2 contrasts (T1w, T2w)" in said
    assert "mask_guided mixes its input" in said and "patch_nce shows the translation" in said
    cut = factory.cohorts.resolve(experiment(two, objective={"_target_": "cut"}), two)
    with pytest.raises(InputError, match="objective cut has a PatchNCE"):
        factory.make_objective(cut)


def test_the_config_and_the_prepared_folder_must_agree(two: PreparedCohort, prepared: PreparedCohort) -> None:
    domains = {"a": {"name": "MR", "modality": "MR", "contrasts": ["T2w", "T1w"]}}
    with pytest.raises(InputError, match=r"domains.a.contrasts is T2w, T1w, but .* was prepared with T1w, T2w"):
        factory.cohorts.resolve(experiment(two, domains=domains), two)
    with pytest.raises(InputError, match=r"domains.a.contrasts is T2w, T1w, but .* was prepared with a single one"):
        factory.cohorts.resolve(experiment(prepared, domains=domains), prepared)


@pytest.mark.parametrize("objective", ["cyclegan", "pix2pix"])
def test_four_steps_equal_two_and_resume_and_two(two: PreparedCohort, tmp_path: Path, objective: str) -> None:
    chosen = experiment(
        two,
        objective={"_target_": objective} | ({"pool_size": 2} if objective == "cyclegan" else {}),
        losses={"structure": [{"_target_": name} for name in ("mask_consistency", "mind", "mutual_information")]},
        augmentation={"rotate": 5.0, "gamma": 0.2, "noise": 0.02, "bias_field": 0.1},
        patches={"size": [32, 32], "neighbors": 1},
    )
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        whole = factory.train(chosen, tmp_path / "whole", device="cpu")
    messages = [str(warning.message) for warning in heard]
    left_out = "the identity loss is left out: a has 6 channels and b 3"
    assert any(left_out in line for line in messages) == (objective == "cyclegan")
    first = factory.train(chosen, tmp_path / "parts", device="cpu", handlers=[StopAt(2)])
    assert first.step == 2
    second = factory.resume(tmp_path / "parts", device="cpu")
    a, b = load_checkpoint(whole.run), load_checkpoint(second.run)
    assert a["step"] == b["step"] == 4
    for name, state in a["networks"].items():
        assert all(torch.equal(value, b["networks"][name][key]) for key, value in state.items()), name
    assert a["domains"] == b["domains"] and len(a["domains"]["a"]["channels"]) == 2


def test_validation_scores_the_pair(model: Path, two: PreparedCohort) -> None:
    rows = (model / "validation.csv").read_text().splitlines()
    last = dict(zip(rows[0].split(","), rows[-1].split(","), strict=True))
    a, b = two.cases["pairs_a"][0], two.cases["pairs_b"][0]
    translator = factory.load_translator(model, device="cpu")
    window = SlidingWindow(translator.window.roi_size)
    (values,) = translate_volume(translator.generator, np.asarray(a.image), np.asarray(a.body), window)
    scaler = translator.scaler
    limits = (scaler.low, scaler.high)
    error = mae(
        b.channels[0].scaler.undo(np.asarray(b.image)[0]), scaler.undo(values), np.asarray(b.body), limits
    ).value
    assert float(last["mae"]) == pytest.approx(error, rel=1e-4)


def test_a_checkpoint_describes_every_contrast(model: Path, two: PreparedCohort) -> None:
    domain = load_checkpoint(model)["domains"]["a"]
    assert [channel["preparation"]["name"] for channel in domain["channels"]] == ["T1w", "T2w"]
    assert [channel["scaler"] for channel in domain["channels"]] == [
        two.typical_scaler("a", number).to_dict() for number in (0, 1)
    ]
    assert all(len(case["histograms"]) == 2 for case in domain["cohort"])
    assert len(load_checkpoint(model)["domains"]["b"]["channels"]) == 1


# --- conversion --------------------------------------------------------------------------------------------------


def test_convert_by_command(model: Path, folder: Path, tmp_path: Path) -> None:
    t1, t2, out = tmp_path / "t1", tmp_path / "t2", tmp_path / "sct"
    for place in (t1, t2):
        place.mkdir()
        for n in range(2):
            shutil.copy(folder / place.name / f"p{n}.nii.gz", place)
    words = ["convert", model, t1, t2, "-o", out, "--uncertainty", "-d", "cpu"]
    assert verb(*words).code == 0
    assert sorted(path.name for path in out.glob("*.nii.gz")) == ["p0_sct.nii.gz", "p1_sct.nii.gz"]
    sct, first = nib.load(out / "p1_sct.nii.gz"), nib.load(t1 / "p1.nii.gz")
    assert sct.shape == first.shape and sct.get_data_dtype() == np.int16
    np.testing.assert_allclose(sct.affine, first.affine, atol=1e-5)
    assert len(list((out / "uncertainty").iterdir())) == 2 * 4
    content = json.loads((out / "run.json").read_text())
    entry = content["cases"]["p1"]
    assert entry["inputs"] == [str(place / "p1.nii.gz") for place in (t1, t2)]
    assert len(set(entry["voxels_sha256"])) == 2
    by_hand = factory.load_translator(model, device="cpu")([t1 / "p1.nii.gz", t2 / "p1.nii.gz"])
    np.testing.assert_array_equal(by_hand.array, np.asarray(sct.dataobj))
    assert verb(*words, "--resume").out.count("(finished before)") == 2
    # Another T2 is another case, whatever the T1.
    shutil.copy(folder / "t2" / "p2.nii.gz", t2 / "p1.nii.gz")
    again = convert(model, [t1, t2], out, Options(resume=True, uncertainty=True, device="cpu"))
    assert list(again.failed) == ["p1"] and "has changed since" in again.failed["p1"]


def test_convert_refuses_before_it_computes_and_tells_the_order(model: Path, folder: Path, tmp_path: Path) -> None:
    order = "the model takes 2 contrasts, in this order: T1w, T2w"

    def refused(*inputs: Path) -> str:
        with pytest.raises(InputError) as caught:
            convert(model, inputs, tmp_path / "out", Options(device="cpu"))
        assert not (tmp_path / "out").exists()
        assert order in str(caught.value)
        return str(caught.value)

    t1, t2 = folder / "t1", folder / "t2"
    assert "1 input given" in refused(t1)
    assert "3 inputs given" in refused(t1, t2, t2)
    assert "an input is given twice" in refused(t1, t1)
    assert "some inputs are single volumes and some folders" in refused(t1, t2 / "p1.nii.gz")
    part = tmp_path / "part"
    part.mkdir()
    shutil.copy(t2 / "p1.nii.gz", part / "p1.nii.gz")
    shutil.copy(t2 / "p1.nii.gz", part / "p9.nii.gz")
    said = refused(t1, part)
    assert f"case 'p0': no T2w in {part}" in said and f"case 'p9': no T1w in {t1}" in said
    result = verb("convert", model, t1, "-o", tmp_path / "out")
    assert result.code == 2 and order in result.error


def test_names_say_which_contrast_a_file_is(model: Path, folder: Path, tmp_path: Path) -> None:
    bids, channels = tmp_path / "bids", tmp_path / "channels"
    for n in (0, 1):
        for kind, number in (("t1", 0), ("t2", 1)):
            for place, name in ((bids, f"sub-{n}_{kind.upper()}w"), (channels, f"k{n}_000{number}")):
                (place / kind).mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / kind / f"p{n}.nii.gz", place / kind / f"{name}.nii.gz")
    for place, ids in ((bids, ["sub-0", "sub-1"]), (channels, ["k0", "k1"])):
        done = convert(model, [place / "t1", place / "t2"], tmp_path / f"{place.name}_out", Options(device="cpu"))
        assert list(done.written) == ids and done.failed == {}
    with pytest.raises(InputError, match="was given as T1w, and its name says T2w"):
        convert(model, [bids / "t2", bids / "t1"], tmp_path / "wrong", Options(device="cpu"))
    one = convert(model, [channels / "t1" / "k0_0000.nii.gz", channels / "t2" / "k0_0001.nii.gz"], tmp_path / "one.nii.gz", Options(device="cpu"))  # fmt: skip # noqa: E501
    assert list(one.written) == ["k0"] and (tmp_path / "one.nii.gz").exists()
    unlike = convert(model, [folder / "t1" / "p0.nii.gz", channels / "t2" / "k0_0001.nii.gz"], tmp_path / "o", Options(device="cpu"))  # fmt: skip # noqa: E501
    assert list(unlike.written) == ["p0"]  # single files belong together, whatever they are called


def test_exchanged_contrasts_are_flagged(model: Path, folder: Path, tmp_path: Path) -> None:
    right = convert(model, [folder / "test" / "t1", folder / "test" / "t2"], tmp_path / "right", Options(device="cpu"))
    assert not any("exchanged" in flag for flag in right.quality["p6"]["flags"])
    wrong = convert(model, [folder / "test" / "t2", folder / "test" / "t1"], tmp_path / "wrong", Options(device="cpu"))
    (said,) = [flag for flag in wrong.quality["p6"]["flags"] if "exchanged" in flag]
    assert "what was given as T1w looks like T2w" in said and "what was given as T2w looks like T1w" in said
    assert "The model takes T1w, T2w, in this order" in said
    twice = convert(
        model, [folder / "test" / "t1", shutil.copytree(folder / "test" / "t1", tmp_path / "copy")], tmp_path / "twice",
        Options(device="cpu"),
    )  # fmt: skip
    assert any("what was given as T2w looks like T1w" in flag for flag in twice.quality["p6"]["flags"])


def test_every_training_head_is_told_right_from_exchanged(two: PreparedCohort) -> None:
    known = [case.features for case in two.cases["a"]]
    for number, found in enumerate(known):
        others = known[:number] + known[number + 1 :]
        turned = dataclasses.replace(found, histograms=found.histograms[::-1])
        assert not any("exchanged" in flag for flag in flags(found, others, "MR", two.channels("a")))
        assert any("exchanged" in flag for flag in flags(turned, others, "MR", two.channels("a")))


def test_a_patient_who_moved_and_a_contrast_that_misses_part_are_flagged(model: Path, folder: Path) -> None:
    translator = factory.load_translator(model, device="cpu")
    t1, t2 = (read_volume(folder / "test" / kind / "p6.nii.gz") for kind in ("t1", "t2"))
    affine = t2.affine.clone()
    affine[:3, 3] += torch.tensor([9.0, 0.0, 0.0])
    moved = MetaTensor(t2.as_tensor(), affine=affine)
    assert any("mm apart" in flag for flag in translator([t1, moved]).quality["flags"])
    upper = MetaTensor(t2.as_tensor()[..., 3:], affine=t2.affine @ torch.from_numpy(shift(3)))
    assert any("T2w covers 9" in flag for flag in translator([t1, upper]).quality["flags"])
    much = MetaTensor(t2.as_tensor()[..., 8:], affine=t2.affine @ torch.from_numpy(shift(8)))
    with pytest.raises(InputError, match=r"\(T2w\) covers [78].\.. % of the body"):
        translator([t1, much])


def shift(slices: int) -> np.ndarray:
    matrix = np.eye(4)
    matrix[2, 3] = slices
    return matrix


def test_a_ct_as_second_contrast_fails_by_name(model: Path, folder: Path, tmp_path: Path) -> None:
    result = convert(model, [folder / "test" / "t1", folder / "test" / "ct"], tmp_path / "out", Options(device="cpu"))
    assert result.written == {}
    assert "p6.nii.gz: the values look like a CT in Hounsfield units, and the model takes MR" in result.failed["p6"]


def test_dicom_takes_the_first_contrasts_place(model: Path, folder: Path, tmp_path: Path) -> None:
    done = convert(
        model,
        [folder / "test" / "t1", folder / "test" / "t2"],
        tmp_path / "out",
        Options(file_format="dicom", device="cpu"),
    )
    series = read_volume(done.written["p6"])
    t1 = nib.load(folder / "test" / "t1" / "p6.nii.gz")
    assert sorted(series.shape[1:]) == sorted(t1.shape)
    corners = nib.affines.apply_affine(t1.affine, [[0, 0, 0], np.array(t1.shape) - 1]).mean(axis=0)
    index = (np.array(series.shape[1:]) - 1) / 2
    np.testing.assert_allclose(nib.affines.apply_affine(series.affine.numpy(), index), corners, atol=1e-3)


def test_monai_transforms_take_keys_or_channels(model: Path, folder: Path) -> None:
    translator = factory.load_translator(model, device="cpu")
    t1 = read_volume(folder / "test" / "t1" / "p6.nii.gz")
    fine = read_volume(folder / "test" / "t2" / "p6.nii.gz")
    wanted = translator([t1, fine]).array
    data = {"t1": t1, "t2": fine}
    result = TranslateImaged(["t1", "t2"], translator, output_keys="sct")(data)
    np.testing.assert_array_equal(result["sct"].numpy()[0], wanted)
    assert result["t1"] is t1 and result["sct"].meta["filename_or_obj"] == t1.meta["filename_or_obj"]
    grids = [Grid(v.shape[1:], v.affine.numpy()) for v in (fine, t1)]
    on_one = resample(fine.numpy()[0], *grids, fill=0.0)
    both = MetaTensor(torch.stack([t1.as_tensor()[0], torch.from_numpy(on_one)]), meta=t1.meta)
    channels = TranslateImage(translator)(both)
    np.testing.assert_array_equal(channels.numpy()[0], translator([t1, as_volume(on_one, grids[1])]).array)
    np.testing.assert_array_equal(TranslateImaged("x", translator)({"x": both})["x"].numpy(), channels.numpy())
    with pytest.raises(ValueError, match=r"2 contrasts \(T1w, T2w\) give one result, which needs one output key"):
        TranslateImaged(["t1", "t2"], translator)
    with pytest.raises(ValueError, match="3 keys for 2 contrasts: T1w, T2w"):
        TranslateImaged(["t1", "t2", "t3"], translator, output_keys="sct")
    with pytest.raises(KeyError, match="contrasts are missing: t2"):
        TranslateImaged(["t1", "t2"], translator, output_keys="sct")({"t1": t1})


def test_what_cannot_be_done_with_several_contrasts_is_refused_by_name(
    model: Path, folder: Path, tmp_path: Path, run: Path
) -> None:
    with pytest.raises(InputError, match=r"direction 'ba' .* makes 2 contrasts at once \(T1w, T2w\)"):
        factory.load_translator(model, direction="ba", device="cpu")
    for kind in ("bundle", "onnx", "pt2", "slicer"):
        with pytest.raises(InputError, match=r"takes 2 contrasts \(T1w, T2w\), and what is exported takes one volume"):
            export_run(model, tmp_path / kind, file_format=kind)
    with pytest.raises(InputError, match="prepares its volumes in another way"):
        factory.load_translator([run, model], device="cpu")
    with pytest.raises(InputError, match=r"domains.a.contrasts names 2 \(x, y\), and benchmark measures one volume"):
        benchmark.experiment_for(None, ["domains.a={name: MR, modality: MR, contrasts: [x, y]}"])


def test_the_folders_can_be_inspected_and_planned_for(folder: Path) -> None:
    result = verb("inspect", folder / "list.json", "--json", "--workers", "1")
    assert result.code == 0, result.error
    content = json.loads(result.out)
    places = [volume["domain"] for volume in content["volumes"]]
    assert {place: places.count(place) for place in places} == {"a": 7, "a T2w": 7, "b": 7}
    # T1 and T2 beside each other are what was asked for.
    assert not [s for s in content["findings"] if s["code"] == "mixed_contrast"]
    data = {"data": {"source": str(folder / "list.json")}}
    made = make_plan(config.parse(data, "the test"), hypothetical_gpu(16.0))
    assert made.content["domains"]["a"] == {"name": "MR", "modality": "MR", "contrasts": ["T1w", "T2w"]}
    assert made.experiment().channels("a") == 2 * made.experiment().channels("b")
