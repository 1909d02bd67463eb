"""The pipeline of a translation in MONAI's transforms alone, for places that do not have this package.

The config holds the network as an exported program and everything around it as MONAI transforms and short expressions,
which follow `transforms.body`, `transforms.pipeline`, `transforms.geometry` and `inference.planes` step by step. From
MR to CT, 99.9 % of the voxels of phantom heads are within 1 HU of `convert` (`tests/test_export_self_contained.py`),
but it is not exact. The mask of the body decides about single voxels by comparisons, and where two libraries round
differently they decide otherwise: where a plane of the working grid lies halfway between two of the source (an even
number of voxels becomes an odd one), and where a multiple of the voxel size is just the radius of a morphological
filter (voxels of 4 mm). There, voxels at the skin differ by hundreds of HU. Tiles of 3D patches are blended with
slightly other weights.

Expressions are Python in strings. Those here are functions of one tensor, (C, X, Y, Z), and refer to each other by
their names in the config.
"""

from __future__ import annotations

from typing import Any

from medcyclegan.errors import InputError
from medcyclegan.export.model import Model, require_feature
from medcyclegan.export.program import Program
from medcyclegan.inference.planes import ACROSS, MARGIN

Config = dict[str, Any]
_NEEDED = (
    "monai.transforms.DistanceTransformEDT",
    "monai.transforms.FillHoles",
    "monai.transforms.KeepLargestConnectedComponent",
    "monai.transforms.ResampleToMatchd",
    "monai.inferers.SliceInferer",
    "torch.export.passes.move_to_device_pass",
)


