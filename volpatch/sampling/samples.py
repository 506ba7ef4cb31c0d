"""Patches at random or at given positions, the same ones in several aligned volumes.

`sample_patches` first decides where the patches lie and then reads chunk by chunk: every
stored chunk that some patch needs is read once, and handed to all of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.core.box import Box
from volpatch.core.errors import GridError, SettingError
from volpatch.core.grid import per_axis, whole_number
from volpatch.core.layout import Layout, refuse_grid
from volpatch.core.options import Sizes
from volpatch.core.parse import by_axis, whole_counts
from volpatch.planning.masks import places_of
from volpatch.sampling.census import Cells, Census, Marks, Room, inside
from volpatch.sampling.views import View, channels_of, reader
from volpatch.storage.adapt import Kind, as_volume, kind_of, refuse_masked

Array = NDArray[Any]
Ints = NDArray[np.int64]

TRIES = 1000  # draws per patch before `exclude` is given up on


@dataclass(frozen=True)
class Samples:
    """Patches and where they come from.

    Attributes
    ----------
    patches : (n, [channels,] *patch), or a mapping or sequence of these, as the volumes were.
    origins : (n, ndim) int64, first voxel of every patch along the patched axes.
    """

    patches: Any
    origins: Ints

    def __len__(self) -> int:
        return len(self.origins)


def sample_patches(
    volumes: Any,
    patch: Sizes,
    n: int | None = None,
    *,
    rng: int | np.random.Generator | None = None,
    where: Any = None,
    at: Any = None,
    balance: Any = None,
    exclude: Box | Sequence[Box] | None = None,
    channel_axis: int | str | None = None,
) -> Samples:
    """Patches at random or at given positions, the same ones in several aligned volumes.

    The centre voxel of a patch is `origin + patch // 2`.

    Parameters
    ----------
    volumes : NumPy, dask or xarray array, path, Source; or a mapping or sequence of these
        Equally long along the patched axes, such as an image and its labels.
    patch : int, sequence of int, or mapping by axis name
        Patch size in voxels; a sequence patches the last axes.
    n : int
        How many patches; drawn independently, so that one may come twice.
    rng : int or Generator, optional
        The same seed gives the same patches, however the volumes are stored.
    where : array, path or anything that can be sliced, optional
        Mask on the patched axes' grid or coarser: only centres where it is not zero are
        drawn, all of them equally likely. With coordinates or a voxel size it is laid where
        it belongs. Read by chunks, twice.
    at : (n, ndim) numbers, optional
        Centres in voxels, instead of random ones; rounded to the nearest voxel, halves up,
        so that those of even patches, as in `PatchGrid.centers`, give the patches back.
    balance : like `where`, of non-negative integers, optional
        Patch i is centred on the class number i modulo the count of classes, from those
        present among the admissible centres, in ascending order: all as often, whatever
        their sizes. 0 is a class too; `where=` takes it out.
    exclude : Box or sequence of Box, optional
        Parts that no patch may touch, such as a hold-out region.
    channel_axis : int or str, optional
        Axis that comes whole with every patch; volumes that have only the patched axes,
        such as labels, do without it.

    Returns
    -------
    Samples

    Raises
    ------
    GridError
        A patch that does not fit, volumes that are not aligned.
    SettingError
        Settings that do not go together, a mask without admissible centres, points whose
        patch leaves the volume, an `exclude` that leaves too little room.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.arange(400).reshape(20, 20)
    >>> data = {"image": image, "labels": image > 199}
    >>> drawn = sample_patches(data, 5, 4, rng=0, balance=data["labels"])
    >>> drawn.patches["image"].shape, drawn.patches["labels"][:, 2, 2].tolist()
    ((4, 5, 5), [False, True, False, True])
    >>> sample_patches(image, 3, at=[(1, 1), (9.8, 4)]).origins.tolist()
    [[0, 0], [9, 3]]
    """
    refuse_grid(patch)
    names, given = _named(volumes)
    seen = [as_volume(volume, name) for name, volume in zip(names, given, strict=True)]
    views = [View.of(volume, name) for name, volume in zip(names, seen, strict=True)]
    layouts = _aligned(names, views, patch, channel_axis)
    dims, shape = layouts[0].patched_dims, layouts[0].patched_shape
    for name, view, layout in zip(names, views, layouts, strict=True):
        if view.named and views[0].named and layout.patched_dims != dims:
            raise SettingError(
                f"the axes of {name} are {layout.patched_dims}, those of {names[0]} {dims}; "
                f"transpose one of them"
            )
    places = places_of(seen[0], dims)
    marks = [
        None if one is None else Marks.of(_by_name(one, dims), what, dims, shape, places)
        for one, what in ((where, "where"), (balance, "balance"))
    ]
    sizes = _patch_sizes(by_axis(patch, dims, "patch"), dims, shape)
    room = Room(shape, sizes, exclude)
    if at is not None:
        if n is not None or where is not None or balance is not None:
            raise SettingError(
                "at=points says where the patches are; leave out n, where and balance, or at"
            )
        origins = _at(at, room)
    elif n is None:
        raise SettingError("how many patches? give n, or at=points")
    else:
        origins = _drawn(whole_counts(n, 1, "n"), rng, room, *marks)
    patches = [_gather(v, layout, origins, sizes) for v, layout in zip(views, layouts, strict=True)]
    if isinstance(volumes, Mapping):
        return Samples(dict(zip(volumes, patches, strict=True)), origins)
    if isinstance(volumes, list | tuple):
        return Samples(patches if isinstance(volumes, list) else tuple(patches), origins)
    return Samples(patches[0], origins)


def _named(volumes: Any) -> tuple[list[str], list[Any]]:
    """The volumes, and what messages call them."""
    if isinstance(volumes, Mapping) and kind_of(volumes) is not Kind.DATASET:
        names, given = [f"volume {key!r}" for key in volumes], list(volumes.values())
    elif isinstance(volumes, list | tuple):
        names, given = [f"volume {i}" for i in range(len(volumes))], list(volumes)
    else:
        names, given = ["the volume"], [volumes]
    if not given:
        raise SettingError("there are no volumes to sample; give at least one")
    return names, given


def _by_name(marks: Any, dims: Sequence[str]) -> Any:
    """A DataArray with its axes in the order of `dims`; anything else as it is."""
    if hasattr(marks, "dims") and set(marks.dims) == set(dims):
        return marks.transpose(*dims)
    return marks


def _aligned(
    names: list[str], views: list[View], patch: Sizes, channel_axis: int | str | None
) -> list[Layout]:
    """Roles of the axes of every volume; the patched ones must be equally long."""

    sized = len(patch) if hasattr(patch, "__len__") else None
    ranks = {len(view.dims) for view in views}

    def channel(view: View, patched: int) -> int | str | None:
        lacks = isinstance(channel_axis, str) and channel_axis not in view.dims and len(views) > 1
        return None if lacks or len(view.dims) <= patched else channel_axis

    def patchable(view: View) -> int:
        """Axes that one number as patch size is for."""
        axis = channel(view, 0) if len(ranks) == 1 else None  # else the labels tell
        return len(Layout.of(view.dims, view.shape, 1, axis, named=view.named).patched)

    patched = min(map(patchable, views)) if sized is None else sized
    sizes = patch if isinstance(patch, Mapping) else per_axis(patch, patched, "patch")
    layouts = [Layout.of(v.dims, v.shape, sizes, channel(v, patched), named=v.named) for v in views]
    for name, layout in zip(names, layouts, strict=True):
        leads = layout.pick(layout.shape, layout.lead)
        if math.prod(leads) > 1:
            raise GridError(
                f"{name} of shape {layout.shape} has the axes "
                f"{layout.pick(layout.dims, layout.lead)} of {leads} besides the patched ones; "
                f"choose one index of each, or hand one over whole with channel_axis"
            )
        if layout.patched_shape != layouts[0].patched_shape:
            raise GridError(
                f"{name} has {layout.patched_shape} voxels along the patched axes, but {names[0]} "
                f"has {layouts[0].patched_shape}; aligned volumes are equally long"
            )
    return layouts


def _patch_sizes(patch: Any, dims: Sequence[str], shape: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(
        whole_number(p, f"patch on {d}")
        for p, d in zip(per_axis(patch, len(dims), "patch"), dims, strict=True)
    )
    for size, dim, length in zip(sizes, dims, shape, strict=True):
        if not 1 <= size <= length:
            raise GridError(
                f"patch {size} on {dim} does not fit its {length} voxels; "
                f"choose a patch from 1 to {length}"
            )
    return sizes


def _at(at: Any, room: Room) -> Ints:
    """Origins of the patches that are centred on given points."""
    ndim = len(room.shape)
    refuse_masked(at, "at")
    try:
        points = np.asarray(at, dtype=np.float64)
    except (TypeError, ValueError):
        points = np.empty(())
    if points.size == 0 and len(points.shape) == 1:
        points = points.reshape(0, ndim)
    if points.ndim != 2 or points.shape[1] != ndim or not np.isfinite(points).all():
        raise SettingError(
            f"at must be finite numbers of shape (points, {ndim}), one row per centre; got "
            f"{f'shape {points.shape}' if points.shape else repr(at)}"
        )
    # the centre of an even patch lies between two voxels, and the later one counts
    centres = np.floor(points) + (points % 1 >= 0.5)
    outside = np.flatnonzero(((centres < room.low) | (centres >= room.high)).any(axis=1))
    if len(outside):
        raise SettingError(
            f"{len(outside)} of {len(points)} points are too near to the border for a patch of "
            f"{room.patch}, the first is at[{outside[0]}] = {tuple(points[outside[0]].tolist())}: "
            f"centres must lie in {room} of the volume's {room.shape}; leave these out, or choose "
            f"a smaller patch"
        )
    origins = centres.astype(np.int64) - room.half
    held = np.flatnonzero(room.held(origins))
    if len(held):
        raise SettingError(
            f"{len(held)} of {len(points)} points have patches that touch an excluded box, the "
            f"first is at[{held[0]}] = {tuple(points[held[0]].tolist())}; leave these out"
        )
    return origins


def _drawn(n: int, rng: Any, room: Room, where: Marks | None, balance: Marks | None) -> Ints:
    """Origins of `n` random patches; those that touch what is excluded are drawn again."""
    try:
        generator = np.random.default_rng(rng)
    except (TypeError, ValueError):
        raise SettingError(f"rng must be a whole number or a Generator, got {rng!r}") from None
    census = None if where is None and balance is None else Census(Cells(room, where, balance))
    origins = np.empty((n, len(room.shape)), np.int64)
    left = np.arange(n)
    for _ in range(TRIES if room.boxes else 1):
        if census is None:
            centres = generator.integers(room.low, room.high, (len(left), len(room.shape)))
        else:
            centres = census.draw(left, generator)
        origins[left] = centres - room.half
        left = left[room.held(origins[left])]
        if not len(left):
            return origins
    raise SettingError(
        f"found {n - len(left)} of {n} patches of {room.patch} that touch none of the "
        f"{len(room.boxes)} excluded boxes, after {TRIES} tries each; exclude less of the "
        f"{room.shape} voxels, or choose a smaller patch"
    )


def _gather(view: View, layout: Layout, origins: Ints, patch: tuple[int, ...]) -> Array:
    """The patches at `origins`; a stored chunk is read once for all that want some of it."""
    out = np.empty((len(origins), channels_of(layout) or 1, *patch), view.dtype)
    read = reader(view, layout, (0,) * len(layout.lead))
    whole = [np.array([0, n]) for n in layout.patched_shape]
    stored = whole if view.borders is None else [view.borders[a] for a in layout.patched]
    wanted: dict[tuple[int, ...], list[int]] = {}
    for i, origin in enumerate(origins):
        spans = (
            range(np.searchsorted(b, o, "right") - 1, np.searchsorted(b, o + p))
            for b, o, p in zip(stored, origin, patch, strict=True)
        )
        for chunk in itertools.product(*spans):
            wanted.setdefault((*([i] * (view.borders is None)), *chunk), []).append(i)
    for chunk, ids in sorted(wanted.items()):
        at = chunk[-len(patch) :]
        low = np.maximum(origins[ids], [b[c] for b, c in zip(stored, at, strict=True)])
        high = np.minimum(origins[ids] + patch, [b[c + 1] for b, c in zip(stored, at, strict=True)])
        box = Box(tuple(low.min(axis=0).tolist()), tuple(high.max(axis=0).tolist()))
        values = np.empty((out.shape[1], *box.shape), view.dtype)
        read(box, values)
        for i, a, b in zip(ids, low.tolist(), high.tolist(), strict=True):
            piece = Box(tuple(a), tuple(b))
            mine = Box(tuple(origins[i].tolist()), tuple((origins[i] + patch).tolist()))
            out[i][(slice(None), *inside(piece, mine))] = values[(slice(None), *inside(piece, box))]
    return out if layout.channel is not None else out[:, 0]
