"""The experiment: every knob with its default, unit and range.

An experiment is YAML, read as plain data; nothing in it is evaluated. It is checked as a whole before anything heavy is
imported, and every problem is reported at once. Nothing here imports torch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from medcyclegan.documents import parse_yaml, read_yaml, require_plain
from medcyclegan.errors import InputError, raise_all
from medcyclegan.registry import (
    ADVERSARIAL_LOSSES,
    DISCRIMINATORS,
    GENERATORS,
    OBJECTIVES,
    RECONSTRUCTION_LOSSES,
    STRUCTURE_LOSSES,
    did_you_mean,
)

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]

Leaf = dict[str, Any]
DEFAULT_PARTS = {
    "generator": "resnet",
    "discriminator": "patchgan",
    "objective": "cyclegan",
    "adversarial": "lsgan",
    "reconstruction": "l1",
}
REGISTRIES = {
    "generator": GENERATORS,
    "discriminator": DISCRIMINATORS,
    "objective": OBJECTIVES,
    "adversarial": ADVERSARIAL_LOSSES,
    "reconstruction": RECONSTRUCTION_LOSSES,
    "structure": STRUCTURE_LOSSES,
}


def _complete_leaf(value: Any, info: ValidationInfo) -> Any:
    """Spell a leaf out: without `_target_` it is the default part; arguments not given take the part's defaults."""
    name = str(info.field_name)
    if isinstance(value, list):
        return [_complete_leaf(leaf, info) for leaf in value]
    if not isinstance(value, dict):
        return value
    registry = REGISTRIES[name]
    if "_target_" not in value and name not in DEFAULT_PARTS:
        raise ValueError(f"a {registry.kind} needs _target_, one of: {', '.join(registry.parts())}")
    leaf = {"_target_": DEFAULT_PARTS.get(name), **value}
    if problems := registry.check(leaf, (info.context or {}).get("allow", ())):
        raise ValueError("; ".join(problems))
    return registry.complete(leaf)


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of."""
    parts = get_args(annotation)
    yield from (kind for part in parts for kind in _kinds(part)) if parts else (annotation,)


class _Section(BaseModel):
    """Part of an experiment: frozen, unknown keys refused, numbers finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads yes, no, on and off as true and false, and pydantic takes these for 1 and 0."""
        kinds = set(_kinds(cls.model_fields[str(info.field_name)].annotation))
        given = value if isinstance(value, list | tuple) else [value]
        if kinds & {int, float} and bool not in kinds and any(isinstance(part, bool) for part in given):
            raise ValueError("a number is needed, not true or false (which yes, no, on and off are too)")
        return value


class Domain(_Section):
    """One of the two image domains."""

    name: str = Field(min_length=1, description="shown in pictures and messages; by default the modality")
    modality: Literal["MR", "CT"] = Field(description="picks the intensity rule: CT in HU, MR by percentiles")
    contrasts: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (),
        description="names of the MR contrasts of a patient, in the order of their files and of the channels; "
        "empty: taken from the data, or one",
    )

    @model_validator(mode="before")
    @classmethod
    def _named(cls, content: Any) -> Any:
        named = isinstance(content, dict) and "name" not in content and "modality" in content
        return {"name": content["modality"], **content} if named else content

    @model_validator(mode="after")
    def _distinct(self) -> Domain:
        if len(set(self.contrasts)) < len(self.contrasts):
            raise ValueError(f"contrasts: each has a name of its own, got {', '.join(self.contrasts)}")
        if len(self.contrasts) > 1 and self.modality != "MR":
            raise ValueError(f"contrasts: several are for MR, and this domain is {self.modality}")
        return self

    @property
    def volumes(self) -> int:
        """How many contrasts a case has, at least 1."""
        return max(1, len(self.contrasts))


class Domains(_Section):
    """Source (a) and target (b)."""

    a: Domain = Domain(name="MR", modality="MR")
    b: Domain = Domain(name="CT", modality="CT")


class Preparation(_Section):
    """Preparation of volumes on the working grid."""

    spacing: tuple[Positive, Positive, Positive] | None = Field(
        None, description="working spacing along right, anterior, superior in mm; null: the median of all volumes"
    )
    ct_window: tuple[float, float] = Field((-1024.0, 3071.0), description="HU mapped to -1 and 1; clipped beyond")
    mr_percentiles: tuple[Annotated[float, Field(ge=0, le=100)], Annotated[float, Field(ge=0, le=100)]] = Field(
        (0.5, 99.5), description="percentiles of the MR inside the body mapped to -1 and 1; clipped beyond"
    )

    mr_inverted: bool | None = Field(
        None,
        description="dark MR becomes 1 and bright MR -1, so that bone is bright in both domains; "
        "null: only if the other domain is CT",
    )
    mr_floor: Annotated[float, Field(ge=-1, lt=1)] | None = Field(
        None,
        description="lowest value inside the body of an MR; above -1 it differs from the background outside; "
        "null: -0.5 where the MR is inverted, -1 elsewhere",
    )
    interpolation: Literal["linear", "bspline"] = Field(
        "linear", description="onto the working grid; bspline is sharper and costs more time"
    )
    crop_margin: Annotated[float, Field(ge=0)] | None = Field(
        None, description="margin kept around the body, mm; null: keep the whole field of view"
    )
    mr_n4_shrink: Annotated[int, Field(ge=0, le=16)] = Field(
        0,
        description="N4 bias correction of MR: shrink factor along each axis for the fit (4 is usual); 0: none",
    )
    mr_standardization: Literal["percentile", "zscore", "nyul", "whitestripe"] = Field(
        "percentile",
        description="what -1 and 1 mean in MR: mr_percentiles in the body; 3 standard deviations; mr_percentiles with "
        "the deciles at landmarks of the training volumes; 0 and 3 times the most frequent tissue",
    )
    mr_exclude_blanked: bool = Field(
        True, description="exclude voxels of an MR that defacing overwrote from the body, with a warning"
    )
    register_pairs: bool = Field(
        False, description="register b of each validation pair rigidly to a; pairs where that fails are left out"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Preparation:
        for name in ("ct_window", "mr_percentiles"):
            low, high = getattr(self, name)
            if low >= high:
                raise ValueError(f"{name}: the first value must be below the second, got {low} and {high}")
        return self


class Data(_Section):
    """Where the volumes are: two folders, or one path that says what it is."""

    source: Path | None = Field(
        None,
        description="prepared folder, datalist (JSON), table (CSV) or folder in a known layout; detected by itself",
    )
    a: Path | None = Field(None, description="folder of volumes of domain a")
    b: Path | None = Field(None, description="folder of volumes of domain b")
    masks_a: Path | None = Field(None, description="folder of body masks with the case ids of a")
    masks_b: Path | None = Field(None, description="folder of body masks with the case ids of b")
    pairs: Path | None = Field(None, description="CSV with columns case, a, b and optionally mask, for validation")
    fold: Annotated[int, Field(ge=0)] | None = Field(
        None, description="of a datalist: which fold validates; the others are trained on"
    )
    layout: str | None = Field(None, description="of a table or folder: name of its layout; null: detected")
    contrast_a: str | None = Field(
        None,
        description="of a table or folder: which scans are domain a, with the wildcards * and ?; several, separated by "
        "commas (T1w,T2w), become channels in this order",
    )
    contrast_b: str | None = Field(None, description="likewise, which scans are domain b")
    patient: str | None = Field(
        None,
        description="of a table or folder: regular expression whose first group, in the path of a scan, is the patient",
    )
    picture_window: tuple[float, float] | None = Field(
        None, description="HU of black and white in 2D images (PNG, TIFF) of a CT domain; without it they are refused"
    )
    picture_gray: bool = Field(False, description="convert color 2D images to gray; without it they are refused")
    skip_failed: bool = Field(False, description="train although some volumes could not be prepared")

    @model_validator(mode="before")
    @classmethod
    def _former_names(cls, content: Any) -> Any:
        if isinstance(content, dict) and (former := [k for k in ("prepared", "datalist", "root") if k in content]):
            raise ValueError(f"{' and '.join(former)}: this key is called source now, whatever the data is")
        return content

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        folders = (self.a, self.b, self.masks_a, self.masks_b, self.pairs)
        if self.source is not None and any(f is not None for f in folders):
            raise ValueError("give only one of: source; the folders a and b, with their masks and pairs")
        if self.source is None and any(getattr(self, key) is not None for key in OF_SOURCE):
            raise ValueError(f"{', '.join(OF_SOURCE)} belong to source")
        if self.picture_window is not None and self.picture_window[0] >= self.picture_window[1]:
            raise ValueError("picture_window: the first value must be below the second")
        if any(f is not None for f in folders) and (self.a is None or self.b is None):
            raise ValueError("a and b are both needed")
        return self


OF_SOURCE = ("fold", "layout", "contrast_a", "contrast_b", "patient")  # keys of `data` that say how to read `source`


class Patches(_Section):
    """The patches that networks are trained on."""

    spatial_dims: Literal[2, 3] = Field(2, description="2: slices; 3: boxes")
    plane: Literal["axial", "coronal", "sagittal"] = Field("axial", description="orientation of slices")
    neighbors: Annotated[int, Field(ge=0)] = Field(
        0, description="neighboring slices on either side, as more channels of input and output (2.5D); 0: none"
    )
    size: Annotated[tuple[Annotated[int, Field(ge=16)], ...], Field(min_length=2, max_length=3)] | None = Field(
        None,
        description="patch size in voxels along right, anterior, superior (2D: the two in-plane axes); larger images "
        "are cropped, smaller ones padded; null: holds every body, at most 256 x 256 or 96 x 96 x 96",
    )
    minimum_body: Share = Field(0.05, description="leave out slices with less body than this share of the fullest one")
    flip: bool = Field(False, description="mirror left and right at random")
    matching: Literal["any", "extent", "vertex", "profile"] = Field(
        "any",
        description="draw a and b at similar heights: any: no matching; "
        "extent: relative height within the body;  "
        "vertex: distance from the top of the head relative to its size; "
        "profile: by aligning the profiles of cross-section area, whatever part of the body each scan covers",
    )

    @field_validator("matching", mode="before")
    @classmethod
    def _formerly_off(cls, value: Any) -> Any:
        return "any" if value is False or value == "off" else value  # its former name, which YAML reads as false

    @model_validator(mode="after")
    def _dimensions(self) -> Patches:
        if self.size is not None and len(self.size) != self.spatial_dims:
            raise ValueError(f"size: {self.spatial_dims} numbers are needed (spatial_dims), got {len(self.size)}")
        if self.spatial_dims == 3 and (self.neighbors or self.plane != "axial"):
            raise ValueError("plane and neighbors are for slices (spatial_dims 2), boxes have neither")
        if self.matching == "vertex" and self.plane != "axial":
            raise ValueError("matching vertex measures from the top of the head and needs axial slices; take extent")
        return self


class Augmentation(_Section):
    """How patches are varied; every amount is a limit, and 0 (resize_jitter: 1) is off."""

    rotate: Annotated[float, Field(ge=0, le=180)] = Field(0.0, description="degrees")
    scale: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="share of the size, 0.1: 90 to 110 %")
    translate: Annotated[float, Field(ge=0)] = Field(0.0, description="mm")
    resize_jitter: Annotated[float, Field(ge=1, le=2)] = Field(
        1.0, description="enlarge, then crop at random; 286 / 256 = 1.117 in the original CycleGAN"
    )
    bias_field: Annotated[float, Field(ge=0)] = Field(
        0.0, description="MR only: largest coefficient of the logarithm of a smooth field; 0.3 is strong"
    )
    gamma: Annotated[float, Field(ge=0)] = Field(
        0.0, description="MR only: the exponent lies between exp(-gamma) and exp(gamma)"
    )
    noise: Annotated[float, Field(ge=0)] = Field(
        0.0, description="MR only: standard deviation as a share of the intensity range"
    )


class Model(_Section):
    """The networks; `_target_` names a registered part, the rest are its arguments."""

    generator: Leaf = {}
    discriminator: Leaf = {}
    discriminator_windows: tuple[tuple[float, float], ...] = Field(
        ((-160.0, 240.0), (200.0, 1600.0)),
        description="HU windows, each an additional input channel of CT discriminators: soft tissue and bone",
    )

    _complete = field_validator("generator", "discriminator", mode="before")(_complete_leaf)

    @model_validator(mode="after")
    def _ordered(self) -> Model:
        for low, high in self.discriminator_windows:
            if low >= high:
                raise ValueError(f"discriminator_windows: the first value must be below the second, got {[low, high]}")
        return self


class Losses(_Section):
    """What is minimized; an objective ignores losses that its method does not use."""

    adversarial: Leaf = {}
    reconstruction: Leaf = {}
    structure: list[Leaf] = Field([], description="what keeps anatomy in place, each with its weight")

    _complete = field_validator("adversarial", "reconstruction", "structure", mode="before")(_complete_leaf)

    @model_validator(mode="after")
    def _once(self) -> Losses:
        names = [leaf["_target_"] for leaf in self.structure]
        if len(set(names)) < len(names):
            raise ValueError(f"structure: each loss is given once, got {', '.join(names)}")
        return self


class Training(_Section):
    """Length, optimization and logging of a training."""

    steps: Count = Field(100_000, description="optimizer steps")
    batch_size: Count = Field(1, description="slices of each domain that a process takes at once")
    accumulate: Count = Field(1, description="batches whose gradients add up to one step; saves memory, costs time")
    learning_rate: Positive = Field(2e-4, description="of Adam, for all networks")
    learning_rate_discriminator: Positive | None = Field(
        None, description="of Adam, for the discriminators; null: the same (different rates: TTUR)"
    )
    betas: tuple[Share, Share] = Field((0.5, 0.999), description="of Adam")
    schedule: Literal["linear", "cosine", "plateau"] = Field(
        "linear", description="learning rate decay: linear or cosine to zero; plateau: when validations stop improving"
    )
    decay_start: Share = Field(0.5, description="share of the steps after which the rate falls (linear, cosine)")
    warmup: Annotated[int, Field(ge=0)] = Field(0, description="steps over which the rate first rises; 0: none")
    plateau_patience: Count = Field(5, description="validations in a row without improvement before the rate falls")
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = Field(0.5, description="by which it is then multiplied")
    gradient_clip: Positive | None = Field(
        None, description="largest norm of the gradient of all generators, and of all discriminators; null: no limit"
    )
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.999, description="of the moving average of the generators; 0: none"
    )
    precision: Literal["auto", "float32", "bf16"] = Field("auto", description="auto: bf16 where the hardware has it")
    workers: Annotated[int, Field(ge=0)] = Field(0, description="processes that read patches")
    log_every: Count = Field(50, description="steps between lines of metrics.csv and TensorBoard scalars")
    picture_every: Count = Field(1000, description="steps between picture panels")
    checkpoint_every: Count = Field(1000, description="steps between checkpoints")
    keep_checkpoints: Count = Field(2, description="how many of them are kept, besides the best")
    validate_every: Count | None = Field(
        None, description="steps between validations, which choose best.pt; null: with every picture panel"
    )
    patience: Count | None = Field(
        None, description="validations in a row without improvement before the training stops; null: never"
    )
    mlflow: str | None = Field(
        None, description="log to this MLflow tracking URI or folder, needs the package mlflow; null: off"
    )

    @model_validator(mode="after")
    def _room(self) -> Training:
        if self.warmup >= self.steps:
            raise ValueError(f"warmup: {self.warmup} steps are no fewer than the training's {self.steps}")
        every = self.validate_every or self.picture_every
        for name in ("patience", "plateau_patience"):
            wait = getattr(self, name)
            if (name == "patience" or self.schedule == "plateau") and wait and wait * every >= self.steps:
                raise ValueError(
                    f"{name}: {wait} validations, one in {every} steps, never pass within {self.steps} steps; "
                    "lower it or validate_every"
                )
        return self


class Experiment(_Section):
    """Everything that one training is made of."""

    seed: int = Field(0, ge=0, lt=2**63, description="of weights, data order and image pools")
    domains: Domains = Domains()
    data: Data = Data()
    preparation: Preparation = Preparation()
    patches: Patches = Patches()
    augmentation: Augmentation = Augmentation()
    model: Model = Model()
    objective: Leaf = {}
    losses: Losses = Losses()
    training: Training = Training()

    _complete = field_validator("objective", mode="before")(_complete_leaf)
    _allow: tuple[str, ...] = PrivateAttr(())

    @property
    def allow(self) -> tuple[str, ...]:
        """Modules from which its parts may be imported, as the user allowed; never saved."""
        return self._allow

    def channels(self, domain: str) -> int:
        """Channels of an image of "a" or "b": for every contrast its slice and the neighbors of that."""
        contrasts: int = getattr(self.domains, domain).volumes
        return contrasts * (2 * self.patches.neighbors + 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for YAML and checkpoints: `Experiment.model_validate` takes it back."""
        return self.model_dump(mode="json")


