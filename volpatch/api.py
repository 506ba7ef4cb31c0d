"""What users call. The only place that asks what kind of array it was given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from volpatch.errors import SettingError
from volpatch.forms import by_axis, parse_roi
from volpatch.geometry import Overlap, PatchGrid
from volpatch.layout import Layout, default_dims
from volpatch.memory import map_array
from volpatch.recipe import Recipe, check_dtype
from volpatch.window import Window, windows_per_axis

Array = NDArray[Any]
Sizes = int | Sequence[int] | Mapping[str, int]


def make_recipe(
    layout: Layout,
    roi_shape: Sequence[int],
    source_dtype: Any,
    *,
    patch: Sizes,
    stride: Sizes | None = None,
    overlap: Overlap | Sequence[Overlap] | Mapping[str, Overlap] | None = None,
    window: Window | Sequence[Window] = "hann",
    edge: str | Sequence[str] = "shift",
    offset: Sizes = 0,
    batch_size: int | None = None,
    dtype: DTypeLike | None = None,
    out_channels: int | None = None,
    input_dtype: DTypeLike | None = None,
    fill: float | None = None,
    pad_mode: str = "reflect",
    pad_value: float = 0,
    finalizes: bool = False,
) -> Recipe:
    """The recipe that the user's words for one volume amount to."""
    dims = layout.patched_dims
    grid = PatchGrid(
        layout.patched_shape,
        by_axis(patch, dims, "patch"),
        by_axis(stride, dims, "stride"),
        overlap=by_axis(overlap, dims, "overlap"),
        edge=by_axis(edge, dims, "edge"),
        offset=by_axis(offset, dims, "offset"),
    )
    source = check_dtype(source_dtype, "the source's dtype")
    return Recipe(
        grid,
        windows_per_axis(by_axis(window, dims, "window"), grid.ndim),
        source,
        source if input_dtype is None else check_dtype(input_dtype, "input_dtype"),
        channels_in=None if layout.channel is None else roi_shape[layout.channel],
        batch_size=batch_size,
        channels_out=out_channels,
        dtype=None if dtype is None else check_dtype(dtype, "dtype"),
        finalizes=finalizes,
        fill=fill,
        pad_mode=pad_mode,
        pad_value=pad_value,
    )


def map_patches(
    func: Callable[[Array], Any],
    volume: Array,
    patch: Sizes,
    *,
    channel_axis: int | None = None,
    finalize: Callable[[Array], Array] | None = None,
    roi: Any = None,
    **options: Any,
) -> Array:
    """Run a function over overlapping patches of an array and blend the results.

    Parameters
    ----------
    func : callable
        `func(patch) -> patch`, or with `batch_size` `func(batch) -> batch` with a leading
        batch axis. It may return extra leading channels, and another dtype. It may write
        into what it is given, which is valid during the call only.
    volume : ndarray
        Real numbers, any number of axes, (z, y, x) last.
    patch : int or sequence of int
        Patch size in voxels; a sequence patches the last axes, a number all of them.
        Every index of the axes before is processed on its own.
    stride, overlap : int or fraction, or one per axis
        Distance between patch starts, or what neighbours share (default: "50%").
    window : {"hann", "triangle", "gaussian", "constant", "crop"}, callable, or one per axis
        How much a patch counts at each of its voxels. "crop" takes every voxel from the
        patch whose centre is nearest, and is the window for labels.
    edge : {"shift", "pad", "drop"}
        What happens where the stride does not divide the axis.
    dtype : dtype, optional
        Of the result; whole numbers are rounded half to even and clipped. Without it, the
        function's own. An integer result with a weighted window needs it.
    channel_axis : int, optional
        Axis that is handed whole to the function, before the patched axes.
    finalize : callable, optional
        Runs on blended blocks before they are rounded (argmax, threshold); pointwise.
    roi : slices, optional
        The part of the whole result that is wanted; the grid stays that of the volume.
    **options
        offset, batch_size, out_channels, input_dtype, fill, pad_mode, pad_value.

    Returns
    -------
    ndarray of the volume's shape (of the roi's, with `roi`); the function's channels come
    right before the patched axes.

    Raises
    ------
    GridError, SettingError
        Settings that cannot be, before anything is computed.
    FunctionError
        The function raised, or gave back something unusable; names patch and box.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.arange(30, dtype=np.float32).reshape(5, 6)
    >>> out = map_patches(lambda p: p + 1, image, patch=4, overlap="50%")
    >>> bool(np.allclose(out, image + 1))
    True
    """
    if not isinstance(volume, np.ndarray):
        raise SettingError(
            f"map_patches takes a numpy array, got {type(volume).__module__}."
            f"{type(volume).__name__}; numpy.asarray(volume) makes one"
        )
    dims = default_dims(volume.ndim)
    layout = Layout.of(dims, volume.shape, patch, channel_axis, named=False)
    box = parse_roi(roi, dims, volume.shape)
    recipe = make_recipe(
        layout, box.shape, volume.dtype, patch=patch, finalizes=finalize is not None, **options
    )
    return map_array(func, volume, layout, recipe, box, finalize)