def self_contained_inference(model: Model, program: Program) -> Config:
    """`configs/inference.json` of a self-contained bundle.

    Raises:
        InputError: for stacks of slices, which MONAI's inferers do not make, or where MONAI lacks something.
    """
    for path in _NEEDED:
        require_feature(path, "a self-contained bundle")
    translator = model.translator
    if translator.neighbors:
        raise InputError(
            f"{model.name} sees stacks of {model.channels} neighboring slices (2.5D), which no inferer of MONAI makes.",
            "Leave out --self-contained.",
        )
    modality = translator.preparation.modality
    lambdad = "monai.transforms.Lambdad"
    return {
        "imports": [
            "$import glob",
            "$import os",
            "$import nibabel",
            "$import numpy",
            "$import skimage.filters as filters",
            "$import torch",
            "$import monai",
        ],
        "bundle_root": ".",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "dataset_dir": "/path/to/volumes",
        "output_dir": "$@bundle_root + '/eval'",
        "program": "$torch.export.load(@bundle_root + '/models/model.pt2')",
        "moved": "$@program if @device.type == 'cpu' "
        "else torch.export.passes.move_to_device_pass(@program, str(@device))",
        # A program is in evaluation mode for good, and its module forbids to ask for it, which MONAI's engines do.
        "network_def": "$(lambda m: [m.__dict__.pop(name, None) for name in ('train', 'eval')] and m)(@moved.module())",
        "network": "$@network_def",
        **_spaces(model),
        **(_ct_body() if modality == "CT" else _mr_body()),
        **_body(),
        **_intensities(model),
        **_frame(model, program),
        **_written(model),
        "preprocessing": {
            "_target_": "monai.transforms.Compose",
            "transforms": [
                {"_target_": "monai.transforms.LoadImaged", "keys": "image", "ensure_channel_first": True},
                {"_target_": "monai.transforms.CopyItemsd", "keys": "image", "names": "source"},
                {"_target_": "monai.transforms.Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
                {"_target_": "monai.transforms.CopyItemsd", "keys": "image", "names": "body"},
                {"_target_": lambdad, "keys": "body", "func": "@body", "track_meta": True},
                {"_target_": "monai.transforms.ConcatItemsd", "keys": ["image", "body"], "name": "both"},
                {"_target_": lambdad, "keys": "both", "func": "@scaled"},
                {
                    "_target_": "monai.transforms.SplitDimd",
                    "keys": "both",
                    "dim": 0,
                    "output_postfixes": ["image", "body"],
                },
                {"_target_": lambdad, "keys": "both_image", "func": "@to_working_grid"},
                {"_target_": lambdad, "keys": "both_body", "func": "@body_to_working_grid"},
                {"_target_": "monai.transforms.ConcatItemsd", "keys": ["both_image", "both_body"], "name": "seen"},
                {"_target_": lambdad, "keys": "seen", "func": "@framed"},
                {"_target_": "monai.transforms.DeleteItemsd", "keys": ["image", "body", "both_image", "both_body"]},
                {
                    "_target_": "monai.transforms.SplitDimd",
                    "keys": "seen",
                    "dim": 0,
                    "output_postfixes": ["image", "inside"],
                },
                {
                    "_target_": "monai.transforms.CopyItemsd",
                    "keys": ["seen_image", "seen_inside"],
                    "names": ["image", "inside"],
                },
                {"_target_": "monai.transforms.SelectItemsd", "keys": ["image", "inside", "source"]},
                # Without its history, which `collate` cannot join with that of volumes of other orientations.
                {"_target_": lambdad, "keys": ["image", "inside", "source"], "func": "@forget"},
            ],
        },
        "dataset": {
            "_target_": "monai.data.Dataset",
            "data": "$[{'image': path} for path in sorted(glob.glob(@dataset_dir + '/*.nii') "
            "+ glob.glob(@dataset_dir + '/*.nii.gz'))]",
            "transform": "@preprocessing",
        },
        "dataloader": {
            "_target_": "monai.data.DataLoader",
            "dataset": "@dataset",
            "batch_size": 1,
            "shuffle": False,
            "num_workers": 0,
        },
        "inferer": _inferer(model, program),
        "postprocessing": {
            "_target_": "monai.transforms.Compose",
            "transforms": [
                # As a share of the window, so that 0, to which MONAI masks, is its lower end: air.
                {"_target_": lambdad, "keys": "pred", "func": "@share"},
                {"_target_": "monai.transforms.MaskIntensityd", "keys": "pred", "mask_key": "inside"},
                {
                    "_target_": "monai.transforms.ResampleToMatchd",
                    "keys": "pred",
                    "key_dst": "source",
                    "mode": "bilinear",
                    "padding_mode": "border",
                    "dtype": "$torch.float64",
                },
                {"_target_": lambdad, "keys": "pred", "func": "@in_unit"},
                {"_target_": lambdad, "keys": "pred", "func": "@written"},
            ],
        },
        "evaluator": {
            "_target_": "monai.engines.SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "run": ["$@evaluator.run()"],
    }


def _spaces(model: Model) -> Config:
    """Grids and resampling, as in `transforms.geometry`."""
    spacing = list(model.translator.preparation.spacing)
    sampled = "monai.transforms.SpatialResample(mode='{mode}', padding_mode='border', dtype=torch.float64)"
    return {
        "spacing": spacing,
        # As SciPy's filter ends at the border: its values go on beyond it.
        "reach": "$lambda sigmas: [int(4 * s + 0.5) for s in sigmas]",
        "spread": "$lambda x, sigmas: torch.as_tensor(monai.transforms.GaussianSmooth(sigma=[max(s, 1e-3) for s in "
        "sigmas], approx='sampled')(x))",
        # MONAI's sampled kernel does not sum up to 1.
        "blurred": "$lambda x, sigmas: (lambda r, v: monai.data.MetaTensor((@spread(v, sigmas) / @spread("
        "torch.ones(1, *[2 * a + 3 for a in r]), sigmas)[:, r[0] + 1, r[1] + 1, r[2] + 1])"
        "[:, r[0] : r[0] + x.shape[1], r[1] : r[1] + x.shape[2], r[2] : r[2] + x.shape[3]], meta=x.meta))"
        "(@reach(sigmas), torch.nn.functional.pad(x.as_tensor(), "
        "[n for a in reversed(@reach(sigmas)) for n in (a, a)], mode='replicate'))",
        "forget": "$lambda x: monai.data.MetaTensor(x.as_tensor(), meta=x.meta)",
        # Voxel size of a volume along its axes, mm.
        "steps": "$lambda x: numpy.linalg.norm(x.affine.numpy()[:3, :3], axis=0)",
        # The working spacing, or that of the volume where they are the same to within 0.001 voxel over the axis.
        "wanted": "$lambda x: numpy.where(numpy.abs(@steps(x) / numpy.array(@spacing) - 1) "
        "* numpy.array(x.shape[1:]) < 1e-3, @steps(x), numpy.array(@spacing))",
        "voxels": "$lambda x: numpy.maximum(numpy.ceil(numpy.array(x.shape[1:]) * @steps(x) / @wanted(x) - 1e-3), 1)",
        # Both fields of view share their center, (n - 1) / 2.
        "working_affine": "$lambda x: (lambda a, r: numpy.block([[a[:3, :3] * r, (a[:3, 3] + a[:3, :3].dot("
        "(numpy.array(x.shape[1:]) - 1) / 2) - (a[:3, :3] * r).dot((@voxels(x) - 1) / 2))[:, None]], "
        "[numpy.array([[0.0, 0.0, 0.0, 1.0]])]]))(x.affine.numpy(), @wanted(x) / @steps(x))",
        # Against aliasing, where the working grid is coarser by more than 1 %.
        "sigmas": "$lambda x: [float(((r * r - 1) / (8 * numpy.log(2))) ** 0.5) if r > 1.01 else 0.0 "
        "for r in @wanted(x) / @steps(x)]",
        "smoothed": "$lambda x: @blurred(x, @sigmas(x)) if any(@sigmas(x)) else x",
        "to_working_grid": f"$lambda x: {sampled.format(mode='bilinear')}(@smoothed(x), "
        "dst_affine=torch.as_tensor(@working_affine(x)), spatial_size=[int(n) for n in @voxels(x)]).float()",
        "body_to_working_grid": f"$lambda x: {sampled.format(mode='nearest')}(x, "
        "dst_affine=torch.as_tensor(@working_affine(x)), spatial_size=[int(n) for n in @voxels(x)]).float()",
    }


def _body() -> Config:
    """The mask of the body, as in `transforms.body`: on a copy of about 2.5 mm, and brought back."""
    return {
        "factors": "$lambda x: [max(1, min(int(2.5 / s), n // 2)) for s, n in zip(@steps(x), x.shape[1:])]",
        "coarse": "$lambda x, v: torch.nn.functional.avg_pool3d(v[None], @factors(x), ceil_mode=True, "
        "count_include_pad=False)[0]",
        "distance": "$lambda m, s: torch.as_tensor(monai.transforms.DistanceTransformEDT(sampling=list(s))"
        "(torch.as_tensor(m).float())).float()",
        "eroded": "$lambda m, s, r: @distance(m, s) > r if not m.all() else m",
        "dilated": "$lambda m, s, r: @distance(~m, s) <= r if m.any() else m",
        "opened": "$lambda m, s, r: @dilated(@eroded(m, s, r), s, r)",
        "margins": "$lambda s, r: [int(numpy.ceil(r / step)) + 1 for step in reversed(list(s)) for _ in (0, 1)]",
        "closed": "$lambda m, s, r: (lambda p: torch.nn.functional.pad(@eroded(@dilated(torch.nn.functional.pad(m, p), "
        "s, r), s, r), [-n for n in p]))(@margins(s, r))",
        "largest": "$lambda m: torch.as_tensor(monai.transforms.KeepLargestConnectedComponent(connectivity=1)"
        "(m.float())) > 0",
        "without_holes": "$lambda m: torch.as_tensor(monai.transforms.FillHoles(applied_labels=[1], connectivity=1)"
        "(m.float())) > 0",
        "without_holes_in_slices": "$lambda m, axis: torch.stack([@without_holes(part) for part in m.unbind(axis)], "
        "axis)",
        "filled": "$lambda m: @without_holes_in_slices(@without_holes_in_slices(@without_holes_in_slices("
        "@without_holes(m), 1), 2), 3)",
        "fine": "$lambda x, o: torch.nn.functional.interpolate(o[None], scale_factor=[float(f) for f in @factors(x)], "
        "mode='trilinear')[0][:, : x.shape[1], : x.shape[2], : x.shape[3]]",
        "occupancy": "$lambda m, s: @blurred(monai.data.MetaTensor(m.float()), [2.0 / step for step in s]).as_tensor()",
        "body_of": "$lambda x, v, s: @largest(@fine(x, @occupancy(@coarse_body(@coarse(x, v), s), s)) > 0.5).float()",
        "body": "$lambda x: monai.data.MetaTensor(@body_of(x, @clipped(x.as_tensor().float()), "
        "@steps(x) * numpy.array(@factors(x))), affine=x.affine)",
    }


def _ct_body() -> Config:
    return {
        "clipped": "$lambda v: v.clamp(-1024, 200)",
        "coarse_body": "$lambda v, s: (lambda t: (lambda core: @filled(@largest((@dilated(core, s, 8.0) & t) | core)))"
        "(@largest(@opened(t, s, 4.0))))(v > -300)",
    }


def _mr_body() -> Config:
    """The threshold between background and tissue is found again below itself while its two parts are unlike."""
    return {
        "clipped": "$lambda v: v",
        "between": "$lambda f, b, floor, t: t if b.size == 0 or b.max() <= b.min() else (lambda c: "
        "t if b[b > c].mean() < 2 * b[b <= c].mean() else (max(c, floor) if c <= floor "
        "else f(f, b[b <= c], floor, max(c, floor))))(float(filters.threshold_li(b)))",
        "threshold": "$lambda v: @between(@between, v.numpy().ravel(), 0.1 * float(v.max()), numpy.inf)",
        "median": "$lambda v, s: torch.as_tensor(monai.transforms.MedianSmooth("
        "radius=[1 if step < 4 else 0 for step in s])(v))",
        "calmed": "$lambda v, s: (lambda p: @median(v.clamp(float(p[0]), float(p[1])) - float(p[0]), s))"
        "(numpy.percentile(v.numpy(), (0.1, 99.0)))",
        "coarse_body": "$lambda v, s: (lambda c: @filled(@largest(@opened(@filled(@closed(@filled(c > @threshold(c)), "
        "s, 6.0)), s, 4.0))))(@calmed(v, s))",
    }


def _intensities(model: Model) -> Config:
    """To [-1, 1] and back, as in `transforms.intensity`; of a source in two channels, image and body."""
    prepared, scaler = model.translator.preparation, model.translator.scaler
    ct = prepared.modality == "CT"
    if ct:
        low, high = prepared.ct_window
        limits = f"$lambda x: ({low!r}, {high!r})"
        unit = "@unit(x)"
    else:
        lower, upper = prepared.mr_percentiles
        limits = f"$lambda x: tuple(numpy.percentile(x[0].numpy()[x[1].numpy() > 0], ({lower!r}, {upper!r})))"
        unit = "-@unit(x)" if prepared.mr_inverted else "@unit(x)"
        if prepared.mr_floor > -1:
            unit = f"(({unit}) + 1) * {(1 - prepared.mr_floor) / 2!r} + {prepared.mr_floor!r}"
    share = f"((y - {scaler.floor!r}) / {1 - scaler.floor!r}).clamp(0, 1)"
    if scaler.inverted:
        share = f"1 - {share}"
    in_unit = f"y * {scaler.high - scaler.low!r} + {scaler.low!r}"
    if model.translator.modality == "CT":
        in_unit = f"torch.round({in_unit})"
    return {
        "limits": limits,
        "unit": "$lambda x: (lambda low, high: 2 * (x[:1].clamp(float(low), float(high)) - float(low)) "
        "/ (float(high) - float(low)) - 1)(*@limits(x.as_tensor()))",
        # The air around CT is air already, and its blurred edge belongs to it.
        "scaled": f"$lambda x: torch.cat([{unit if ct else f'torch.where(x[1:] > 0, {unit}, -1.0)'}, x[1:]])",
        "share": f"$lambda y: {share}",
        "in_unit": f"$lambda y: {in_unit}",
    }


def _frame(model: Model, program: Program) -> Config:
    """What the network is shown, as in `inference.planes`."""
    translator = model.translator
    sizes = list(translator.window)
    if program.size is None:
        sizes = [max(size, program.smallest) for size in sizes]
    if translator.spatial_dims == 2:
        sizes.insert(ACROSS[translator.plane], -1)
    span = (
        f"(lambda o: slice(max(0, int(o[0]) - {MARGIN}), min(x.shape[a + 1], int(o[-1]) + 1 + {MARGIN})))"
        "(torch.nonzero((x[1].as_tensor() > 0).any(dim=tuple(b for b in range(3) if b != a))).flatten())"
    )
    return {
        "window": sizes,
        "spans": f"$lambda x: [slice(0, n) if not 0 < @window[a] < n else {span} for a, n in enumerate(x.shape[1:])]",
        "cut": "$lambda x: monai.transforms.SpatialCrop(roi_slices=@spans(x))(x)",
        "padded": "$lambda x: monai.transforms.SpatialPad(spatial_size=@window, method='symmetric', value=-1.0)(x)",
        # Outside the body is background once more, since interpolation blurs its edge.
        "framed": "$lambda x: @padded(@cut(torch.cat([torch.where(x[1:] > 0, x[:1], -1.0), x[1:]])))",
    }


def _written(model: Model) -> Config:
    """Into a file by nibabel: MONAI's writers refuse some orientations, see `steps.WriteVolumed`."""
    kind = "int16" if model.translator.modality == "CT" else "float32"
    return {
        "description": model.translator.description,
        "file": "$lambda x: os.path.join(@output_dir, os.path.basename(x.meta['filename_or_obj']).split('.nii')[0] "
        f"+ '_s{model.translator.modality.lower()}.nii.gz')",
        "written": "$lambda x: (lambda image: [image.header.__setitem__('descrip', @description[:79]), "
        "os.makedirs(@output_dir, exist_ok=True), nibabel.save(image, @file(x))] and x)"
        f"(nibabel.Nifti1Image(x.cpu().numpy()[0].astype('{kind}'), x.affine.numpy()))",
    }


def _inferer(model: Model, program: Program) -> Config:
    translator = model.translator
    tiles: Config = {"overlap": 0.5, "mode": "gaussian", "padding_mode": "constant", "cval": -1.0}
    if translator.spatial_dims == 3:
        return {
            "_target_": "monai.inferers.SlidingWindowInferer",
            "roi_size": list(translator.window),
            "sw_batch_size": 1,
            **tiles,
        }
    return {
        "_target_": "monai.inferers.SliceInferer",
        "spatial_dim": ACROSS[translator.plane],
        # Whole slices, except for networks that take one size only.
        "roi_size": [-1, -1] if program.size is None else list(program.size),
        "sw_batch_size": 4,
        **tiles,
    }
