"""Where a mask lies: by its own place where it has one, else by how many cells it has.

A mask with a place (coordinates, or a voxel size and an origin on disk) is laid where it
belongs in the volume's physical units, and is empty outside of what it covers. One without
is stretched over the volume, in cells of a whole number of voxels; see `bare_cells`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.compute.skip import Cells, PatchFilter, bare_cells, make_skips
from volpatch.core.errors import SettingError
from volpatch.core.grid import per_axis, whole_number
from volpatch.core.layout import Layout
from volpatch.core.parse import by_axis
from volpatch.storage.adapt import AnyVolume, as_volume
from volpatch.storage.ngff import METERS, normal_unit
from volpatch.storage.volume import Source

Array = NDArray[Any]
# of a voxel; what is written in float32, or in micrometres with three decimals, is within
TOLERANCE = 0.01 + 1e-9


@dataclass(frozen=True)
class Positions:
    """Where the voxels of one axis lie: voxel i at origin + i * spacing.

    Attributes
    ----------
    spacing : None where there is one voxel, whose size no coordinate tells.
    certain : False for a stored volume that says nothing, or no more than the defaults.
    positions : of the voxels, where they are not evenly spaced.
    """

    origin: float
    spacing: float | None
    unit: str | None = None
    certain: bool = True
    positions: tuple[float, ...] | None = None


def places_of(volume: AnyVolume | Source, dims: Sequence[str]) -> tuple[Positions | None, ...]:
    """Places of a volume along some of its axes; None where it tells none."""
    if isinstance(volume, AnyVolume):
        if volume.source is None:
            coords = {} if volume.origin is None else volume.origin.coords
            return tuple(_coordinate_place(coords[d]) if d in coords else None for d in dims)
        volume = volume.source
    source = volume
    return tuple(_stored_place(source, source.dims.index(d)) for d in dims)


def _stored_place(source: Source, axis: int) -> Positions:
    origin, spacing, unit = source.origin[axis], source.spacing[axis], source.units[axis]
    known = (origin, spacing, unit) != (0, 1, None)
    return Positions(float(origin), float(spacing), normal_unit(unit), known)


def _coordinate_place(coord: Any) -> Positions | None:
    if coord.dtype.kind not in "iuf" or coord.ndim != 1 or not len(coord):
        return None
    values = np.asarray(coord.values, dtype=np.float64)
    unit = normal_unit(coord.attrs.get("units", coord.attrs.get("unit")))
    origin, n = float(values[0]), len(values)
    if n == 1:
        return Positions(origin, None, unit)
    spacing = float(values[-1] - values[0]) / (n - 1)
    even = np.abs(values - (origin + spacing * np.arange(n))).max() <= TOLERANCE * abs(spacing)
    return Positions(origin, spacing, unit, positions=None if even else tuple(values.tolist()))


def axis_cells(
    dim: str,
    size: int,
    place: Positions | None,
    cells: int,
    own: Positions | None,
    factor: int | None,
    what: str = "the mask",
) -> tuple[Cells, ...]:
    """How the cells of a mask may lie along one axis.

    Parameters
    ----------
    size, place : of the volume, in voxels.
    cells, own : how many cells the mask has there, and their place.
    factor : voxels of a cell where the user said so; then no place is looked at.

    Raises
    ------
    SettingError
        A mask that cannot lie on the volume's grid, to 1/100 voxel.
    """
    one_for_all = own is not None and own.spacing is None and own.positions is None and cells == 1
    if factor is not None or own is None or not own.certain or (one_for_all and size > 1):
        return bare_cells(dim, size, cells, factor, what)
    if place is None or not (place.certain or own.unit is None):
        width = abs(own.spacing or 0) / 2
        if cells == size or abs(own.origin) <= width * (1 + 1e-6):
            return bare_cells(dim, size, cells, None, what)
        raise SettingError(
            f"{what} begins at {_show(own.origin, own.unit)} on {dim}, but the volume does not say "
            f"where it lies; give the volume coordinates or a voxel size, or {_bare(what)}"
        )
    ratio = _ratio(what, dim, own.unit, place.unit)
    if place.positions is not None or own.positions is not None:
        return _same_positions(what, dim, size, place, cells, own, ratio)
    width = (own.spacing or place.spacing or 1.0) * (ratio if own.spacing else 1)
    step = place.spacing or width
    return _even_cells(what, dim, (own.origin * ratio - place.origin) / step, width / step, cells)


def _even_cells(what: str, dim: str, centre: float, width: float, cells: int) -> tuple[Cells, ...]:
    """Cells of `width` voxels, of which the first has its centre at voxel `centre`."""
    factor = round(width)
    whole = factor >= 1 and abs(cells * (width - factor)) <= TOLERANCE
    first = centre - width / 2 + 0.5
    starts = [round(first)] if whole and abs(first - round(first)) <= TOLERANCE else []
    if whole and factor > 1 and abs(centre) <= TOLERANCE:
        # many writers give a coarser image no offset of its own: it may begin with the volume
        starts = sorted({*starts, 0})
    if starts:
        return tuple(Cells(start, factor, factor, cells) for start in starts)
    if width < 0:
        raise SettingError(
            f"the coordinates of {what} run the other way than the volume's along {dim}; turn one "
            f"of them, as by .sortby({dim!r})"
        )
    raise SettingError(
        f"{what} cannot lie on the volume's grid along {dim}: it begins at voxel {first:g}, in "
        f"cells of {width:g} voxels, and both must be whole numbers to 1/100 voxel. Resample it, "
        f"or {_bare(what)}"
    )


def _same_positions(
    what: str, dim: str, size: int, place: Positions, cells: int, own: Positions, ratio: float
) -> tuple[Cells, ...]:
    """The volume's own grid, which alone fits where voxels are not evenly spaced."""
    if cells == size:
        there, here = _positions(place, size), _positions(own, size) * ratio
        gaps = np.abs(np.diff(there))
        if (np.abs(here - there) <= TOLERANCE * gaps.min()).all():
            return (Cells(0, 1, 1, cells),)
    raise SettingError(
        f"the positions along {dim} are not evenly spaced, and {what} does not have the volume's "
        f"own {size}, to 1/100 voxel; interpolate it to them, or {_bare(what)}"
    )


