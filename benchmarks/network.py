"""A small torch module on the CPU, batched: what the machinery costs around a network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import volpatch
from benchmarks import contenders, data
from benchmarks.harness import Job, Question
from benchmarks.in_memory import text, visits
from benchmarks.setting import Setting
from benchmarks.task import CannotError, Figures, Task


@dataclass(frozen=True)
class Size:
    shape: tuple[int, int, int] = (192, 192, 192)
    patch: int = 64
    stride: int = 48
    batch: int = 4
    width: int = 8
    threads: int = 2
    runs: int = 3


FULL = Size()
SMALL = Size((24, 24, 24), 12, 9, 2, 2, 1, 1)


def network(width: int) -> Any:
    """Two hidden layers of 3³ kernels, seeded."""
    import torch

    torch.manual_seed(0)
    layers = [
        torch.nn.Conv3d(1, width, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv3d(width, width, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv3d(width, 1, 3, padding=1),
    ]
    return torch.nn.Sequential(*layers).eval()


def task(
    name: str,
    shape: tuple[int, int, int],
    patch: int,
    stride: int,
    batch: int,
    width: int,
    threads: int,
) -> Task:
    import torch

    torch.set_num_threads(threads)
    net = network(width)
    setting = Setting((patch,) * 3, (stride,) * 3, threads)
    array = data.volume(shape) / np.float32(2000)

    def on_arrays(patches: Any) -> Any:
        with torch.inference_mode():
            return net(torch.from_numpy(patches)[:, None])[:, 0].numpy()

    def make(volume: Any) -> Any:
        if name == "volpatch":
            return lambda: volpatch.map_patches(
                on_arrays,
                volume,
                patch,
                stride=setting.stride,
                window="gaussian",
                batch_size=batch,
            )
        if name == "network alone":
            return lambda: alone(volume)
        if name == "MONAI":
            return contenders.monai(volume, setting, net, batch)
        if name == "TorchIO":
            return contenders.torchio(volume, setting, net, batch)
        raise CannotError("no batches")

    def alone(volume: Any) -> Any:
        """As often as patches, on one batch that stays where it is."""
        corner = volume[None, :patch, :patch, :patch]
        ready = np.ascontiguousarray(np.repeat(corner, batch, axis=0))
        for _ in range(-(-len(list(setting.corners(volume.shape))) // batch)):
            on_arrays(ready)

    def check(result: Any) -> Figures:
        """How far from the network on a whole part; patches end where the volume does not."""
        if result is None:
            return {}
        part = array[tuple(slice(2 * patch) for _ in shape)]
        whole = on_arrays(np.ascontiguousarray(part)[None])[0]
        inner = (slice(4, -patch // 2),) * 3
        return {
            "error": float(
                np.abs(result[: 2 * patch, : 2 * patch, : 2 * patch][inner] - whole[inner]).max()
            )
        }

    tiny = np.ascontiguousarray(array[(slice(patch),) * 3])
    return Task(make(array), make(tiny), check)


def questions(size: Size) -> Iterator[Question]:
    stride = (size.stride,) * 3
    work = visits(size.shape, (size.patch,) * 3, stride)
    words = {
        "shape": size.shape,
        "patch": size.patch,
        "stride": size.stride,
        "batch": size.batch,
        "width": size.width,
        "threads": size.threads,
    }
    jobs = [
        Job(name, "benchmarks.network:task", {"name": name, **words}, work)
        for name in ("volpatch", "MONAI", "TorchIO", "network alone")
    ]
    title = (
        f"Torch module (3 convolutions 3³, {size.width} channels) on the CPU: {text(size.shape)}, "
        f"patch {size.patch}³, stride {size.stride}³, batches of {size.batch}, "
        f"{size.threads} threads"
    )
    yield Question(title, jobs, threads=size.threads, runs=size.runs)
