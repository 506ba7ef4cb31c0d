"""In memory, identity through the ordinary function path: what cutting and blending cost."""

from __future__ import annotations

import numpy as np

import volpatch
from benchmarks.harness import alternate, table


def volume(n: int) -> np.ndarray:
    """Smooth structure plus noise, float32."""
    rng = np.random.default_rng(1)
    z, y, x = np.ogrid[:n, :n, :n]
    smooth = np.sin(z / 17.0) + np.cos(y / 23.0) * np.sin(x / 11.0)
    return (100 * smooth + rng.standard_normal((n, n, n), dtype=np.float32)).astype(np.float32)


def monai(array: np.ndarray, patch: int, overlap: float) -> object:
    """The fastest blending peer: Gaussian mode, one patch at a time, one thread."""
    import torch
    from monai.inferers import SlidingWindowInferer

    torch.set_num_threads(1)
    inferer = SlidingWindowInferer(
        roi_size=(patch,) * 3, sw_batch_size=1, overlap=overlap, mode="gaussian"
    )
    with torch.inference_mode():
        return inferer(torch.from_numpy(array)[None, None], lambda batch: batch)


def main(n: int = 256, patch: int = 64, runs: int = 5) -> str:
    array = volume(n)
    stride = patch // 2
    grid = volpatch.PatchGrid(array.shape, patch, stride)
    visits = len(grid) * patch**3 / 1e6
    timings = alternate(
        {
            "volpatch hann": lambda: volpatch.map_patches(
                lambda p: p, array, patch, stride=stride, window="hann"
            ),
            "volpatch gaussian": lambda: volpatch.map_patches(
                lambda p: p, array, patch, stride=stride, window="gaussian"
            ),
            "MONAI gaussian": lambda: monai(array, patch, 0.5),
        },
        runs,
    )
    title = f"cut + identity + merge in memory: {n}^3 float32, patch {patch}, stride {stride}"
    return table(title, timings, visits, "Mvisit/s", against="volpatch hann")
