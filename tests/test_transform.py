"""Translation inside other people's MONAI pipelines: as a transform and as an inferer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.inferers import Inferer
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, LoadImage, LoadImaged, Orientationd
from torch import nn

from medcyclegan import load_translator, phantom
from medcyclegan.inference.inferer import TranslatorInferer
from medcyclegan.inference.transform import Translated, TranslateImage, TranslateImaged
from medcyclegan.inference.translator import Translator
from medcyclegan.io.reader import read_volume


@pytest.fixture(scope="module")
def translator(run: Path) -> Translator:
    return load_translator(run, device="cpu")


def test_in_a_compose_after_load_image(translator: Translator, cohort: phantom.Cohort) -> None:
    expected = translator(cohort.test_mr[0])
    pipeline = Compose(
        [
            LoadImaged("mr"),
            EnsureChannelFirstd("mr"),
            TranslateImaged("mr", translator, output_keys="sct"),
        ]
    )
    result = pipeline({"mr": str(cohort.test_mr[0]), "id": 7})
    assert result["id"] == 7 and result["sct"].shape == (1, *expected.array.shape)
    np.testing.assert_array_equal(result["sct"].numpy()[0], expected.array)
    np.testing.assert_allclose(result["sct"].affine, expected.affine, atol=1e-6)
    np.testing.assert_array_equal(result["mr"].numpy(), read_volume(cohort.test_mr[0]).numpy())  # the source is kept
    replaced = Compose([LoadImaged("mr", ensure_channel_first=True), Translated("mr", translator)])
    np.testing.assert_array_equal(replaced({"mr": str(cohort.test_mr[0])})["mr"].numpy()[0], expected.array)


def test_what_was_done_before_can_be_undone(translator: Translator, cohort: phantom.Cohort) -> None:
    steps = [LoadImaged("mr", ensure_channel_first=True), Orientationd("mr", axcodes="PIL", labels=None)]
    source = steps[0]({"mr": str(cohort.test_mr[0])})["mr"]
    for output in ("mr", "sct"):
        pipeline = Compose([*steps, TranslateImaged("mr", translator, output_keys=output)])
        data = pipeline({"mr": str(cohort.test_mr[0])})
        turned = Invertd(output, pipeline, orig_keys="mr", nearest_interp=False)(data)[output]
        assert turned.shape == source.shape
        np.testing.assert_allclose(turned.affine, source.affine, atol=1e-6)
        if output == "mr":
            back = pipeline.inverse(data)["mr"]
            assert torch.equal(back.as_tensor(), turned.as_tensor())
            np.testing.assert_allclose(back.affine, source.affine, atol=1e-6)


def test_array_transform_and_its_arguments(translator: Translator, cohort: phantom.Cohort) -> None:
    image = LoadImage(ensure_channel_first=True)(str(cohort.test_mr[0]))
    result = TranslateImage(translator)(image)
    assert result.shape == image.shape and result.meta["filename_or_obj"] == image.meta["filename_or_obj"]
    with pytest.raises(ValueError, match="2 keys and 1 output"):
        TranslateImaged(["a", "b"], translator, output_keys="c")
    with pytest.raises(KeyError):
        TranslateImaged("mr", translator)({})
    assert TranslateImaged("mr", translator, allow_missing_keys=True)({}) == {}


def test_inferer_gives_what_the_translator_gives(translator: Translator, cohort: phantom.Cohort) -> None:
    source = translator.read(cohort.test_mr[0])
    translator.window = replace(translator.window, bf16=False)
    expected = translator.predict(source).values
    inferer = TranslatorInferer(translator.window.roi_size)
    assert isinstance(inferer, Inferer)
    batch = torch.from_numpy(np.stack([source.case.image] * 2))
    result = inferer(batch, translator.generator)
    assert result.shape == batch.shape
    body = source.case.body
    # The inferer takes what is not background for the body, the translator has a mask.
    assert np.abs(result[1, 0].numpy() - expected)[body].mean() < 0.01


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_inferer_with_the_identity(spatial_dims: int) -> None:
    image = torch.rand(1, 1, 20, 24, 18) * 1.8 - 0.9
    inferer = TranslatorInferer(
        (16,) * spatial_dims,
        planes=("axial", "coronal") if spatial_dims == 2 else (),
        flips=True,
    )
    assert torch.allclose(inferer(image, nn.Identity()), image, atol=1e-6)
    assert torch.allclose(inferer(image, lambda x: -x), -image, atol=1e-6)
    with pytest.raises(ValueError, match="B, 1, X, Y, Z"):
        inferer(image[0], nn.Identity())


def test_a_mask_of_the_body_goes_along(translator: Translator, cohort: phantom.Cohort) -> None:
    files = {"mr": str(cohort.test_mr[0]), "mask": str(cohort.test_mask[0])}
    data = LoadImaged(("mr", "mask"), ensure_channel_first=True)(files)
    inside = data["mask"].numpy()[0] > 0
    inside[:, :, :8] = False
    data["mask"][0][~torch.from_numpy(inside)] = 0
    result = TranslateImaged("mr", translator, output_keys="sct", mask_key="mask")(data)
    expected = translator(cohort.test_mr[0], body=inside).array
    np.testing.assert_array_equal(result["sct"].numpy()[0], expected)
    assert (expected[:, :, :7] == -1024).all()
    for wrong in (data["mask"][:, 1:], data["mask"] * 0):
        with pytest.raises(ValueError, match="the mask"):
            TranslateImaged("mr", translator, mask_key="mask")({**data, "mask": wrong})
    moved = data["mask"].clone()
    moved.affine[0, 3] += 1
    with pytest.raises(ValueError, match="does not lie on the grid"):
        TranslateImaged("mr", translator, mask_key="mask")({**data, "mask": moved})
