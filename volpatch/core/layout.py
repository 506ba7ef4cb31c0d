"""Which axis of a volume is what: looped over, handed whole to the function, or patched.

(t, c, z, y, x)   patch over z, y, x                 every (t, c) on its own
(t, c, z, y, x)   the same with channel_axis="c"     every t on its own, c handed whole

Results have their axes in the volume's order, and channels that the function returns where
c belongs in (t, c, z, y, x).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from volpatch.core.axes import CHANNELS, SPATIAL
from volpatch.core.box import Box
from volpatch.core.errors import GridError, SettingError
from volpatch.core.grid import PatchGrid, per_axis
from volpatch.core.parse import by_axis

DEFAULT_CHUNKS = {1: (2**18,), 2: (512, 512), 3: (64, 128, 128)}
CHUNK_BYTES = (2**16, 2**25)
THIN = 8


def refuse_grid(patch: Any) -> None:
    """Refuse a grid where sizes are wanted."""
    if isinstance(patch, PatchGrid):
        raise GridError(
            "patch takes sizes: patch=grid.patch, stride=grid.stride, edge=grid.edge, "
            "offset=grid.offset; a grid was given"
        )


def refuse_beside_grid(**given: Any) -> None:
    """Refuse sizes beside a grid, which has its own."""
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise SettingError(
            f"{' and '.join(names)} cannot be given beside a grid: stride, overlap, edge and "
            f"offset are part of the grid that was given; leave them out, or give a patch size "
            f"instead of a grid"
        )


def write_units(
    dims: Sequence[str],
    sizes: Sequence[int],
    own: Sequence[int] | None,
    itemsize: int,
    *,
    chunks: Any = None,
    shards: Any = None,
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Chunks and shards of an output along its patched axes.

    Without `chunks`, the chunks that the input has of its `own` are kept, unless they are
    thin, tiny or huge.

    >>> write_units("zyx", (500, 500, 500), (1, 500, 500), 2)
    ((64, 128, 128), None)
    """
    n = len(sizes)
    if chunks is not None:
        chosen = per_axis(by_axis(chunks, dims, "chunks"), n, "chunks")
    elif own is not None and _handy(own, sizes, itemsize):
        chosen = tuple(own)
    else:
        chosen = DEFAULT_CHUNKS.get(n, (16,) * (n - 3) + DEFAULT_CHUNKS[3])
    if shards is not None:
        return chosen, per_axis(by_axis(shards, dims, "shards"), n, "shards")
    # what is no number is left for TargetSpec to refuse
    pairs = zip(chosen, sizes, strict=True)
    return tuple(min(c, b) if isinstance(c, int) else c for c, b in pairs), None


def _handy(chunks: Sequence[int], sizes: Sequence[int], itemsize: int) -> bool:
    thin = any(c < min(THIN, n) for c, n in zip(chunks, sizes, strict=True))
    return not thin and CHUNK_BYTES[0] <= math.prod(chunks) * itemsize <= CHUNK_BYTES[1]


