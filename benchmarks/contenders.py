"""One adapter for each way to cut, call and blend an array in memory.

Each is called as its own documentation shows, with its softest window, and returns a
function without arguments that does the whole of it; `merging` does the blending alone,
of patches that are views of the volume.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import volpatch
from benchmarks.setting import Setting
from benchmarks.task import CannotError

Array = NDArray[Any]
Function = Callable[[Any], Any]
Run = Callable[[], Any]


def single(setting: Setting) -> None:
    if setting.threads > 1:
        raise CannotError("one thread only")


# -- volpatch ------------------------------------------------------------------------------


def _volpatch(window: str) -> Callable[[Array, Setting, Function], Run]:
    def run(array: Array, setting: Setting, func: Function) -> Any:
        return volpatch.map_patches(
            func,
            array,
            setting.patch,
            stride=setting.stride,
            window=window,
            dtype="float32",
            workers=setting.threads,
        )

    return lambda array, setting, func: lambda: run(array, setting, func)


def volpatch_merge(array: Array, setting: Setting) -> Run:
    single(setting)
    grid = volpatch.PatchGrid(array.shape, setting.patch, setting.stride)
    patches = volpatch.extract(array, grid)
    return lambda: volpatch.merge(patches, grid)


def volpatch_merger(array: Array, setting: Setting) -> Run:
    single(setting)
    grid = volpatch.PatchGrid(array.shape, setting.patch, setting.stride)

    def run() -> Any:
        merger = volpatch.Merger(grid)
        for index, box in enumerate(grid):
            merger.add(index, array[box.slices])
        return merger.result()

    return run


# -- a loop with NumPy ---------------------------------------------------------------------


def numpy_loop(array: Array, setting: Setting, func: Function) -> Run:
    """What people write themselves: a sum, a weight volume, a division."""
    single(setting)

    def run() -> Any:
        window = setting.hann()
        total, weight = np.zeros(array.shape, np.float32), np.zeros(array.shape, np.float32)
        for box in setting.boxes(array.shape):
            total[box] += window * func(array[box])
            weight[box] += window
        return total / weight

    return run


# -- MONAI ---------------------------------------------------------------------------------


def monai(array: Array, setting: Setting, func: Function, batch: int = 4) -> Run:
    """Weights what the function gives back in place, so a batch of 1, a view, would not do."""
    import torch
    from monai.inferers import SlidingWindowInferer

    torch.set_num_threads(setting.threads)
    if array.dtype != np.float32:
        raise CannotError(f"{array.dtype} input refused (blends floats)")
    inferer = SlidingWindowInferer(
        roi_size=setting.patch,
        sw_batch_size=batch,
        overlap=tuple(1 - s / p for s, p in zip(setting.stride, setting.patch, strict=True)),
        mode="gaussian",
    )

    def run() -> Any:
        with torch.inference_mode():
            return inferer(torch.from_numpy(array)[None, None], func)[0, 0].numpy()

    return run


def monai_merge(array: Array, setting: Setting) -> Run:
    import torch
    from monai.inferers import AvgMerger

    torch.set_num_threads(setting.threads)
    tensor = torch.from_numpy(array)[None, None]

    def run() -> Any:
        merger = AvgMerger(merged_shape=tensor.shape)
        for corner, box in zip(
            setting.corners(array.shape), setting.boxes(array.shape), strict=True
        ):
            merger.aggregate(tensor[(..., *box)], corner)
        return merger.finalize()[0, 0].numpy()

    return run


# -- TorchIO -------------------------------------------------------------------------------


def torchio(array: Array, setting: Setting, func: Function, batch: int = 4) -> Run:
    import torch
    import torchio as tio

    torch.set_num_threads(setting.threads)

    def run() -> Any:
        subject = tio.Subject(image=tio.ScalarImage(tensor=torch.from_numpy(array)[None]))
        sampler = tio.GridSampler(subject, setting.patch, setting.overlap)
        aggregator = tio.GridAggregator(sampler, overlap_mode="hann")
        with torch.inference_mode():
            for group in tio.SubjectsLoader(sampler, batch_size=batch):
                aggregator.add_batch(func(group["image"][tio.DATA]), group[tio.LOCATION])
        return aggregator.get_output_tensor()[0].numpy()

    return run


def torchio_merge(array: Array, setting: Setting) -> Run:
    import torch
    import torchio as tio

    torch.set_num_threads(setting.threads)
    tensor = torch.from_numpy(array)[None]
    subject = tio.Subject(image=tio.ScalarImage(tensor=tensor))
    sampler = tio.GridSampler(subject, setting.patch, setting.overlap)
    corners = list(setting.corners(array.shape))
    places = [torch.tensor([[*c, *np.add(c, setting.patch).tolist()]]) for c in corners]

    def run() -> Any:
        aggregator = tio.GridAggregator(sampler, overlap_mode="hann")
        for place, box in zip(places, setting.boxes(array.shape), strict=True):
            aggregator.add_batch(tensor[(None, slice(None), *box)], place)
        return aggregator.get_output_tensor()[0].numpy()

    return run


# -- tiler ---------------------------------------------------------------------------------


def tiler(array: Array, setting: Setting, func: Function) -> Run:
    from tiler import Merger, Tiler

    single(setting)

    def run() -> Any:
        tiles = Tiler(array.shape, setting.patch, overlap=setting.overlap)
        merger = Merger(tiles, window="hann", save_visits=False)
        for index, tile in tiles(array):
            merger.add(index, func(tile))
        return merger.merge()

    return run


def tiler_merge(array: Array, setting: Setting) -> Run:
    from tiler import Merger, Tiler

    single(setting)
    tiles = Tiler(array.shape, setting.patch, overlap=setting.overlap)

    def run() -> Any:
        merger = Merger(tiles, window="hann", save_visits=False)
        for index, box in enumerate(setting.boxes(array.shape)):
            merger.add(index, array[box])
        return merger.merge()

    return run


# -- patchly -------------------------------------------------------------------------------


def patchly(array: Array, setting: Setting, func: Function) -> Run:
    from patchly import Aggregator, GridSampler

    single(setting)

    def run() -> Any:
        sampler = GridSampler(
            image=array,
            spatial_size=array.shape,
            patch_size=setting.patch,
            step_size=setting.stride,
        )
        aggregator = Aggregator(sampler, output_size=array.shape, weights="gaussian")
        for patch, box in sampler:
            aggregator.append(func(patch), box)
        return aggregator.get_output()

    return run


# -- those that do not weight --------------------------------------------------------------


def empatches(array: Array, setting: Setting, func: Function) -> Run:
    """Its average is a running one, (old + new) / 2, so the last patches weigh most."""
    from empatches import EMPatches

    single(setting)
    patch, stride = setting.one_size("empatches")

    def run() -> Any:
        tool = EMPatches()
        patches, places = tool.extract_patches(array, patch, stride=stride, vox=True)
        return tool.merge_patches([func(p) for p in patches], places, mode="avg")

    return run


def patchify(array: Array, setting: Setting, func: Function) -> Run:
    """Each voxel is that of one patch; patches that would be overwritten are left out."""
    from patchify import patchify as cut
    from patchify import unpatchify

    single(setting)
    patch, stride = setting.one_size("patchify")
    if any((n - patch) % stride for n in array.shape):
        raise CannotError("the stride does not divide")

    def run() -> Any:
        patches = cut(array, (patch,) * array.ndim, step=stride)
        done = np.empty(patches.shape, patches.dtype)
        for place in np.ndindex(patches.shape[: array.ndim]):
            done[place] = func(patches[place])
        return unpatchify(done, array.shape)

    return run


def tileflow(array: Array, setting: Setting, func: Function) -> Run:
    """Tiles of (y, x) with all of z in them; it keeps their cores, and scales values to [0, 1]."""
    from tileflow import TileFlow

    single(setting)
    top = float(2 ** np.ceil(np.log2(array.max())))

    class Stream:
        def read_raster(self, level: int, channels: Any) -> Array:
            return array

    def run() -> Any:
        tool = TileFlow(setting.patch[1:], setting.overlap[1:], consider_mask=False)
        for z in range(len(array)):
            tool.add_channel(z, rescale_range=(0, top))
        tool.setup(0, lambda tile, spec: func(tile))
        return tool.run(Stream()) * np.float32(top)

    return run


def scikit_image(array: Array, setting: Setting, func: Function) -> Run:
    import skimage  # noqa: F401

    raise CannotError("cuts (view_as_windows), does not merge")


def scikit_learn(array: Array, setting: Setting, func: Function) -> Run:
    import sklearn  # noqa: F401

    raise CannotError("2-D images only; see the dense case")


WHOLE: dict[str, Callable[[Array, Setting, Function], Run]] = {
    "volpatch": _volpatch("hann"),
    "volpatch gaussian": _volpatch("gaussian"),
    "NumPy loop": numpy_loop,
    "MONAI": monai,
    "TorchIO": torchio,
    "tiler": tiler,
    "patchly": patchly,
    "empatches (running mean)": empatches,
    "patchify (overwrites)": patchify,
    "tileflow (keeps cores)": tileflow,
    "scikit-image": scikit_image,
    "scikit-learn": scikit_learn,
}
MERGING: dict[str, Callable[[Array, Setting], Run]] = {
    "volpatch": volpatch_merge,
    "volpatch Merger": volpatch_merger,
    "MONAI AvgMerger (mean)": monai_merge,
    "TorchIO": torchio_merge,
    "tiler": tiler_merge,
}
