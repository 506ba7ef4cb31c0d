"""One adapter for each way from a Zarr volume to a blended Zarr volume."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import volpatch
from benchmarks.overlapped import BlendBlock
from benchmarks.setting import Setting
from benchmarks.task import Figures

Array = NDArray[Any]
Sizes = tuple[int, int, int]
Run = Callable[[], Any]


@dataclass(frozen=True)
class Order:
    """What is to be done, in plain words that travel to another process."""

    shape: Sizes
    patch: int
    overlap: float
    dtype: str
    function: str
    chunks: Sizes
    shards: Sizes | None
    block: Sizes  # what dask and cubed compute at once
    workers: int
    memory_limit: str

    @property
    def setting(self) -> Setting:
        stride = self.patch - round(self.patch * self.overlap)
        return Setting((self.patch,) * 3, (stride,) * 3)

    @property
    def func(self) -> Callable[[Array], Array]:
        return {"identity": same, "gaussian": smooth}[self.function]

    def target(self, path: Path) -> Any:
        return target(path, self.shape, self.chunks, np.dtype(self.dtype), self.shards)


def target(
    path: Path, shape: Sequence[int], chunks: Sequence[int], dtype: Any, shards: Any = None
) -> Any:
    """An empty array for the result, with the codecs that volpatch writes."""
    import zarr

    from volpatch.core.options import DEFAULT_CODEC
    from volpatch.storage.compressors import Codec

    return zarr.create_array(
        path,
        shape=tuple(shape),
        chunks=tuple(min(c, n) for c, n in zip(chunks, shape, strict=True)),
        shards=shards,
        dtype=dtype,
        compressors=Codec.parse(DEFAULT_CODEC).for_metadata(np.dtype(dtype).itemsize),
        overwrite=True,
    )


def same(patch: Array) -> Array:
    return patch


def smooth(patch: Array) -> Array:
    from scipy.ndimage import gaussian_filter

    out: Array = gaussian_filter(patch.astype(np.float32, copy=False), 1.0)
    return out


def checked(result: Any, order: Order, source: Path, own: Path) -> Figures:
    """Compare with the input, or with the filter on a whole part, away from the faces."""
    import zarr

    figures: Figures = {"blend": result if isinstance(result, str) else "hann"}
    if isinstance(result, volpatch.RunReport):
        figures["predicted MiB"] = f"{result.predicted_bytes / 2**20:,.0f}"
        figures["redundancy"] = f"{result.redundancy:.2f}"
        image = zarr.open_group(own / "out", mode="r")
        made = image[image.attrs["ome"]["multiscales"][0]["datasets"][0]["path"]]
    else:
        made = zarr.open_array(own / "out", mode="r")
    given = zarr.open_array(source, mode="r")
    part = tuple(slice(0, min(n, 2 * order.patch)) for n in order.shape)
    got = np.asarray(made[(0,) * (made.ndim - 3) + part], np.float32)
    wanted = order.func(np.asarray(given[part], np.float32))
    inner = (slice(order.patch // 2, -order.patch // 2),) * 3
    if order.function == "identity":
        inner = (slice(1, -1),) * 3
    return {"error": float(np.abs(got[inner] - wanted[inner]).max()), **figures}


def unchecked(result: Any, order: Order, source: Path, own: Path) -> Figures:
    """A copy blends nothing."""
    return {}


# -- the limit -----------------------------------------------------------------------------


def _copy(*, durable: bool) -> Callable[[Order, Path, Path], Run]:
    """Every chunk (or shard) read and written once by zarr."""

    def make(order: Order, source: Path, own: Path) -> Run:
        import zarr

        unit = order.shards or order.chunks
        corners = [range(0, n, c) for n, c in zip(order.shape, unit, strict=True)]

        def run() -> None:
            given = zarr.open_array(source, mode="r")
            made = order.target(own / "out")

            def one(corner: tuple[int, ...]) -> None:
                box = tuple(slice(a, a + c) for a, c in zip(corner, unit, strict=True))
                made[box] = given[box]
                if durable:
                    key = "/".join(str(a // c) for a, c in zip(corner, unit, strict=True))
                    with open(own / "out" / "c" / key, "rb") as file:
                        os.fsync(file.fileno())

            with ThreadPoolExecutor(order.workers) as pool:
                list(pool.map(one, itertools.product(*corners)))

        return run

    return make


def tensorstore(order: Order, source: Path, own: Path) -> Run:
    """The copy of a library in C++, as far as it is from Zarr to Zarr: what there is to win."""
    import tensorstore as ts

    def run() -> None:
        order.target(own / "out")
        context = {"data_copy_concurrency": {"limit": order.workers}}

        def opened(path: Path) -> Any:
            spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
            return ts.open({**spec, "context": context}, open=True).result()

        given, made = opened(source), opened(own / "out")
        made.write(given).result()

    return run


# -- volpatch ------------------------------------------------------------------------------


LITTLE = "800MiB"  # about a third of what dask takes for the same blend of 1024³


def _volpatch(durability: Any, limit: str | None = None) -> Callable[[Order, Path, Path], Run]:
    def make(order: Order, source: Path, own: Path) -> Run:
        return lambda: volpatch.run(
            order.func,
            source,
            own / "out",
            patch=order.patch,
            stride=order.setting.stride[0],
            dtype=order.dtype,
            chunks=order.chunks,
            shards=order.shards,
            workers=order.workers,
            memory_limit=limit or order.memory_limit,
            durability=durability,
            overwrite=True,
        )

    return make


# -- blocks with halos ---------------------------------------------------------------------


def dask(order: Order, source: Path, own: Path) -> Run:
    """Blocks of whole chunks with a halo; patches inside looped and blended."""
    import dask
    import dask.array as da

    blend = BlendBlock(order.setting, order.shape, order.block, order.func, order.dtype)

    def run() -> None:
        made = order.target(own / "out")
        blocks = da.from_zarr(str(source), chunks=order.block)
        done = da.map_overlap(
            blend,
            blocks,
            depth=dict(enumerate(blend.depth)),
            boundary="none",
            trim=False,
            allow_rechunk=False,
            dtype=order.dtype,
            chunks=blocks.chunks,
            meta=np.empty((0, 0, 0), order.dtype),
        )
        with dask.config.set(scheduler="threads", num_workers=order.workers):
            done.to_zarr(made)

    return run


def cubed(order: Order, source: Path, own: Path) -> Run:
    import cubed
    from cubed.array.overlap import map_overlap

    blend = BlendBlock(order.setting, order.shape, order.block, order.func, order.dtype)

    def run() -> None:
        spec = cubed.Spec(
            work_dir=str(own),
            allowed_mem=order.memory_limit.replace("i", ""),
            executor_name="threads",
            executor_options={"max_workers": order.workers},
        )
        blocks = cubed.from_zarr(str(source), spec=spec).rechunk(order.block)
        done = map_overlap(
            blend,
            blocks,
            dtype=np.dtype(order.dtype),
            chunks=blocks.chunks,
            depth=dict(enumerate(blend.depth)),
            boundary="none",
            trim=False,
        )
        made = order.target(own / "out")
        cubed.store([done], [made])

    return run


# -- patch by patch ------------------------------------------------------------------------


def patchly(order: Order, source: Path, own: Path) -> Run:
    """Chunked; its chunks must be larger than a patch."""
    import zarr

    # it asks for the array type where zarr 2 had it
    zarr.core.Array = zarr.Array  # type: ignore[attr-defined]
    from patchly import Aggregator, GridSampler

    # it sums in the output's dtype, where the softer weights of uint16 would all be 0
    weights = "gaussian" if np.issubdtype(np.dtype(order.dtype), np.floating) else "avg"
    chunks = tuple(min(n, 2 * order.patch) for n in order.shape)

    def run() -> str:
        given = zarr.open_array(source, mode="r")
        sampler = GridSampler(
            image=given,
            spatial_size=order.shape,
            patch_size=order.setting.patch,
            step_size=order.setting.stride,
            chunk_size=chunks,
        )
        aggregator = Aggregator(sampler, output=order.target(own / "out"), weights=weights)
        for patch, box in sampler:
            aggregator.append(order.func(patch), box)
        aggregator.get_output()
        return "mean" if weights == "avg" else weights

    return run


def monai(order: Order, source: Path, own: Path) -> Run:
    """ZarrAvgMerger: sum and count are stores, which every patch reads and writes."""
    import torch
    import zarr
    from monai.inferers import ZarrAvgMerger

    torch.set_num_threads(order.workers)

    def run() -> str:
        given = zarr.open_array(source, mode="r")
        merger = ZarrAvgMerger(
            merged_shape=(1, 1, *order.shape),
            dtype=order.dtype,
            store=str(own / "out"),
            value_store=str(own / "sum"),
            count_store=str(own / "count"),
            chunks=(1, 1, *order.chunks),
        )
        setting = order.setting
        corners = setting.corners(order.shape)
        for corner, box in zip(corners, setting.boxes(order.shape), strict=True):
            patch = order.func(np.asarray(given[box], np.float32))
            merger.aggregate(torch.from_numpy(patch)[None, None], corner)
        merger.finalize()
        return "mean"

    return run


CONTENDERS: dict[str, Callable[[Order, Path, Path], Run]] = {
    "copy by tensorstore": tensorstore,
    "copy": _copy(durable=False),
    "copy, fsync": _copy(durable=True),
    "volpatch": _volpatch("process"),
    "volpatch, fsync": _volpatch("full"),
    f"volpatch, {LITTLE}": _volpatch("process", LITTLE),
    "dask map_overlap": dask,
    "cubed map_overlap": cubed,
    "patchly": patchly,
    "MONAI ZarrAvgMerger": monai,
}
SHARDS = (
    "copy by tensorstore",
    "copy",
    "copy, fsync",
    "volpatch",
    "volpatch, fsync",
    "dask map_overlap",
)