def parse(content: Mapping[str, Any], source: str, allow: Iterable[str] = ()) -> Experiment:
    """Check plain data and give the experiment.

    Args:
        content: sections of keys.
        source: what `content` is, for messages.
        allow: modules or packages of your own from which the experiment may name parts; importing runs their code.

    Raises:
        InputError: naming `source` and listing every unknown key, wrong type and impossible value at once.
    """
    allowed = tuple(allow)
    require_plain(content, f"content of {source}")
    if not isinstance(content, Mapping):
        raise InputError(f"{source} must hold keys and values, but holds a {type(content).__name__}.")
    try:
        experiment = Experiment.model_validate(content, context={"allow": allowed})
        experiment._allow = allowed
        return experiment
    except ValidationError as error:
        problems = dict.fromkeys(_explain(dict(problem)) for problem in error.errors())
        raise_all(problems, f"{source} is not a valid experiment:")
        raise


def load(
    path: Path | None,
    overrides: Iterable[str] = (),
    base: Mapping[str, Any] | None = None,
    allow: Iterable[str] = (),
    data: Mapping[str, Any] | None = None,
) -> Experiment:
    """Read an experiment from YAML and apply `key.sub=value` overrides, whose values are YAML too.

    Args:
        path: the YAML file; None for the defaults. Paths in `data` are relative to the file's folder.
        overrides: for example "training.steps=2000" or "model.generator.blocks=6".
        base: what is overridden where there is no file.
        allow: as in `parse`.
        data: other data than the file names, as in `with_data`; overrides come after it.
    """
    content: Any = copy.deepcopy(dict(base or {}))
    if path is not None:
        content = read_yaml(path, f"config {path}")
        content = {} if content is None else content
        if not isinstance(content, dict):
            raise InputError(f"the config {path} must hold keys and values, but holds a {type(content).__name__}.")
        _resolve_paths(content, path.parent)
    given = tuple(overrides)
    added = [word for word, there in (("other data", _replace_data(content, data or {})), ("--set", given)) if there]
    for override in given:
        _apply(content, override)
    source = str(path) if path else "the configuration"
    return parse(content, f"{source} with {' and '.join(added)}" if path and added else source, allow)


