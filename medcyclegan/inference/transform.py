"""Translation as MONAI transforms, for anybody's `Compose`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol

from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import ensure_tuple


class _Translated(Protocol):
    def to_metatensor(self) -> MetaTensor: ...


class TranslateImage(Transform):
    """Translates a MetaTensor: in goes a source volume as read, out comes the result on the same grid.

    Args:
        translator: what `medcyclegan.load_translator` gives.

    Examples:
        >>> mr = LoadImage(ensure_channel_first=True)("mr.nii.gz")  # doctest: +SKIP
        >>> sct = TranslateImage(load_translator("runs/brain"))(mr)  # doctest: +SKIP
    """

    def __init__(self, translator: Callable[[Any], _Translated]) -> None:
        self.translator = translator

    def __call__(self, data: MetaTensor) -> MetaTensor:
        """(1, X, Y, Z) or (X, Y, Z) with its affine -> (1, X, Y, Z) with the same affine and metadata; CT in HU."""
        result = self.translator(data).to_metatensor()
        result.meta = {**data.meta, **result.meta}
        return result


class TranslateImaged(MapTransform):
    """Translates the volumes at `keys`; the dictionary form of `TranslateImage`.

    Args:
        keys: keys of MetaTensors with their affine.
        translator: what `medcyclegan.load_translator` gives.
        output_keys: where the results go, one per key; None replaces the sources.
        allow_missing_keys: leave out keys that are missing.

    Examples:
        >>> Compose([
        ...     LoadImaged("mr", ensure_channel_first=True),
        ...     TranslateImaged("mr", load_translator("runs/brain"), output_keys="sct"),
        ... ])  # doctest: +SKIP
    """

    def __init__(
        self,
        keys: KeysCollection,
        translator: Callable[[Any], _Translated],
        output_keys: KeysCollection | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_keys: tuple[Hashable, ...] = self.keys if output_keys is None else ensure_tuple(output_keys)
        if len(self.output_keys) != len(self.keys):
            raise ValueError(f"{len(self.keys)} keys and {len(self.output_keys)} output keys")
        self.translate = TranslateImage(translator)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key, output in self.key_iterator(result, self.output_keys):
            result[output] = self.translate(result[key])
        return result


Translated = TranslateImaged
