"""Pictures of a volume and its result: planes through the middle, with the grid drawn over."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from volpatch.core.axes import SPATIAL
from volpatch.core.box import Box
from volpatch.core.errors import SettingError
from volpatch.planning.plan import Plan
from volpatch.storage.volume import Source

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# what lies beyond these parts of the voxels is drawn black or white
_DARKEST, _BRIGHTEST = 1.0, 99.0
# of a bigger volume the middle is drawn, as wide as this many of its smallest voxels
_SHOWN = 320
_PAIRS = ((1, 2), (0, 2), (0, 1))


def planes(
    source: Source, result: Source, path: str | os.PathLike[str], *, plan: Plan | None = None
) -> None:
    """Save three planes through the middle of two volumes, one above the other.

    Parameters
    ----------
    source, result : Source
        Volumes with axes z, y, x, of one shape and grid.
    path : path
        The picture to be made; its ending says which kind (.png, .pdf, …).
    plan : Plan, optional
        Draws where patches start, and where regions do.
    """
    if source.dims != SPATIAL or result.shape != source.shape:
        raise SettingError(
            f"planes are drawn of two volumes (z, y, x) of one shape; got {source.dims} "
            f"{source.shape} and {result.dims} {result.shape}"
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    box = _middle_box(source)
    figure = Figure(figsize=(12.0, 8.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, 3)
    for column, pair in enumerate(_PAIRS):
        before, after = (_plane(volume, box, pair) for volume in (source, result))
        low, high = np.percentile(before, (_DARKEST, _BRIGHTEST))
        for row, (volume, plane) in enumerate(((source, before), (result, after))):
            _draw(grid[row, column], volume, plane, box, pair, (float(low), float(high)))
        if plan is not None:
            _draw_grid(grid[1, column], plan, source, box, pair)
    if plan is not None:
        patch, region = (" x ".join(map(str, n)) for n in (plan.blending.grid.patch, plan.region))
        figure.suptitle(
            f"white: where patches of {patch} start; orange: where regions of {region} do",
            fontsize=9,
        )
    figure.savefig(path, dpi=100)


def _middle_box(source: Source) -> Box:
    """The middle of a volume: along every axis at most `_SHOWN` of the smallest voxels wide."""
    width = _SHOWN * min(source.spacing)
    counts = [
        min(n, max(1, round(width / step)))
        for n, step in zip(source.shape, source.spacing, strict=True)
    ]
    start = tuple((n - count) // 2 for n, count in zip(source.shape, counts, strict=True))
    return Box(start, tuple(a + n for a, n in zip(start, counts, strict=True)))


def _plane(volume: Source, box: Box, pair: tuple[int, int]) -> Any:
    """The middle plane of a box that two axes span."""
    key: list[Any] = list(box.slices)
    through = 3 - sum(pair)
    key[through] = volume.shape[through] // 2
    return volume[tuple(key)]


def _draw(
    axes: Axes,
    volume: Source,
    plane: Any,
    box: Box,
    pair: tuple[int, int],
    limits: tuple[float, float],
) -> None:
    (top, left), (bottom, right) = (
        [volume.origin[axis] + ends[axis] * volume.spacing[axis] for axis in pair]
        for ends in (box.start, box.stop)
    )
    axes.imshow(
        plane,
        cmap="gray",
        vmin=limits[0],
        vmax=limits[1],
        extent=(left, right, bottom, top),
        aspect="equal",
        interpolation="nearest",
    )
    through = 3 - sum(pair)
    axes.set_title(
        f"{volume.name}, {volume.dims[through]} = {volume.shape[through] // 2}", fontsize=9
    )
    down, across = (_axis_label(volume, axis) for axis in pair)
    axes.set_ylabel(down, fontsize=8)
    axes.set_xlabel(across, fontsize=8)
    axes.tick_params(labelsize=7)


def _axis_label(volume: Source, axis: int) -> str:
    unit = volume.units[axis]
    return volume.dims[axis] if unit is None else f"{volume.dims[axis]} ({unit})"


def _draw_grid(axes: Axes, plan: Plan, source: Source, box: Box, pair: tuple[int, int]) -> None:
    """Lines where patches and regions start, within the box."""
    for axis, line in zip(pair, (axes.axhline, axes.axvline), strict=True):
        low, high = box.start[axis], box.stop[axis]
        edge, begin, size = plan.region[axis], plan.box.start[axis], plan.box.stop[axis]
        regions = set(range(begin + max(0, (low - begin) // edge) * edge, min(high, size), edge))
        along = plan.blending.grid.axes[axis]
        patches = map(along.start, along.touching(low, high))
        for start in sorted(regions.union(patches)):
            if not low < start < high:
                continue
            colour, alpha = ("tab:orange", 0.8) if start in regions else ("white", 0.3)
            place = source.origin[axis] + start * source.spacing[axis]
            line(place, color=colour, alpha=alpha, linewidth=0.7)
