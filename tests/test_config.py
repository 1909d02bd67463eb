"""The experiment: what is allowed, how mistakes are told, and that it survives being written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from medcyclegan import config
from medcyclegan.errors import InputError


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_follow_the_paper() -> None:
    experiment = config.load(None)
    assert experiment.objective == {
        "_target_": "cyclegan",
        "cycle_weight": 10.0,
        "identity_weight": 0.5,
        "mask_sparsity": 0.0,
        "mask_agreement": 0.0,
        "pool_size": 50,
    }
    assert (experiment.training.learning_rate, experiment.training.betas) == (2e-4, (0.5, 0.999))
    assert experiment.preparation.ct_window == (-1024.0, 3071.0)


def test_written_experiment_reads_back_equal(tmp_path: Path) -> None:
    experiment = config.load(None, ["training.steps=7", "model.generator.blocks=6", "preparation.spacing=[1, 1, 2.5]"])
    config.save(experiment, tmp_path / "config.yaml")
    assert config.load(tmp_path / "config.yaml") == experiment


def test_data_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "experiment.yaml", "data: {a: mr, b: /elsewhere/ct}")
    data = config.load(file).data
    assert (data.a, data.b) == (tmp_path / "mr", Path("/elsewhere/ct"))


def test_a_leaf_without_target_configures_the_default_part() -> None:
    assert config.load(None, ["model.generator.filters=8"]).model.generator["_target_"] == "resnet"


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("trainig: {steps: 3}", ["trainig", "Did you mean 'training'?"]),
        ("training: {step: 3, batch_size: two}", ["Did you mean 'steps'?", "training.batch_size", "'two'"]),
        ("training: {steps: 0}", ["training.steps", "greater than or equal to 1", "0"]),
        ("training: {learning_rate: .inf}", ["training.learning_rate", "finite"]),
        ("model: {generator: {_target_: resnt}}", ["model.generator", "Did you mean 'resnet'?"]),
        ("preparation: {ct_window: [100, -100]}", ["ct_window", "below the second"]),
        ("data: {a: mr}", ["a and b are both needed"]),
        ("data: {a: mr, b: ct, source: p}", ["only one of"]),
        ("- a list", ["must hold keys and values"]),
        ("training: [", ["is not YAML"]),
        ("training: !!python/object/apply:os.getcwd []", ["is not YAML"]),
        ("seed: 1\nseed: 2", ["'seed' is given twice", "line 2"]),
        ("training: {steps: 3.5}", ["training.steps: a whole number is needed (got 3.5)"]),
        ("training: {betas: 0.5}", ["training.betas: a list is needed (got 0.5)"]),
        ("training:", ["training: keys with values are needed (got nothing)"]),
        ("patches: [64, 64]", ["patches: keys with values are needed (got [64, 64])"]),
        ("patches: {flip: perhaps}", ["patches.flip: true or false is needed (got 'perhaps')"]),
        ("preparation: {spacing: [4]}", ["preparation.spacing: more values are needed (got [4])"]),
        ("preparation: {ct_window: [1, 2, 3]}", ["ct_window: 2 values at most are needed (got [1, 2, 3])"]),
        ("model: {generator: unet}", ["model.generator: keys with values", "write {_target_: unet}"]),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, messages: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        config.load(write(tmp_path / "experiment.yaml", text))
    for message in (*messages, "experiment.yaml"):
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [("training.steps", "key=value"), ("seed.deep=1", None), ("training.steps=[", "not YAML")],
)
def test_override_mistakes(override: str, message: str | None) -> None:
    with pytest.raises(InputError, match=message):
        config.load(None, ["seed=1", override])


def test_scientific_notation_is_a_number() -> None:
    assert config.load(None, ["training.learning_rate=1e-4"]).training.learning_rate == 1e-4


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no config .*nowhere\.yaml"):
        config.load(tmp_path / "nowhere.yaml")


def test_what_is_no_yaml_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        config.load(tmp_path)
    (tmp_path / "mr.nii.gz").write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(InputError, match="is no text"):
        config.load(tmp_path / "mr.nii.gz")


def test_a_mistake_in_set_is_not_blamed_on_the_file_alone(tmp_path: Path) -> None:
    file = write(tmp_path / "experiment.yaml", "seed: 1")
    with pytest.raises(InputError, match=r"experiment\.yaml with --set is not a valid"):
        config.load(file, ["training.step=3"])


def test_the_experiment_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        config.load(None).training.steps = 3  # type: ignore[misc]


def test_plain_data_only() -> None:
    assert yaml.safe_load(yaml.safe_dump(config.load(None).to_dict())) == config.load(None).to_dict()


def test_heights_from_the_vertex_need_axial_slices() -> None:
    with pytest.raises(InputError, match="needs axial slices"):
        config.parse({"patches": {"plane": "coronal", "matching": "vertex"}}, "the test")
    assert config.parse({"patches": {"plane": "coronal", "matching": "extent"}}, "the test").patches.plane == "coronal"


def test_a_value_given_with_set_is_data_and_never_code(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    with pytest.raises(InputError, match=r"the value of --set seed=.* is not YAML"):
        config.load(
            None, [f"seed=!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{ran}']]"]
        )
    assert not ran.exists()


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "more than 10000 values"),
        ("[" * 5000, "nested more than 50 levels"),
        ("data: &a {a: *a}", "a part refers to itself"),
        ("losses: {structure: &a [*a]}", "a part refers to itself"),
        ("training: {1: 2}", "the key '1' is no text"),
        ("patches: {yes: 2}", "the key 'yes' is no text"),
        ('seed: 1\n"s\\u0065ed": 2', "'seed' is given twice"),
        ("? {a: 1}\n: 2", "a key is a list or a mapping"),
        ("seed: " + "9" * 5000, "whole number beyond 64 bits"),
        ("seed: 0x" + "f" * 5000, "whole number beyond 64 bits"),
        ("seed: 010", "'010' is one number to some programs and another to others"),
        ("seed: 08", "'08' is one number to some programs"),
        ("training: {steps: 1:30}", "'1:30' is one number to some programs"),
        ("seed: yes", "seed: a number is needed, not true or false"),
        ("training: {betas: [off, 0.9]}", "training.betas: a number is needed, not true or false"),
        ("seed: 1\n---\nseed: 2", "another document"),
        ("seed: !!binary aGk=", "constructor for the tag"),
        ("seed: !!int x", "not YAML"),
        ("seed: !!bool maybe", "not YAML"),
        ("a: <<", "not YAML"),
        ("seed: 1\0", "not YAML"),
        ('domains: {a: {name: "M\\ud800", modality: MR}}', "lone surrogate"),
        ('domains: {a: {name: "M\\0", modality: MR}}', "NUL"),
        ("# " + "x" * 300_000, "characters, at most"),
        ("losses: {structure: [{_target_: mind, weight: .nan}]}", "'weight' is nan, and a finite number is needed"),
        ("model: {generator: {_target_: a..b}}", "a name or a dotted path is needed"),
    ],
)
def test_yaml_is_read_strictly(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        config.load(write(tmp_path / "experiment.yaml", text))
    assert "experiment.yaml" in str(caught.value) and len(str(caught.value)) < 1000


def test_a_config_in_another_encoding_is_told(tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_bytes(b"seed: 1\n# M\xe4nner")
    with pytest.raises(InputError, match=r"experiment\.yaml .* is no text in UTF-8: line 2 holds the byte 0xe4"):
        config.load(tmp_path / "experiment.yaml")
    (tmp_path / "experiment.yaml").write_bytes("seed: 3".encode("utf-8-sig"))
    assert config.load(tmp_path / "experiment.yaml").seed == 3


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("", "seed", 0),
        ("# nothing", "seed", 0),
        ("training: {steps: 3.0}", "training.steps", 3),
        ('training: {steps: "300"}', "training.steps", 300),
        ("training: {steps: 1e3}", "training.steps", 1000),
        ("training: {steps: 1_000}", "training.steps", 1000),
        ("training: {learning_rate: 1e-4}", "training.learning_rate", 1e-4),
        ("domains: {a: {name: 2001-01-01, modality: MR}}", "domains.a.name", "2001-01-01"),
        ("training: &t {steps: 7}", "training.steps", 7),
        ("patches: {flip: on}", "patches.flip", True),
        ("losses: {structure: [{_target_: mind, weight: 1e-1}]}", "losses.structure", None),
    ],
)
def test_yaml_is_read_as_it_is_meant(tmp_path: Path, text: str, key: str, value: object) -> None:
    found: Any = config.load(write(tmp_path / "experiment.yaml", text))
    for name in key.split("."):
        found = getattr(found, name)
    if value is None:
        (leaf,) = found
        assert leaf["weight"] == 0.1
    else:
        assert found == value and type(found) is type(value)


@pytest.mark.parametrize("word", ["off", "any", "'off'", "false", "no"])
def test_matching_was_called_off(word: str) -> None:
    assert config.load(None, [f"patches.matching={word}"]).patches.matching == "any"


def test_no_option_is_something_else_to_yaml() -> None:
    def words(schema: Any) -> Iterator[str]:
        if isinstance(schema, dict):
            yield from (word for word in [*schema.get("enum", ()), schema.get("const")] if isinstance(word, str))
            yield from schema.get("properties", {})
        for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
            yield from words(part)

    options = set(words(config.Experiment.model_json_schema()))
    parts = [part for registry in config.REGISTRIES.values() for part in registry.parts().values()]
    options |= {part.name for part in parts} | {name for part in parts for name in part.arguments}
    options |= {a.default for part in parts for a in part.arguments.values() if isinstance(a.default, str)}
    assert {"extent", "any", "resnet", "steps", "cosine", "resize"} <= options
    for option in options:
        assert yaml.safe_load(option) == option == yaml.safe_load(f"[{option}]")[0]


def test_what_a_checkpoint_holds_is_read_as_strictly() -> None:
    ring: list[Any] = []
    ring.append(ring)
    bomb: list[Any] = []
    for _ in range(40):
        bomb = [bomb, bomb]
    for content, message in (
        (True, "must hold keys and values"),
        ([1], "must hold keys and values"),
        ({1: 2}, "the key '1' is no text"),
        ({"seed": "\ud800"}, "lone surrogate"),
        ({"domains": {"a\0": 1}}, "NUL"),
        ({"seed": ring}, "nested more than"),
        ({"seed": bomb}, "more than 10000 values"),
    ):
        with pytest.raises(InputError, match=message):
            config.parse(content, "the checkpoint")  # type: ignore[arg-type]
