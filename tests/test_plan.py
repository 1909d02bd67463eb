"""Planning: each rule on made-up domains and machines, and the verb on phantoms."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from medcyclegan import cli, config, factory, phantom, plan
from medcyclegan.cohort.cases import from_folders
from medcyclegan.errors import InputError
from medcyclegan.plan.domain import Domain, describe

MR = Domain(
    modality="MR", volumes=40, spacing=(1.0, 1.0, 1.2), finest=(0.9, 0.9, 1.0), coarsest=(1.1, 1.1, 1.5),
    extent=(170.0, 215.0, 190.0), height=180.0, top_inside=1.0, head=True,
)  # fmt: skip
CT = replace(MR, modality="CT", spacing=(0.6, 0.6, 1.4), extent=(165.0, 210.0, 230.0), height=210.0)
CPU = plan.Machine("cpu", "processor with 2 cores", 16 * plan.GIB, False, 2)


def pelvis(domain: Domain) -> Domain:
    return replace(domain, extent=(420.0, 280.0, 210.0), height=200.0, head=False, top_inside=0.0)


def test_every_choice_has_a_reason_and_the_whole_is_an_experiment() -> None:
    for machine in (CPU, *(plan.hypothetical_gpu(gib) for gib in (8, 24, 141))):
        made = plan.decide(MR, CT, machine)
        keys = {f"{section}.{key}" for section, values in made.content.items() for key in values}
        assert keys == set(made.reasons) and all(made.reasons.values())
        assert yaml.safe_load(plan.to_yaml(made)) == made.experiment().model_dump(
            mode="json", include={s: set(v) for s, v in made.content.items()}
        ) | {"model": made.content["model"], "losses": made.content["losses"]}


def test_memory_decides_on_batch_width_and_boxes() -> None:
    small, middle, large = (plan.decide(MR, CT, plan.hypothetical_gpu(gib)) for gib in (8, 24, 141))
    assert large.content["patches"]["spatial_dims"] == 3 and large.content["training"]["batch_size"] == 1
    assert small.content["patches"]["spatial_dims"] == middle.content["patches"]["spatial_dims"] == 2
    assert small.content["training"]["batch_size"] < middle.content["training"]["batch_size"]
    for made, gib in ((small, 8), (middle, 24), (large, 141)):
        assert made.memory is not None and made.memory <= plan.USABLE * gib * plan.GIB


def test_too_little_memory_narrows_the_network_and_then_refuses() -> None:
    tight = plan.decide(MR, CT, plan.hypothetical_gpu(2))
    assert tight.content["model"]["generator"]["filters"] < 64 and tight.content["training"]["batch_size"] == 1
    assert "to fit into memory" in tight.reasons["model.generator"]
    with pytest.raises(InputError, match=r"no experiment fits into 0\.5 GiB"):
        plan.decide(MR, CT, plan.hypothetical_gpu(0.5))
    with pytest.raises(InputError, match="above 0"):
        plan.hypothetical_gpu(-1)


def test_a_processor_gets_coarse_voxels_and_a_narrow_network() -> None:
    made = plan.decide(MR, CT, CPU)
    assert made.content["preparation"]["spacing"] == [2.0, 2.0, 2.0]
    assert made.content["patches"]["size"] == [96, 112]  # 170 and 215 mm in voxels of 2 mm, up to multiples of 16
    assert made.content["model"]["generator"]["filters"] == 16 and made.content["training"]["workers"] == 0


def test_spacing_is_the_median_unless_the_body_would_not_fit() -> None:
    head = plan.decide(MR, CT, plan.hypothetical_gpu(24)).content
    assert head["preparation"]["spacing"] == [0.84, 0.84, 1.3]  # 215 mm need 0.84 mm in 256 voxels
    made = plan.decide(pelvis(MR), pelvis(CT), plan.hypothetical_gpu(24)).content
    assert made["preparation"]["spacing"][0] == 1.65  # 420 / 256, up
    assert made["patches"]["size"][0] == 256 and made["patches"]["size"][1] == 176


def test_only_heads_are_mirrored_and_matched_from_the_vertex() -> None:
    assert plan.decide(MR, CT, CPU).content["patches"]["matching"] == "vertex"
    cut = plan.decide(MR, replace(CT, top_inside=0.75), CPU)
    assert cut.content["patches"]["matching"] == "profile" and cut.content["patches"]["flip"] is True
    same = plan.decide(pelvis(MR), pelvis(CT), CPU)
    assert same.content["patches"]["matching"] == "extent" and "flip" not in same.content["patches"]
    longer = plan.decide(pelvis(MR), replace(pelvis(CT), height=600.0), CPU)
    assert longer.content["patches"]["matching"] == "any" and any("invented" in line for line in longer.warnings)
    assert any("same region" in line for line in plan.decide(MR, pelvis(CT), CPU).warnings)


def test_thick_slices_stay_slices() -> None:
    thick = {"spacing": (0.9, 0.9, 6.0)}
    made = plan.decide(replace(MR, **thick), replace(CT, **thick), plan.hypothetical_gpu(141))
    assert made.content["patches"]["spatial_dims"] == 2 and "neighbors" not in made.content["patches"]
    assert "6 mm thick" in made.reasons["patches.spatial_dims"]


def test_the_description_of_phantoms(cohort: phantom.Cohort) -> None:
    cases = from_folders(cohort.train_mr[0].parent, cohort.train_ct[0].parent)
    found = describe(cases.a, "MR")
    assert found.volumes == len(cases.a) and found.head and found.top_inside == 1
    assert 130 < found.extent[0] < 200 and 160 < found.extent[1] < 250  # a head, in mm


def test_volumes_that_cannot_be_used_are_told(cohort: phantom.Cohort, tmp_path: Path) -> None:
    mr = tmp_path / "mr"
    shutil.copytree(cohort.train_mr[0].parent, mr)
    (mr / "broken.nii.gz").write_bytes(b"no volume")
    found = describe(from_folders(mr, cohort.train_ct[0].parent).a, "MR")
    assert found.measured == len(cohort.train_mr) + 1 and len(found.problems) == 1
    (warning,) = (line for line in plan.decide(found, CT, CPU).warnings if "cannot be used" in line)
    assert "1 of 3 MR volumes" in warning and "broken.nii.gz" in warning and "\n" not in warning


def test_a_training_without_a_config_is_planned(
    cohort: phantom.Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factory, "measure_step", partial(factory.measure_step, least=1, most=1))
    run = tmp_path / "run"
    folders = ["--a", str(cohort.train_mr[0].parent), "--b", str(cohort.train_ct[0].parent)]
    small = ["--set", "training.steps=2", "--set", "model.generator.filters=4", "--set", "preparation.spacing=[6,6,8]"]
    done = CliRunner().invoke(cli.app, ["train", *folders, "-o", str(run), *small, "--set", "patches.size=[48,48]"])
    assert done.exit_code == 0, done.output
    planned, used = config.load(run / "plan.yaml"), config.load(run / "config.yaml")
    assert planned.patches.matching == used.patches.matching == "vertex"
    assert planned.training.steps > used.training.steps == 2
    assert planned.data.a == cohort.train_mr[0].parent.absolute()
    assert "expected time: about" in done.stderr


def test_the_verb_prints_a_plan_and_its_figures(cohort: phantom.Cohort, tmp_path: Path) -> None:
    folders = ["--a", str(cohort.train_mr[0].parent), "--b", str(cohort.train_ct[0].parent)]
    file = tmp_path / "plan.yaml"
    done = CliRunner().invoke(cli.app, ["plan", *folders, "--gpu-memory", "24", "-o", str(file), "--json"])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert printed["seconds"] is None and 0 < printed["memory_bytes"] < 24 * plan.GIB
    assert config.load(file).training.steps == printed["experiment"]["training"]["steps"]
    assert "# Expected time: not known" in file.read_text()
    # Without --json it says how to train, in words that work as they stand.
    done = CliRunner().invoke(cli.app, ["plan", *folders, "--gpu-memory", "24", "-o", str(file)])
    assert f"train with `medcyclegan train {file} -o RUN`" in done.stdout
    with pytest.raises(InputError, match="names no data"):
        CliRunner().invoke(cli.app, ["plan"], catch_exceptions=False)