def with_data(experiment: Experiment, data: Mapping[str, Any]) -> Experiment:
    """The experiment on other data than its config names; keys as in `Data`, those that are None are left out."""
    content = experiment.model_dump(mode="json", exclude_unset=True)
    if not _replace_data(content, data):
        return experiment
    return parse(content, "the experiment with other data", experiment.allow)


def _replace_data(content: dict[str, Any], data: Mapping[str, Any]) -> bool:
    """Replace the data of an experiment's plain data, keeping how it is read; False if no data is given."""
    given = {key: str(value) if isinstance(value, Path) else value for key, value in data.items() if value is not None}
    if given:
        lasting = ("picture_window", "picture_gray", "skip_failed")
        there = content.get("data")
        kept = {key: value for key, value in there.items() if key in lasting} if isinstance(there, dict) else {}
        content["data"] = {**kept, **given}
    return bool(given)


def save(experiment: Experiment, path: Path) -> None:
    """Write the experiment, with every default spelled out, as YAML."""
    path.write_text(yaml.safe_dump(experiment.to_dict(), sort_keys=False), encoding="utf-8")


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise InputError(f"--set takes key=value, for example training.steps=2000, got '{override}'.")
    *parents, last = key.strip().split(".")
    here = content
    for parent in parents:
        child = here.setdefault(parent, {})
        if not isinstance(child, dict):
            raise InputError(f"--set {override}: '{parent}' holds a value and has no keys below it.")
        here = child
    here[last] = parse_yaml(value, f"value of --set {override}")


