"""What TIFF metadata say of axes, voxel sizes and channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import tifffile

from volpatch.storage.ngff import normal_unit

# spacing and unit by axis, where known; names of channels
Grid = tuple[dict[str, tuple[float, str | None]], tuple[str, ...] | None]
_MICROMETERS = {2: 25_400.0, 3: 10_000.0, 4: 1_000.0, 5: 1.0}  # in a unit of ResolutionUnit
_INCHES = {2: 1.0, 3: 2.54}
# what screens and printers have, and what programs write that know nothing of a size
_DPI = (
    *(72, 75, 90, 96, 100, 120, 144, 150, 160, 180, 200, 240, 300, 360, 400),
    *(600, 720, 1200, 2400, 4800),
)


def tiff_names(axes: str) -> tuple[str, ...]:
    """Names of the axes a series has; samples are channels, unknown pages are z.

    >>> tiff_names("QYX"), tiff_names("ZYXS")
    (('z', 'y', 'x'), ('z', 'y', 'x', 'c'))
    """
    names = list(axes.lower())
    if "c" not in names and "s" in names:
        names[names.index("s")] = "c"
    unknown = [axis for axis, name in enumerate(names) if name in "qi"]
    if "z" not in names and unknown:
        names[unknown[-1]] = "z"
    return tuple(names)


def file_grid(tif: tifffile.TiffFile, every: Sequence[Any], number: int) -> Grid:
    """What is known of a series of a file: by OME, by ImageJ, by the resolution tags.

    Resolution tags count where they name a unit (inch, cm) and are no screen's or printer's:
    72, 96, 300 or 600 dpi, say, or 1. They say nothing of z.
    """
    return _page_grid(
        tif, every[number].keyframe, _pixels(tif, [one.name for one in every], number)
    )


def page_grid(tif: tifffile.TiffFile, page: Any) -> Grid:
    """The same for the one page of a file that is a slice."""
    return _page_grid(tif, page, _pixels(tif, [""], 0))


def _page_grid(tif: tifffile.TiffFile, page: Any, pixels: ElementTree.Element | None) -> Grid:
    if pixels is not None:
        found, channels = _ome_grid(pixels)
        return {**_tag_grid(page), **found}, channels
    if tif.is_imagej:
        return _imagej_grid(tif.imagej_metadata or {}, page), None
    return _tag_grid(page), None


def _tag_grid(page: Any) -> dict[str, tuple[float, str | None]]:
    """Spacing along y and x in micrometers, by the resolution tags."""
    unit = int(page.tags.valueof("ResolutionUnit", 2))
    grid: dict[str, tuple[float, str | None]] = {}
    for name, tag in (("x", "XResolution"), ("y", "YResolution")):
        ratio = _ratio(page.tags.valueof(tag))
        if ratio is None or unit not in _MICROMETERS:
            continue
        pixels, units = ratio
        dpi = pixels / units * _INCHES.get(unit, math.inf)
        if unit in _INCHES and (pixels == units or any(abs(dpi - one) < 1 for one in _DPI)):
            continue
        grid[name] = _MICROMETERS[unit] * units / pixels, "micrometer"
    return grid


def _imagej_grid(found: dict[str, Any], page: Any) -> dict[str, tuple[float, str | None]]:
    unit = found.get("unit")
    grid: dict[str, tuple[float, str | None]] = {}
    scale = 1.0
    if unit is None and int(page.tags.valueof("ResolutionUnit", 1)) in _MICROMETERS:
        grid = _tag_grid(page)
        if grid:
            scale = _MICROMETERS[int(page.tags.valueof("ResolutionUnit"))]
            unit = "micrometer"
    else:
        for name, tag in (("x", "XResolution"), ("y", "YResolution")):
            ratio = _ratio(page.tags.valueof(tag))
            if ratio is not None:
                grid[name] = ratio[1] / ratio[0], normal_unit(found.get(f"{name}unit", unit))
    spacing = _number(found.get("spacing"))
    if spacing:  # some stacks were taken downwards: the distance is meant
        grid["z"] = abs(spacing) * scale, normal_unit(found.get("zunit", unit))
    interval = _number(found.get("finterval"))
    if interval is not None and interval > 0:
        grid["t"] = interval, normal_unit(found.get("tunit", "sec"))
    return grid


def _ome_grid(pixels: ElementTree.Element) -> Grid:
    grid: dict[str, tuple[float, str | None]] = {}
    keys = [(name.lower(), f"PhysicalSize{name}", "um") for name in "XYZ"]
    for name, key, usual in [*keys, ("t", "TimeIncrement", "s")]:
        value = _number(pixels.get(key))
        if value is not None and value > 0:
            grid[name] = value, normal_unit(pixels.get(f"{key}Unit", usual))
    labels = [channel.get("Name") for channel in pixels.iterfind("{*}Channel")]
    named = tuple(label for label in labels if label)
    return grid, named if named and len(named) == len(labels) else None


def _pixels(
    tif: tifffile.TiffFile, names: Sequence[str], number: int
) -> ElementTree.Element | None:
    """What OME metadata say of one of the named series; images without data are no series."""
    if not tif.is_ome or not tif.ome_metadata:
        return None
    images = list(ElementTree.fromstring(tif.ome_metadata).iterfind("{*}Image"))
    if len(images) != len(names):
        images = [image for image in images if image.get("Name") == names[number]]
        number = 0 if len(images) == 1 else len(images)
    return images[number].find("{*}Pixels") if number < len(images) else None


def _ratio(found: Any) -> tuple[float, float] | None:
    """Numerator and denominator of a number above 0."""
    if not isinstance(found, tuple) or len(found) != 2 or min(found) <= 0:
        return None
    return float(found[0]), float(found[1])


def _number(found: object) -> float | None:
    try:
        value = float(found)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
