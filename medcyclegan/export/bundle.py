"""MONAI bundles: a folder with configs that MONAI's own commands verify, run, evaluate and train.

They name classes of this package, so that a bundle gives the same result as `medcyclegan convert` in float32.

A bundle contains `schema.json`, with the keys that MONAI's bundle specification calls mandatory, since MONAI's own
schema is a download. `verify_metadata` takes either.
"""

from __future__ import annotations

import importlib
import json
import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from medcyclegan import __version__
from medcyclegan.errors import InputError, raise_all
from medcyclegan.export.card import write_card
from medcyclegan.export.model import Model
from medcyclegan.export.onnx import INPUT, OUTPUT
from medcyclegan.export.program import Program, export_program, save_program
from medcyclegan.inference.planes import ACROSS
from medcyclegan.transforms.pipeline import Preparation
from medcyclegan.trust import hidden_code

# MONAI's own schema for metadata.json, which its model zoo names.
SCHEMA_URL = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
NEEDED = (
    "monai.bundle.verify_metadata",
    "monai.bundle.verify_net_in_out",
    "monai.bundle.ConfigWorkflow",
    "monai.engines.SupervisedEvaluator",
    "torch.export.export",
)
METRICS = ("mae", "psnr", "ssim", "ms_ssim", "me")
Config = dict[str, Any]


def write_bundle(model: Model, folder: Path) -> dict[str, Any]:
    """Write the bundle of one direction into an empty folder.

    Returns:
        {"without_program": why it has no exported program}, or nothing if it has one.

    Raises:
        InputError: MONAI lacks something, or MONAI would run a text that comes from the checkpoint.
    """
    for path in NEEDED:
        require_feature(path)
    program: Program | None = None
    without: str | None = None
    try:
        program = export_program(model.generator, channels=model.channels, window=model.translator.window.roi_size)
    except InputError as error:
        without = str(error)
    configs = {"metadata": metadata(model, program)}
    _refuse_expressions(model, configs["metadata"])
    configs |= {"inference": inference(model), "train": training(model), "multi_gpu_train": multi_gpu(model)}
    if model.translator.modality == "CT":
        configs["evaluate"] = evaluation(model)
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir()
    for name, content in configs.items():
        (folder / "configs" / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(Path(__file__).parent / "schema.json", folder / "configs" / "schema.json")
    text = yaml.safe_dump(model.experiment, sort_keys=False)
    (folder / "configs" / "experiment.yaml").write_text(text, encoding="utf-8")
    torch.save(model.generator.state_dict(), folder / "models" / "model.pt")
    if program is not None:
        save_program(program, folder / "models" / "model.pt2")
    write_card(folder, "docs/README.md", model, form="bundle", program=program, without=without)
    return {"without_program": without} if without else {}


def require_feature(path: str) -> None:
    """Refuse to write a bundle that the installed MONAI or torch cannot run.

    Raises:
        InputError: the installed version does not have the function or class of this dotted path.
    """
    module, _, name = path.rpartition(".")
    package = path.split(".")[0]
    try:
        getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"a bundle needs {path}, which the installed {package} {version(package)} does not have.",
            f"Install another version of {package}; constraints.txt names one that was tested.",
        ) from error


def _refuse_expressions(model: Model, described: Config) -> None:
    """Refuse what comes from the run or checkpoint and MONAI would evaluate once it stands in a bundle's config."""
    translator = model.translator
    taken = {
        "metadata": described,
        "scaler": translator.scaler.to_dict(),
        "preparation": asdict(model.preparation),
        "description": translator.description,
    }
    raise_all(hidden_code(taken, model.name), f"{model.folder} cannot become a bundle:")