def _resolve_paths(content: dict[str, Any], folder: Path) -> None:
    data = content.get("data")
    if isinstance(data, dict):
        for key, value in data.items():
            if key in DATA_PATHS and isinstance(value, str) and not Path(value).expanduser().is_absolute():
                data[key] = str(folder / value)


# The keys of `data` that name files or folders.
DATA_PATHS = {key for key, field in Data.model_fields.items() if field.annotation == Path | None}


def _explain(problem: dict[str, Any]) -> str:
    """One validation error in the user's words."""
    path = [str(part) for part in problem["loc"]]
    where = ".".join(path) or "the file"
    if problem["type"] == "extra_forbidden":
        allowed = _keys_of(path[:-1])
        return f"{where}: there is no such key; allowed here: {', '.join(allowed)}.{did_you_mean(path[-1], allowed)}"
    given = problem.get("input")
    if problem["type"] == "missing" and path[-1].isdigit():
        return f"{'.'.join(path[:-1])}: more values are needed (got {_shown(given)})"
    if problem["type"] == "too_long":
        return f"{where}: {problem['ctx']['max_length']} values at most are needed (got {_shown(given)})"
    if needed := _NEEDED.get(problem["type"]):
        part = path[-1] in REGISTRIES and isinstance(given, str)
        hint = f"; write {{_target_: {given}}}" if part else ""
        return f"{where}: {needed} (got {'nothing' if given is None else _shown(given)}){hint}"
    message = problem["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(given, dict | list | BaseModel) else f" (got {_shown(given)})"
    return f"{where}: {message[:1].lower()}{message[1:]}{shown}"


def _shown(value: Any, most: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


# Plainer words for some of pydantic's validation errors.
_NEEDED = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "keys with values are needed"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list is needed"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number is needed"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number is needed"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false is needed"),
}


def _keys_of(path: list[str]) -> list[str]:
    """The keys allowed in the section at `path`."""
    section: Any = Experiment
    for part in path:
        section = section.model_fields[part].annotation
    return list(section.model_fields)
