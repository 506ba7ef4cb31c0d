"""OME-NGFF image metadata: written as 0.5, read as 0.4 and 0.5.

Only the small JSON is handled here, no arrays. A dataset's place in the world is a scale and a
translation per axis; the transformations of the image as a whole are applied after those of a
dataset, so `scale = s_image * s` and `translation = s_image * t + t_image`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from volpatch.core.axes import ROLES
from volpatch.core.errors import SourceError

VERSION = "0.5"
_COLORS = ("FFFFFF", "00FF00", "FF00FF", "00FFFF", "FFFF00", "FF0000", "0000FF")

# Every spelling met in real files, lower-cased, with the micro and mu signs made "u".
_UNITS = {
    "angstrom": ("angstrom", "angstroms", "å", "a"),
    "picometer": ("picometer", "picometre", "pm"),
    "nanometer": ("nanometer", "nanometre", "nanometers", "nanometres", "nm"),
    "micrometer": (
        *("micrometer", "micrometre", "micrometers", "micrometres"),
        *("micron", "microns", "um"),
    ),
    "millimeter": ("millimeter", "millimetre", "millimeters", "millimetres", "mm"),
    "centimeter": ("centimeter", "centimetre", "centimeters", "centimetres", "cm"),
    "meter": ("meter", "metre", "meters", "metres", "m"),
    "inch": ("inch", "inches", "in", '"'),
    "second": ("second", "seconds", "sec", "s"),
    "millisecond": ("millisecond", "milliseconds", "msec", "ms"),
    "minute": ("minute", "minutes", "min"),
    "hour": ("hour", "hours", "h"),
}
METERS = {
    "angstrom": 1e-10,
    "picometer": 1e-12,
    "nanometer": 1e-9,
    "micrometer": 1e-6,
    "millimeter": 1e-3,
    "centimeter": 1e-2,
    "meter": 1.0,
    "inch": 0.0254,
}
_UNIT_NAMES = {spelling: name for name, spellings in _UNITS.items() for spelling in spellings}
_NO_UNIT = {"", "pixel", "pixels", "px", "voxel", "voxels", "none", "null", "unknown"}
_NO_UNIT |= {"reference frame", "arbitrary", "arbitrary unit"}


def multiscales(
    *,
    name: str,
    dims: Sequence[str],
    units: Sequence[str | None],
    datasets: Sequence[tuple[str, Sequence[float], Sequence[float]]],
) -> dict[str, Any]:
    """The value of `attrs["ome"]` of an OME-Zarr 0.5 image.

    Parameters
    ----------
    name : str
        Name of the image.
    dims, units : sequence
        Axis names (t, c, z, y, x, in that order) and their units; None where unknown.
    datasets : sequence of (path, scale, translation)
        The levels, finest first; scale and translation have one number per axis.

    Returns
    -------
    dict
        JSON-able; the arrays' `dimension_names` must be `dims`.

    Examples
    --------
    >>> made = multiscales(name="a", dims=("y", "x"), units=(None, None),
    ...                    datasets=[("0", (2, 1), (0, 0))])
    >>> made["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]
    {'type': 'scale', 'scale': [2.0, 1.0]}
    """
    axes = [_axis(dim, unit) for dim, unit in zip(dims, units, strict=True)]
    levels = [
        {
            "path": path,
            "coordinateTransformations": [
                {"type": "scale", "scale": _numbers(scale, len(axes))},
                {"type": "translation", "translation": _numbers(translation, len(axes))},
            ],
        }
        for path, scale, translation in datasets
    ]
    return {"version": VERSION, "multiscales": [{"name": name, "axes": axes, "datasets": levels}]}


def omero(channels: Sequence[str], dtype: np.dtype[Any]) -> dict[str, Any]:
    """The value of `attrs["ome"]["omero"]`: names of channels, and a color and range of each.

    Nothing is known of what is to be shown how: the range is all of an integer dtype, 0 to 1
    of any other.

    >>> omero(["DAPI"], np.dtype("uint8"))["channels"][0]["window"]
    {'min': 0, 'max': 255, 'start': 0, 'end': 255}
    """
    low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype.kind in "iu" else (0, 1)
    window = {"min": low, "max": high, "start": low, "end": high}
    colors = itertools.cycle(_COLORS[len(channels) > 1 :])
    return {
        "channels": [
            {"label": name, "color": color, "active": True, "window": window}
            for name, color in zip(channels, colors, strict=False)
        ]
    }


def _axis(dim: str, unit: str | None) -> dict[str, str]:
    axis = {"name": dim}
    if dim in ROLES:
        axis["type"] = ROLES[dim]
    if unit is not None:
        axis["unit"] = unit
    return axis


def _numbers(values: Sequence[float], count: int) -> list[float]:
    numbers = [float(value) for value in values]
    if len(numbers) != count:
        raise ValueError(f"{count} axes, but {len(numbers)} numbers: {numbers}")
    return numbers


def normal_unit(text: object) -> str | None:
    """UDUNITS name of a unit as found in a file; None for pixels, nothing, or nonsense.

    >>> normal_unit("um"), normal_unit("\\\\u00B5m"), normal_unit("Microns"), normal_unit("pixel")
    ('micrometer', 'micrometer', 'micrometer', None)
    """
    if not isinstance(text, str):
        return None
    plain = text.strip().lower().replace("\\u00b5", "u").replace("\\u03bc", "u")
    plain = plain.replace("\u00b5", "u").replace("\u03bc", "u")
    if plain in _NO_UNIT:
        return None
    known = _UNIT_NAMES.get(plain)
    if known is not None:
        return known
    return plain if plain.isascii() and plain.isalpha() and len(plain) > 3 else None


@dataclass(frozen=True)
class Dataset:
    """One level of an image; scale and translation per axis, those of the image included."""

    path: str
    scale: tuple[float, ...]
    translation: tuple[float, ...]


@dataclass(frozen=True)
class Image:
    """What an OME-Zarr group says about its image; axes in the order on disk."""

    names: tuple[str, ...]
    units: tuple[str | None, ...]
    datasets: tuple[Dataset, ...]
    channel_names: tuple[str, ...] | None
    omero: Mapping[str, Any] | None


def image_metadata(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where a group keeps its image metadata: `attrs["ome"]` since 0.5, `attrs` itself before."""
    inner = attributes.get("ome")
    return inner if isinstance(inner, Mapping) else attributes


def parse(attributes: Mapping[str, Any], where: str) -> Image | None:
    """The image a group's attributes describe, or None where they describe none.

    Raises
    ------
    SourceError
        When they do, but in a version or a way that cannot be read; names the field.
    """
    content = image_metadata(attributes)
    found = content.get("multiscales")
    if found is None:
        return None
    if not isinstance(found, list) or not found or not isinstance(found[0], Mapping):
        raise _damaged(where, "multiscales", found)
    image = found[0]
    _check_version(content.get("version", image.get("version")), image, where)
    axes = image.get("axes")
    if not isinstance(axes, list) or not axes or not all(_is_axis(axis) for axis in axes):
        raise _damaged(where, "multiscales[0].axes", axes)
    omero = content.get("omero")
    return Image(
        names=tuple(axis["name"] for axis in axes),
        units=tuple(normal_unit(axis.get("unit")) for axis in axes),
        datasets=_datasets(image, len(axes), where),
        channel_names=_channel_names(omero),
        omero=omero if isinstance(omero, Mapping) else None,
    )


def _is_axis(axis: object) -> bool:
    return isinstance(axis, Mapping) and isinstance(axis.get("name"), str)


def _check_version(version: object, image: Mapping[str, Any], where: str) -> None:
    newer = "coordinateSystems" in image
    if newer or (version is not None and not str(version).startswith(("0.4", "0.5"))):
        said = f"OME-Zarr {version}" if version is not None else "OME-Zarr 0.6 or newer"
        raise SourceError(
            f"{where} is an image of {said}; volpatch reads 0.4 and 0.5: convert it, "
            f"or pass one of its arrays, e.g. {where}/0 (then its spacing is not read)"
        )


def _datasets(image: Mapping[str, Any], ndim: int, where: str) -> tuple[Dataset, ...]:
    found = image.get("datasets")
    if not isinstance(found, list) or not found:
        raise _damaged(where, "multiscales[0].datasets", found)
    field = "multiscales[0].coordinateTransformations"
    whole = _scale_translation(image.get("coordinateTransformations"), ndim, where, field)
    datasets = []
    for number, entry in enumerate(found):
        field = f"multiscales[0].datasets[{number}]"
        path = entry.get("path") if isinstance(entry, Mapping) else None
        if not isinstance(path, str) or not _stays_inside(path):
            raise _damaged(where, f"{field}.path", path)
        field += ".coordinateTransformations"
        own = _scale_translation(entry.get("coordinateTransformations"), ndim, where, field)
        scale, translation = _after(own, whole)
        datasets.append(Dataset(path.rstrip("/"), scale, translation))
    return tuple(datasets)


def _stays_inside(path: str) -> bool:
    """Whether a relative path leads to something below the group it is written in."""
    if not path or "\\" in path or "\0" in path:
        return False
    return not path.startswith("/") and ".." not in path.split("/")


_Transform = tuple[tuple[float, ...], tuple[float, ...]]


def _after(first: _Transform, second: _Transform) -> _Transform:
    scale = tuple(a * b for a, b in zip(first[0], second[0], strict=True))
    moved = zip(first[1], second[0], second[1], strict=True)
    return scale, tuple(t * s + u for t, s, u in moved)


def _scale_translation(found: object, ndim: int, where: str, field: str) -> _Transform:
    """A list of transformations, one after the other, as one scale and one translation."""
    result: _Transform = ((1.0,) * ndim, (0.0,) * ndim)
    if found is None:
        return result
    if not isinstance(found, list):
        raise _damaged(where, field, found)
    for step in found:
        kind = step.get("type") if isinstance(step, Mapping) else None
        if kind == "identity":
            continue
        if kind not in ("scale", "translation"):
            raise _damaged(where, field, step)
        numbers = step.get(kind)
        if not _are_numbers(numbers, ndim) or (kind == "scale" and min(numbers) <= 0):
            raise _damaged(where, field, step)
        values = tuple(float(number) for number in numbers)
        plain = ((1.0,) * ndim, values) if kind == "translation" else (values, (0.0,) * ndim)
        result = _after(result, plain)
    return result


def _are_numbers(found: object, count: int) -> bool:
    if not isinstance(found, list) or len(found) != count:
        return False
    real = all(isinstance(n, int | float) and not isinstance(n, bool) for n in found)
    return real and all(math.isfinite(n) and abs(n) < 1e300 for n in found)


def _channel_names(omero: object) -> tuple[str, ...] | None:
    channels = omero.get("channels") if isinstance(omero, Mapping) else None
    if not isinstance(channels, list) or not channels:
        return None
    labels = [entry.get("label") if isinstance(entry, Mapping) else None for entry in channels]
    if not all(isinstance(label, str) for label in labels):
        return None
    return tuple(str(label) for label in labels)


def _damaged(where: str, field: str, found: object) -> SourceError:
    shown = repr(found)
    shown = shown if len(shown) <= 120 else f"{shown[:117]}..."
    return SourceError(
        f"metadata of {where} is damaged: {field} is {shown}; repair it, or pass one of its "
        f"arrays, e.g. {where}/0 (then its spacing is not read)"
    )