def metadata(model: Model, program: Program | None) -> Config:
    """`configs/metadata.json`, with every key that the bundle specification calls mandatory."""
    translator = model.translator
    smallest = program.smallest if program is not None else 16
    shape: list[int | str] = [f"{smallest}*{'np'[axis % 2]}" for axis in range(translator.window.spatial_dims)]
    rule = program.shape_rule() if program is not None else "any size of at least 16 voxels along every axis"
    if program is not None and program.size is not None:
        rule = f"any size; models/model.pt2 takes {rule}"
    written = "[-1024, 3071] HU" if translator.modality == "CT" else "the typical units of the training volumes"
    return {
        "schema": SCHEMA_URL,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported by medcyclegan {__version__} from step {model.step}"},
        "monai_version": version("monai"),
        "pytorch_version": str(torch.__version__).split("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"medcyclegan": __version__},
        "optional_packages_version": {},
        "name": model.name,
        "task": f"Translation of {model.source} volumes to synthetic {model.target}",
        "description": f"A generator ({model.architecture}, {translator.window.spatial_dims}D) trained by medcyclegan "
        f"to translate {model.source} to {model.target} without paired data; {_training_words(model)}. The result lies "
        f"on the grid of its source, in {written}.",
        "authors": "Whoever trained the run; write your names here before you publish",
        "copyright": "See LICENSE",
        "data_source": "The volumes that the run was trained on; not part of the bundle and not named in it. Describe "
        "them here before you publish",
        "data_type": "volumes with an affine: NIfTI, MHA, NRRD, DICOM",
        "image_classes": f"{model.source}, one channel",
        "pred_classes": f"synthetic {model.target}, one channel",
        "eval_metrics": model.scores,
        "eval_metrics_of": model.scored,
        "intended_use": "Research. No medical device; not for diagnosis, treatment planning or any other clinical use",
        "references": [],
        "network_data_format": {
            "inputs": {INPUT: _tensor(model, model.preparation.modality, shape, "image")},
            "outputs": {OUTPUT: _tensor(model, translator.modality, shape, f"[-1, 1] is {_unit(model)}")},
        },
        "preparation": preparation(model, rule),
    }


def _tensor(model: Model, modality: str, shape: list[int | str], meaning: str) -> Config:
    neighbors = model.translator.window.neighbors
    slices = {str(n): f"slice {n - neighbors:+d}" if n != neighbors else "the slice" for n in range(model.channels)}
    return {
        "type": "image",
        "format": "hounsfield" if modality == "CT" else "magnitude",
        "modality": modality,
        "num_channels": model.channels,
        "spatial_shape": shape,
        "dtype": "float32",
        "value_range": [-1, 1],
        "is_patch_data": True,
        "channel_def": slices if model.channels > 1 else {"0": meaning},
    }


def preparation(model: Model, rule: str) -> Config:
    """Everything needed to use the network alone, as plain data."""
    translator, prepared = model.translator, model.preparation
    window = translator.window
    slicewise, n = window.spatial_dims == 2, window.neighbors
    axes = [name for number, name in enumerate("xyz") if number != ACROSS[window.plane]]
    return {
        "direction": f"{model.source} to {model.target}",
        "axes": "volumes are arrays (X, Y, Z) whose indices rise towards right, anterior, superior (RAS)",
        "spacing_mm": list(prepared.spacing),
        "input": {
            "modality": prepared.modality,
            "scaling": (
                {"low": prepared.ct_window[0], "high": prepared.ct_window[1], "unit": "HU"}
                if prepared.modality == "CT"
                else {
                    "percentiles_inside_body": list(prepared.mr_percentiles),
                    "inverted": prepared.mr_inverted,
                    "floor": prepared.mr_floor,
                }
            ),
            "formula": _formula(prepared),
            "outside_body": -1.0,
        },
        "output": {
            "modality": translator.modality,
            **translator.scaler.to_dict(),
            "unit": "HU" if translator.modality == "CT" else "typical units of the training volumes",
            "formula": "low + (y + 1) / 2 (high - low)"
            if not translator.scaler.inverted and translator.scaler.floor == -1
            else "u = (y - floor) 2 / (1 - floor) - 1; negate u if inverted; low + (u + 1) / 2 (high - low)",
            "outside_body": "low",
        },
        "network": {
            "spatial_dims": window.spatial_dims,
            "plane": window.plane if slicewise else None,
            "axes": "".join(axes) if slicewise else "xyz",
            "channels": model.channels,
            "channels_are": "one image"
            if model.channels == 1
            else f"neighboring slices {-n} to {n} along the plane's normal; every slice is the mean of the predictions "
            "that show it",
            "sizes": rule,
        },
        "window": list(window.roi_size),
        "padding": "shorter axes are padded with -1 on both sides up to the window; of axes that are longer, the "
        "bounding box of the body with a margin of 4 voxels is shown (2D), or windows that overlap by half (3D)",
    }


def inference(model: Model) -> Config:
    """`configs/inference.json`."""
    translator, whole_numbers = model.translator, model.translator.modality == "CT"
    restoring = {
        "_target_": "medcyclegan.export.steps.RestoreVolumed",
        "keys": "pred",
        "source_key": "image",
        "body_key": "body",
        "scaler": {"_target_": "medcyclegan.transforms.intensity.Scaler", **translator.scaler.to_dict()},
        "whole_numbers": whole_numbers,
    }
    saving = {
        "_target_": "medcyclegan.export.steps.WriteVolumed",
        "keys": "pred",
        "folder": "@output_dir",
        "postfix": f"_s{translator.modality.lower()}",
        "whole_numbers": whole_numbers,
        "description": translator.description,
    }
    return {
        **_beginning(),
        "dataset_dir": "/path/to/volumes",
        "output_dir": "$@bundle_root + '/eval'",
        "network_def": model.network(),
        "network": "$@network_def.to(@device)",
        "ckpt_path": "$@bundle_root + '/models/model.pt'",
        "preprocessing": {"_target_": "monai.transforms.Compose", "transforms": _preprocessing(model)},
        "dataset": {
            "_target_": "monai.data.Dataset",
            "data": "$steps.volumes(@dataset_dir)",
            "transform": "@preprocessing",
        },
        "dataloader": {
            "_target_": "monai.data.DataLoader",
            "dataset": "@dataset",
            "batch_size": 1,
            "shuffle": False,
            "num_workers": 0,
        },
        "inferer": {
            "_target_": "medcyclegan.inference.inferer.TranslatorInferer",
            "roi_size": list(translator.window.roi_size),
            "plane": translator.window.plane,
            "neighbors": translator.window.neighbors,
        },
        "postprocessing": {"_target_": "monai.transforms.Compose", "transforms": [restoring, saving]},
        "handlers": [
            {
                "_target_": "monai.handlers.CheckpointLoader",
                "load_path": "@ckpt_path",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            }
        ],
        "evaluator": {
            "_target_": "monai.engines.SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }


def evaluation(model: Model) -> Config:
    """`configs/evaluate.json`: `inference.json` with references, and the scores of `medcyclegan evaluate`."""
    content = inference(model)
    content["label_dir"] = "/path/to/references"
    content["preprocessing"]["transforms"].append({"_target_": "medcyclegan.export.steps.ReadVolumed", "keys": "label"})
    content["dataset"]["data"] = "$steps.pairs(@dataset_dir, @label_dir)"
    content["postprocessing"]["transforms"].append(
        {"_target_": "medcyclegan.transforms.body.BodyMaskd", "keys": "label", "body_key": "mask", "modality": "CT"}
    )

    def metric(name: str) -> Config:
        return {
            "_target_": "medcyclegan.evaluation.monai_metrics.MaskedMetricHandler",
            "metric": {"_target_": "medcyclegan.evaluation.monai_metrics.MaskedMetric", "name": name},
            "output_transform": "$lambda output: tuple(torch.stack([torch.as_tensor(item[key]) for item in output]) "
            "for key in ('pred', 'label', 'mask'))",
        }

    content["key_metric"] = {METRICS[0]: metric(METRICS[0])}
    content["additional_metrics"] = {name: metric(name) for name in METRICS[1:]}
    content["handlers"].append(
        {
            "_target_": "monai.handlers.MetricsSaver",
            "save_dir": "@output_dir",
            "metrics": "*",
            "metric_details": "*",
            "batch_transform": "$lambda batch: [item['image'].meta for item in batch]",
            "summary_ops": "*",
        }
    )
    content["evaluator"] |= {
        "key_val_metric": "@key_metric",
        "additional_metrics": "@additional_metrics",
        # An error is better the smaller it is.
        "metric_cmp_fn": "$lambda current, best: current < best",
    }
    return content


def training(model: Model) -> Config:
    """`configs/train.json`: the experiment of the run, on other volumes."""
    return {
        **_beginning(),
        "dataset_dir": "/path/to/folder/with/a/and/b",
        "output_dir": "$@bundle_root + '/run'",
        # In a file of its own: `_target_` in it names a part of this package and nothing that MONAI should build.
        "experiment": "$@bundle_root + '/configs/experiment.yaml'",
        "steps": None,
        "network_def": model.network(),
        "train": {
            "dataset": {
                "_target_": "monai.data.Dataset",
                "data": "$steps.training_volumes(@dataset_dir)",
            },
            "inferer": {"_target_": "monai.inferers.SimpleInferer"},
            "handlers": [],
            "trainer": {
                "_target_": "medcyclegan.export.steps.BundleTrainer",
                "experiment": "@experiment",
                "dataset_dir": "@dataset_dir",
                "run": "@output_dir",
                "device": "@device",
                "max_epochs": 1,
                "steps": "@steps",
                "allow": list(model.allow),
                "handlers": "@train#handlers",
            },
        },
        "run": ["$@train#trainer.run()"],
    }


def multi_gpu(model: Model) -> Config:
    """`configs/multi_gpu_train.json`: `train.json` for torchrun, one process per GPU."""
    content = training(model)
    content["imports"].append("$import os")
    content["device"] = "$torch.device('cuda:' + os.environ['LOCAL_RANK'] if torch.cuda.is_available() else 'cpu')"
    return content


def _beginning() -> Config:
    return {
        "imports": ["$import torch", "$import monai", "$import medcyclegan.export.steps as steps"],
        "bundle_root": ".",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    }


def _preprocessing(model: Model) -> list[Config]:
    """`transforms.pipeline.preparation_transform`, spelled out."""
    prepared = model.preparation
    package = "medcyclegan.transforms"
    outside = {"_target_": f"{package}.body.OutsideBodyd", "keys": "image", "body_key": "body", "value": -1.0}
    read = {"_target_": "medcyclegan.export.steps.ReadVolumed", "keys": "image"}
    body = {
        "_target_": f"{package}.body.BodyMaskd",
        "keys": "image",
        "body_key": "body",
        "modality": prepared.modality,
    }
    scale: list[Config]
    if prepared.modality == "CT":
        scale = [{"_target_": f"{package}.intensity.ScaleCTd", "keys": "image", "window": list(prepared.ct_window)}]
    else:
        scale = [
            {
                "_target_": f"{package}.intensity.ScaleMRd",
                "keys": "image",
                "body_key": "body",
                "percentiles": list(prepared.mr_percentiles),
                "inverted": prepared.mr_inverted,
                "floor": prepared.mr_floor,
            },
            outside,
        ]
    resample = {
        "_target_": f"{package}.geometry.ToWorkingGridd",
        "keys": ["image", "body"],
        "spacing": list(prepared.spacing),
        "fill": [-1.0, 0.0],
        "mode": ["linear", "nearest"],
    }
    return [read, body, *scale, resample, outside]


def _training_words(model: Model) -> str:
    if model.imported:
        return "its weights were imported, and nothing is known of their training"
    if model.finished:
        return f"{model.steps} steps"
    return f"UNFINISHED, {model.step} of {model.steps} steps"


def _unit(model: Model) -> str:
    scaler = model.translator.scaler
    low, high = (scaler.high, scaler.low) if scaler.inverted else (scaler.low, scaler.high)
    return f"{low:g} to {high:g} {'HU' if model.translator.modality == 'CT' else ''}".strip()


def _formula(prepared: Preparation) -> str:
    formula = "u = 2 (clip(v, low, high) - low) / (high - low) - 1"
    if prepared.modality == "CT":
        return formula
    if prepared.mr_inverted:
        formula += "; u = -u"
    formula += "; x = (u + 1) (1 - floor) / 2 + floor"
    return f"{formula}; low and high are the percentiles of the volume inside its body"