@dataclass(frozen=True, slots=True)
class Layout:
    """Roles of the axes of a volume.

    Attributes
    ----------
    dims, shape : names and sizes of all axes.
    lead : axes that are looped over; every index is processed on its own.
    channel : axis that is handed whole to the function, or None.
    patched : axes that patches are cut along, in their order.
    named : whether `dims` are the volume's own words.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    lead: tuple[int, ...]
    channel: int | None
    patched: tuple[int, ...]
    named: bool = True

    @classmethod
    def of(
        cls,
        dims: Sequence[str],
        shape: Sequence[int],
        patch: Any,
        channel_axis: int | str | None = None,
        *,
        named: bool = True,
    ) -> Layout:
        """Roles that follow from what `patch` and `channel_axis` say.

        A mapping patches the axes it names; a sequence the last axes; one number patches
        z, y and x, or every axis where axes have no names (`named` is False).
        """
        refuse_grid(patch)
        channel = _channel(channel_axis, dims)
        if channel is not None and shape[channel] == 0:
            raise SettingError(
                f"the channel_axis {channel_axis!r} has length 0 in a volume of shape "
                f"{tuple(shape)}, so there is nothing to hand to the function"
            )
        rest = [i for i in range(len(dims)) if i != channel]
        if isinstance(patch, Mapping):
            unknown = [d for d in patch if d not in dims]
            if unknown:
                raise GridError(f"patch names axis {unknown[0]!r}, but the axes are {tuple(dims)}")
            patched = [i for i in rest if dims[i] in patch]
        elif hasattr(patch, "__len__"):
            if not 1 <= len(patch) <= len(rest):
                raise GridError(
                    f"patch {tuple(patch)} has {len(patch)} sizes, but the volume has the axes "
                    f"{tuple(dims[i] for i in rest)} of {tuple(shape[i] for i in rest)} voxels"
                )
            patched = rest[len(rest) - len(patch) :]
        else:
            patched = [i for i in rest if not named or dims[i] in SPATIAL] or rest
        lead = tuple(i for i in rest if i not in patched)
        return cls(tuple(dims), tuple(shape), lead, channel, tuple(patched), named)

    @property
    def patched_dims(self) -> tuple[str, ...]:
        return tuple(self.dims[i] for i in self.patched)

    @property
    def patched_shape(self) -> tuple[int, ...]:
        return tuple(self.shape[i] for i in self.patched)

    def pick(self, values: Sequence[Any], axes: Sequence[int]) -> tuple[Any, ...]:
        return tuple(values[i] for i in axes)

    def selection(self, lead: Sequence[int], roi: Box, box: Box) -> tuple[slice, ...]:
        """Slices over all axes: lead indices, the roi's channels, a box of patched voxels."""
        chosen = [slice(a, b) for a, b in zip(roi.start, roi.stop, strict=True)]
        for axis, index in zip(self.lead, lead, strict=True):
            chosen[axis] = slice(index, index + 1)
        for axis, a, b in zip(self.patched, box.start, box.stop, strict=True):
            chosen[axis] = slice(a, b)
        return tuple(chosen)

    def result_axes(self, channels: bool, shape: Sequence[int]) -> tuple[int | None, ...]:
        """Axes of a result, in their order: the volume's by number, None for its channels.

        Axes stay in the volume's order. Channels that the function returns come right before
        the patched ones; where axes have names also before any other of z, y and x, behind
        t, and in the place of a c that is looped over and of which one index is there.

        Parameters
        ----------
        channels : whether there are channels.
        shape : of the volume, or of its roi.

        Examples
        --------
        >>> Layout.of("tzyx", (2, 9, 9, 9), {"y": 4, "x": 4}).result_axes(True, (2, 9, 9, 9))
        (0, None, 1, 2, 3)
        """
        kept = sorted((*self.lead, *self.patched))
        if not channels:
            return tuple(kept)
        if self.named:
            kept = [a for a in kept if not (a in self.lead and self._gives_way(a, shape))]
        at = next((i for i, a in enumerate(kept) if self._follows_channels(a)), len(kept))
        return (*kept[:at], None, *kept[at:])

    def _gives_way(self, axis: int, shape: Sequence[int]) -> bool:
        return self.dims[axis] == CHANNELS and shape[axis] == 1

    def _follows_channels(self, axis: int) -> bool:
        if not self.named:
            return axis in self.patched
        return self.dims[axis] in SPATIAL or (axis in self.patched and self.dims[axis] != "t")

    @property
    def order(self) -> tuple[int, ...]:
        """Axes as (lead..., channel, patched...): the order in which patches are computed."""
        channel = () if self.channel is None else (self.channel,)
        return (*self.lead, *channel, *self.patched)


def _channel(axis: int | str | None, dims: Sequence[str]) -> int | None:
    if axis is None:
        return None
    if isinstance(axis, str):
        if axis not in dims:
            raise SettingError(f"channel_axis {axis!r} is none of the axes {tuple(dims)}")
        return list(dims).index(axis)
    try:
        return range(len(dims))[operator.index(axis)]
    except (IndexError, TypeError):
        raise SettingError(
            f"channel_axis {axis!r} is none of the {len(dims)} axes {tuple(dims)}"
        ) from None