def _positions(place: Positions, size: int) -> Array:
    if place.positions is not None:
        return np.array(place.positions)
    return place.origin + (place.spacing or 0) * np.arange(size)


def _ratio(what: str, dim: str, unit: str | None, volume_unit: str | None) -> float:
    """What turns the mask's unit into the volume's; one that is not said is the other's."""
    if unit is None or volume_unit is None or unit == volume_unit:
        return 1.0
    if unit in METERS and volume_unit in METERS:
        return METERS[unit] / METERS[volume_unit]
    raise SettingError(
        f"{what} lies along {dim} in {unit} and the volume in {volume_unit}, and neither can be "
        f"turned into the other; give both the same unit"
    )


def _bare(what: str) -> str:
    """The way out of a place that does not suit."""
    if what == "the mask":
        return "say mask_factor=: then it begins where the volume does"
    return "give its values without a place: then it begins where the volume does"


def _show(number: float, unit: str | None) -> str:
    return f"{number:g}" if unit is None else f"{number:g} {unit}"


@dataclass(frozen=True)
class StoredMask:
    """Some axes of a stored volume, read as they are sliced.

    Attributes
    ----------
    axes : of the source, in the order of the patched axes; all others have length 1.
    """

    source: Source
    axes: tuple[int, ...]

    @classmethod
    def of(cls, source: Source, dims: Sequence[str]) -> StoredMask:
        """The axes of the names `dims`, else the last ones."""
        n = len(dims)
        if set(dims) <= set(source.dims):
            axes = tuple(source.dims.index(d) for d in dims)
        else:
            axes = tuple(range(max(0, source.ndim - n), source.ndim))
        rest = [i for i in range(source.ndim) if i not in axes]
        if any(source.shape[i] != 1 for i in rest):
            raise SettingError(
                f"the mask {source.path} has shape {source.shape}, but only its axes "
                f"{tuple(source.dims[i] for i in axes)} may be longer than 1"
            )
        return cls(source, axes)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.source.shape[i] for i in self.axes)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.source.dtype

    def __getitem__(self, box: tuple[slice, ...]) -> Array:
        chosen: list[Any] = [0] * self.source.ndim
        for axis, part in zip(self.axes, box, strict=True):
            chosen[axis] = part
        # what is left has the source's order of axes
        order = np.argsort(np.argsort(self.axes))
        return self.source[tuple(chosen)].transpose(order)


def patch_filter_of(
    options: Mapping[str, Any], layout: Layout, places: Sequence[Positions | None]
) -> PatchFilter | None:
    """What the options mask, mask_factor and skip amount to.

    `places` are those of the volume along the patched axes.
    """
    mask, factor = options.get("mask"), options.get("mask_factor")
    if mask is None and factor is not None:
        raise SettingError("mask_factor says how large a mask's cells are; give mask= too")
    dims, shape = layout.patched_dims, layout.patched_shape
    cells = None
    if mask is not None:
        mask, own = placed(mask, dims, "the mask", named=layout.named)
        factors = _factors(factor, dims)
        if len(mask.shape) == len(shape):
            cells = tuple(map(axis_cells, dims, shape, places, mask.shape, own, factors))
    return make_skips(mask, options.get("skip"), shape, cells, channels=layout.channel is not None)


def _factors(factor: Any, dims: Sequence[str]) -> tuple[int | None, ...]:
    values = per_axis(by_axis(factor, dims, "mask_factor"), len(dims), "mask_factor")
    return tuple(
        None if value is None else whole_number(value, f"mask_factor on {dim}")
        for value, dim in zip(values, dims, strict=True)
    )


def placed(
    mask: Any, dims: Sequence[str], what: str, *, named: bool
) -> tuple[Any, tuple[Positions | None, ...]]:
    """A mask as something that can be sliced along the axes `dims`, and its places there."""
    given = as_volume(mask, what)
    if given.source is not None:
        stored = StoredMask.of(given.source, dims)
        return stored, places_of(given, [given.dims[i] for i in stored.axes])
    own: tuple[Positions | None, ...] = (None,) * len(dims)
    if given.lazy:
        raise SettingError(
            f"{what} is a dask array, but it is looked at while blocks are computed; pass "
            f"mask.compute(), a coarser array, or the path of a stored volume"
        )
    mask = given.data
    if given.origin is not None:
        mask = given.origin
        spare = [d for d in mask.dims if d not in dims and mask.sizes[d] == 1]
        mask = mask.isel(dict.fromkeys(spare, 0)) if len(mask.dims) > len(dims) else mask
        if set(mask.dims) == set(dims):  # by name, whatever the order
            mask = mask.transpose(*dims)
        elif named and any(d in mask.coords for d in mask.dims):
            raise SettingError(
                f"{what} has the axes {tuple(map(str, mask.dims))} with coordinates, but "
                f"{tuple(dims)} are patched; rename them, or give its values alone (.values)"
            )
        own, mask = places_of(as_volume(mask, what), mask.dims), mask.data
    return mask, own
