"""Any kind of volume, seen alike: axes, stored chunks, and a way to read a box of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.compute.reading import Read
from volpatch.core.blending import check_dtype
from volpatch.core.box import Box
from volpatch.core.errors import SettingError
from volpatch.core.layout import Layout
from volpatch.storage.adapt import AnyVolume

Array = NDArray[Any]
Ints = NDArray[np.int64]
# chunks, patches or cells along one axis that are listed: more would take more memory than they
# are worth, and what claims to have them is hardly there
MOST_LISTED = 2**24


@dataclass(frozen=True)
class View:
    """Any kind of volume, seen alike.

    Attributes
    ----------
    named : whether `dims` are the volume's own words.
    borders : per axis where stored chunks begin, and the axis' end; None where there are none.
    fill : copies a selection (slices over all axes) of the volume into an array.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    named: bool
    borders: tuple[Ints, ...] | None
    fill: Callable[[tuple[slice, ...], Array], None]

    @classmethod
    def of(cls, volume: AnyVolume, what: str) -> View:
        """Look at a volume as it is sampled."""
        borders = None
        if volume.chunks is not None:
            borders = tuple(map(borders_of, volume.shape, volume.chunks))
        dtype = check_dtype(volume.dtype, f"the dtype of {what},")
        read = partial(volume.read, what=what)
        return cls(volume.dims, volume.shape, dtype, volume.named, borders, read)


def check_listed(count: int, what: str) -> None:
    """Refuse to list what would fill the memory."""
    if count > MOST_LISTED:
        raise SettingError(
            f"there are {count:,} {what}, and at most {MOST_LISTED:,} can be gone through; "
            f"open a part of the volume, or sample one that is stored in larger chunks"
        )


def borders_of(size: int, chunk: int | tuple[int, ...]) -> Ints:
    if isinstance(chunk, tuple):
        kept = [c for c in chunk if c]
        return np.cumsum([0, *kept], dtype=np.int64)
    check_listed(-(-size // max(1, chunk)), f"chunks of {chunk} on an axis of {size} voxels")
    return np.append(np.arange(0, size, max(1, chunk), dtype=np.int64), size)


def reader(view: View, layout: Layout, lead: tuple[int, ...]) -> Read:
    """Reads boxes of the patched axes, (channels, *box), at one index of the leading ones."""
    whole = Box((0,) * len(view.shape), view.shape)
    inverse = tuple(int(i) for i in np.argsort(layout.order))

    def read(box: Box, out: Array) -> None:
        values = out[0] if layout.channel is None else out
        every = values[(None,) * len(layout.lead)].transpose(inverse)
        view.fill(layout.selection(lead, whole, box), every)

    return read


def channels_of(layout: Layout) -> int | None:
    return None if layout.channel is None else layout.shape[layout.channel]
