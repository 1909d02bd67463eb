"""Intensities: the ends of the window are exact, inside it nothing is lost, outside it is clipped."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from medcyclegan.errors import InputError
from medcyclegan.transforms.intensity import CT_WINDOW, ScaleCTd, ScaleMRd, Scaler, fitted_scaler, mr_scaler

WINDOWS = [CT_WINDOW, (0.1, 0.7), (-3.3333, 1234.567), (1e-7, 2e-7), (17.0, 1e6)]


class TestScaler:
    @pytest.mark.parametrize("window", WINDOWS)
    @pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
    def test_ends_are_exact(self, window: tuple[float, float], kind: object) -> None:
        scaler = Scaler(*window)
        ends = np.array(window, dtype=np.float32)
        assert np.asarray(scaler.apply(kind(ends.copy()))).tolist() == [-1.0, 1.0]  # type: ignore[operator]
        back = np.asarray(scaler.undo(kind(np.array([-1.0, 1.0], np.float32))))  # type: ignore[operator]
        assert back.dtype == np.float32
        assert back.tolist() == ends.tolist()

    @pytest.mark.parametrize("window", WINDOWS)
    def test_undo_restores_what_lies_inside(self, window: tuple[float, float]) -> None:
        scaler = Scaler(*window)
        values = np.linspace(*window, 10001).astype(np.float32)
        for back in (scaler.undo(scaler.apply(values)), scaler.undo(scaler.apply(torch.from_numpy(values))).numpy()):
            assert np.abs(back - values).max() <= 2e-7 * max(abs(window[0]), abs(window[1]), window[1] - window[0])

    def test_every_hounsfield_unit_survives(self) -> None:
        values = np.arange(-1024, 3072, dtype=np.int16)
        np.testing.assert_array_equal(np.rint(Scaler(*CT_WINDOW).undo(Scaler(*CT_WINDOW).apply(values))), values)

    def test_numbers(self) -> None:
        scaler = Scaler(0.0, 200.0)
        np.testing.assert_array_equal(scaler.apply(np.array([50.0, 100.0, 150.0])), np.float32([-0.5, 0.0, 0.5]))
        np.testing.assert_array_equal(scaler.undo(np.array([-0.5, 0.0, 0.5])), np.float32([50.0, 100.0, 150.0]))

    def test_what_lies_outside_is_clipped_both_ways(self) -> None:
        scaler = Scaler(*CT_WINDOW)
        assert scaler.apply(np.array([-3024.0, 30000.0])).tolist() == [-1.0, 1.0]
        assert scaler.apply(torch.tensor([-3024.0, 30000.0])).tolist() == [-1.0, 1.0]
        assert scaler.undo(np.array([-1.5, 1.5])).tolist() == list(CT_WINDOW)
        assert scaler.undo(torch.tensor([-1.5, 1.5])).tolist() == list(CT_WINDOW)

    def test_the_input_is_left_alone(self) -> None:
        for values in (np.full(5, 7.0, np.float32), torch.full((5,), 7.0)):
            Scaler(0, 10).apply(values)
            Scaler(0, 10).undo(values)
            assert set(values.tolist()) == {7.0}

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int16])
    def test_arithmetic_is_float32_for_every_type(self, dtype: torch.dtype) -> None:
        values = torch.tensor([0, 1], dtype=dtype)
        assert Scaler(*CT_WINDOW).undo(values).dtype == torch.float32
        assert Scaler(*CT_WINDOW).undo(values).tolist() == [1023.5, 3071.0]

    @pytest.mark.parametrize(
        "window", [(1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf")), (1.0, 1.0 + 1e-12)]
    )
    def test_windows_without_a_width(self, window: tuple[float, float]) -> None:
        with pytest.raises(InputError, match="the second above the first"):
            Scaler(*window)

    @pytest.mark.parametrize("window", WINDOWS)
    def test_plain_data_survive_exactly(self, window: tuple[float, float]) -> None:
        scaler = Scaler(*window)
        assert Scaler.from_dict(json.loads(json.dumps(scaler.to_dict()))) == scaler


class TestMrScaler:
    def test_percentiles_of_the_body_only(self) -> None:
        volume = np.full((10, 10, 20), 1e6, np.float32)
        body = np.zeros(volume.shape, bool)
        body.ravel()[:1001] = True
        volume.ravel()[:1001] = np.arange(1001)
        assert mr_scaler(volume, body) == Scaler(5.0, 995.0)
        assert mr_scaler(volume, body, (0.0, 100.0)) == Scaler(0.0, 1000.0)

    def test_refusals(self) -> None:
        volume = np.ones((4, 4, 4), np.float32)
        with pytest.raises(InputError, match="flat"):
            mr_scaler(volume, volume > 0)
        with pytest.raises(InputError, match="empty"):
            mr_scaler(volume, volume > 1)
        with pytest.raises(InputError, match="two rising numbers"):
            mr_scaler(volume, volume > 0, (99.0, 1.0))


class TestDictionaryTransforms:
    def test_ct_there_and_back(self) -> None:
        volume = MetaTensor(torch.from_numpy(np.linspace(-1024, 3071, 64).reshape(1, 4, 4, 4)))
        transform = Compose([ScaleCTd("image")])
        scaled = transform({"image": volume})
        assert (float(scaled["image"].min()), float(scaled["image"].max())) == (-1.0, 1.0)
        assert fitted_scaler(scaled["image"]) == Scaler(*CT_WINDOW)
        back = transform.inverse(scaled)["image"]
        np.testing.assert_allclose(back.numpy(), volume.numpy(), atol=1e-3)
        assert back.applied_operations == []

    def test_mr_there_and_back(self) -> None:
        generator = np.random.default_rng(0)
        volume = MetaTensor(torch.from_numpy(generator.gamma(2.0, 100.0, (1, 9, 9, 9)).astype(np.float32)))
        body = MetaTensor(torch.from_numpy(generator.random((1, 9, 9, 9)) > 0.4))
        transform = Compose([ScaleMRd("image", "body", (2.0, 98.0))])
        scaled = transform({"image": volume, "body": body})
        expected = np.percentile(volume.numpy()[body.numpy()], (2.0, 98.0))
        scaler = fitted_scaler(scaled["image"])
        np.testing.assert_allclose((scaler.low, scaler.high), expected, rtol=1e-6)
        back = transform.inverse(scaled)["image"].numpy()
        np.testing.assert_allclose(back, volume.numpy().clip(*expected), rtol=1e-5)

    def test_a_volume_that_was_not_scaled_has_no_scaler(self) -> None:
        with pytest.raises(ValueError, match="no intensity transform"):
            fitted_scaler(MetaTensor(torch.zeros(1, 2, 2, 2)))


class TestInverted:
    def test_ends_swap_and_everything_comes_back(self) -> None:
        scaler = Scaler(10.0, 250.0, inverted=True)
        values = np.linspace(10, 250, 1001).astype(np.float32)
        for kind in (np.asarray, torch.from_numpy):
            scaled = scaler.apply(kind(values.copy()))
            assert (float(scaled[0]), float(scaled[-1])) == (1.0, -1.0)
            np.testing.assert_allclose(np.asarray(scaler.undo(scaled)), values, rtol=1e-6)
        assert Scaler.from_dict(scaler.to_dict()) == scaler

    def test_transform_is_the_mirror_image_and_inverts(self) -> None:
        data = mr_data()
        plain = ScaleMRd("image", "body")(data)["image"]
        transform = ScaleMRd("image", "body", inverted=True)
        scaled = transform(data)
        np.testing.assert_array_equal(scaled["image"].numpy(), -plain.numpy())
        low, high = np.percentile(data["image"].numpy()[0][data["body"].numpy()[0] > 0], (0.5, 99.5))
        expected = data["image"].numpy().clip(low, high)
        np.testing.assert_allclose(transform.inverse(scaled)["image"].numpy(), expected, rtol=1e-4)


def mr_data() -> dict[str, MetaTensor]:
    """A random MR and a body that fills half of it."""
    values = torch.from_numpy(np.random.default_rng(1).uniform(5, 900, (1, 6, 6, 6)).astype(np.float32))
    body = torch.zeros(1, 6, 6, 6)
    body[:, :3] = 1
    return {"image": MetaTensor(values), "body": MetaTensor(body)}
