"""The options of a job: their names, what they mean, and one place that checks the names.

`volpatch.plan`, `volpatch.run`, `volpatch.map_patches` and the command all take these, in
this spelling. Sizes are in voxels, one for all patched axes or one each (a sequence, or a
mapping by axis name).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import DTypeLike

from volpatch.core.errors import SettingError
from volpatch.core.grid import Overlap
from volpatch.core.window import Window

Sizes = int | Sequence[int] | Mapping[str, int]


class BlendOptions(TypedDict, total=False):
    """What determines the voxels of a result."""

    stride: Sizes | None  # distance between patch starts
    overlap: Overlap | Sequence[Overlap] | Mapping[str, Overlap] | None  # 32, 0.5, "50%" (default)
    window: Window | Sequence[Window] | Mapping[str, Window] | None  # "hann" (default), …, "crop"
    edge: str | Sequence[str]  # "shift" (default), "pad", "drop"
    offset: Sizes  # start of the first patch
    batch_size: int | None  # patches per call, in a leading axis; None: one, without that axis
    dtype: DTypeLike | None  # of the output
    out_channels: int | None  # leading channels that the function returns
    input_dtype: DTypeLike | None  # given to the function, rounded; what does not fit is an error
    fill_value: float | None  # of voxels that no patch covers
    pad_mode: str  # "reflect" (default), "symmetric", "edge", "constant"
    pad_value: float  # for pad_mode="constant"
    mask: Any  # array or path, on the volume's grid or coarser; skips patches it is empty in
    mask_factor: Sizes | None  # voxels of a mask's cell, where its own place is not to tell
    skip: (
        Callable[[Any], Any] | float | None
    )  # skips patches by predicate, or whose maximum is less
    nan_policy: str  # "propagate" (default), "omit", "raise"
    reduce: str  # "mean" (default) blends; "sum", "max", "min"


class JobOptions(BlendOptions, total=False):
    """What a job on stored volumes needs besides."""

    patch: Sizes | None  # default 64, or the axis where it is shorter
    channel_axis: int | str | None  # handed whole to the function
    missing: str  # chunks that are not stored: "auto" (default), "fill", "error"
    roi: Any  # part of the result that is wanted: "z=0:64", slices, a mapping
    chunks: Sizes | None  # of the output
    shards: Sizes | None  # of the output, multiples of its chunks
    codec: str  # "zstd" (default), "zstd:LEVEL", "lz4", "none"; always with a checksum
    region: Sizes | None  # extent of one task; default: chosen to fit the memory limit
    memory_limit: int | str | None  # of all workers together; default: half of what is free
    func_memory: int | str | None  # of one running call; default: measured by a trial
    workers: int | None  # default: one per core
    backend: str  # "threads" (default) or "processes"
    concurrent_calls: int | None  # simultaneous calls of the function per process
    func_version: str | None  # of the function: compared in place of its code and what it carries
    depends_on: Sequence[str] | None  # files that the function reads, such as a model's weights
    fingerprint: str  # of the input's files: "sample" (default) of 1,000, or "full"


def plain(value: Any) -> Any:
    """A setting with the numbers of NumPy in it made Python's own; arrays are left alone.

    >>> plain({"fill_value": np.float32(2), "chunks": (np.int64(8), 4)})
    {'fill_value': 2.0, 'chunks': (8, 4)}
    """
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return {name: plain(each) for name, each in value.items()} if type(value) is dict else value


def check_names(given: Iterable[str], known: type) -> None:
    """Refuse options that do not exist, naming the nearest one that does."""
    names = sorted(
        name for base in known.__mro__ for name in getattr(base, "__annotations__", {})
    ) or sorted(known.__annotations__)
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
            raise SettingError(f"there is no option {name!r}; {hint}")
