"""A made-up specimen to try volpatch on, and the run that shows what volpatch does with it.

The specimen is a noisy light-sheet volume of cells, fibres and vessels.
Every voxel is a function of its position and the seed alone: cells sit on a jittered lattice and
noise comes from hashing coordinates, so a volume of any size is made slab by slab, in slabs of any
height, without a list of what is in it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from volpatch.compute.compiled import compiled
from volpatch.core.errors import SettingError, TargetError
from volpatch.core.options import DEFAULT_CODEC
from volpatch.core.parse import parse_bytes, show_bytes
from volpatch.functions.named import FunctionSpec
from volpatch.planning.plan import Plan
from volpatch.report.progress import show_seconds
from volpatch.report.report import RunReport
from volpatch.running.api import run
from volpatch.storage.compressors import Codec
from volpatch.storage.ngff import multiscales
from volpatch.storage.open import open_source

SPACING_UM = (2.0, 0.5, 0.5)
_CELL_UM = 18.0  # the lattice of cells; one reaches at most half of it
_VESSEL_UM = 110.0  # the lattice of vessels, across z
_FIBRE_UM = 45.0  # the lattice of fibres, across x
_OFFSET = 100.0  # what the camera gives without light, in counts
_GAIN = 6.0  # counts for a photon: a dim exposure, so the shot noise is plain to see
_READ_NOISE = 6.0  # standard deviation, in counts


def specimen_slabs(
    shape: Sequence[int],
    seed: int = 0,
    *,
    spacing_um: Sequence[float] = SPACING_UM,
    noise: bool = True,
    planes: int = 32,
) -> Iterator[tuple[int, NDArray[np.uint16]]]:
    """Make the specimen from its first plane to its last.

    Parameters
    ----------
    shape : sequence of int
        Voxels along z, y, x.
    seed : int
        The same seed gives the same specimen; 0 to 2**31 - 1.
    spacing_um : sequence of float
        Voxel size along z, y, x; structures keep their size in micrometres.
    noise : bool
        False leaves out the shot and read noise.
    planes : int
        Height of a slab; it has no influence on the voxels.

    Yields
    ------
    tuple of (int, ndarray)
        Number of the slab's first plane, and its planes: (≤ planes, y, x) uint16, in counts.
    """
    _check(shape, seed, spacing_um, planes)
    depth, height, width = (int(n) for n in shape)
    steps = np.array(spacing_um, np.float64)
    for start in range(0, depth, planes):
        slab = np.empty((min(planes, depth - start), height, width), np.uint16)
        _render(slab, start, seed, steps, noise)
        yield start, slab


def write_specimen(
    path: str | os.PathLike[str],
    shape: Sequence[int],
    *,
    seed: int = 0,
    spacing_um: Sequence[float] = SPACING_UM,
    noise: bool = True,
) -> Path:
    """Write the specimen as OME-Zarr 0.5; it gets its name when it is complete.

    Parameters
    ----------
    path : str or path
        Folder to make; it must not exist.
    shape : sequence of int
        Voxels along z, y, x.
    seed, spacing_um, noise
        As in `specimen_slabs`.

    Returns
    -------
    Path
        The folder; its array is `0`, uint16, in chunks of at most (32, 256, 256).
    """
    target = Path(path)
    if target.exists():
        raise TargetError(f"{str(target)!r} exists already; choose another name, or remove it")
    chunks = tuple(min(n, edge) for n, edge in zip(shape, (32, 256, 256), strict=True))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as work:
        folder = Path(work) / "data"
        group = zarr.create_group(str(folder), zarr_format=3)
        group.attrs["ome"] = multiscales(
            name=target.name.removesuffix(".zarr").removesuffix(".ome"),
            dims=("z", "y", "x"),
            units=("micrometer",) * 3,
            datasets=[("0", tuple(spacing_um), (0.0, 0.0, 0.0))],
        )
        array = group.create_array(
            "0",
            shape=tuple(shape),
            chunks=chunks,
            dtype=np.uint16,
            compressors=Codec.parse(DEFAULT_CODEC).for_metadata(2),
            dimension_names=("z", "y", "x"),
        )
        slabs = specimen_slabs(shape, seed, spacing_um=spacing_um, noise=noise, planes=chunks[0])
        for start, slab in slabs:
            array[start : start + len(slab)] = slab
        folder.rename(target)
    return target


# bigger than the memory that the run is given: 640 MiB against 600
DEMO_SHAPE = (320, 1024, 1024)
DEMO_LIMIT = "600MiB"
DEMO_PATCH = 64
# planes are 2 um apart, four times as far as pixels: smoothing is within a plane only
_SMOOTHING = {"sigma": [0.0, 0.8, 0.8], "truncate": 3.0}
_SPECIMEN, _RESULT, _PICTURE = "specimen.ome.zarr", "denoised.ome.zarr", "demo.png"
_DEMO_MARKER = "volpatch-demo.json"
_JUDGED_PLANES = 4


def demo(
    folder: str | os.PathLike[str] = "volpatch-demo",
    *,
    shape: Sequence[int] = DEMO_SHAPE,
    patch: int = DEMO_PATCH,
    memory_limit: int | str = DEMO_LIMIT,
    overwrite: bool = False,
    progress: str = "auto",
    tell: Callable[[object], None] = print,
) -> RunReport:
    """Make a specimen bigger than the memory allowed, denoise it, and say what came out.

    Parameters
    ----------
    folder : path
        Where it all goes: made if it is not there, and refused if something else is in it.
    shape : sequence of int
        Of the specimen, (z, y, x).
    patch : int
        Patches overlap by half, and are blended with a Hann window.
    memory_limit : int or str
        As in `volpatch.run`.
    overwrite : bool
        Replace an earlier demo.
    progress : str
        As in `volpatch.run`.
    tell : callable
        Is given what is to be read, piece by piece.

    Returns
    -------
    RunReport
        Of the run.
    """
    place = Path(folder)
    _prepare(place, overwrite=overwrite)
    specimen, result = place / _SPECIMEN, place / _RESULT
    size = int(np.prod([int(n) for n in shape])) * 2
    tell(
        f"making a noisy light-sheet specimen of {show_bytes(size)}, which the run may not hold: "
        f"it gets {show_bytes(parse_bytes(memory_limit))} for everything"
    )
    begin = time.perf_counter()
    write_specimen(specimen, shape)
    tell(f"made {specimen} in {show_seconds(time.perf_counter() - begin)}\n")
    plans: list[Plan] = []

    def announce(plan: Plan) -> None:
        plans.append(plan)
        tell(plan)

    report = run(
        _smoothing(),
        specimen,
        result,
        patch=patch,
        overlap="50%",
        window="hann",
        memory_limit=memory_limit,
        overwrite=overwrite,
        progress=progress,
        announce=announce,
    )
    tell(report)
    tell(f"\n{_judged(specimen, result, plans[-1])}")
    pictured = _pictured(place, plans[-1])
    tell(_what_next(specimen, result, pictured))
    return report


def _prepare(folder: Path, *, overwrite: bool) -> None:
    """A folder that is ours, with room for a new specimen; nothing of others is touched."""
    if folder.exists() and not folder.is_dir():
        raise TargetError(f"{str(folder)!r} is not a folder; choose another place for the demo")
    marker = folder / _DEMO_MARKER
    if folder.is_dir() and any(folder.iterdir()):
        if not marker.is_file():
            raise TargetError(
                f"{str(folder)!r} is not empty, and no earlier demo; choose another folder"
            )
        if not overwrite:
            raise TargetError(
                f"{str(folder)!r} holds an earlier demo; pass overwrite=True to "
                "make it afresh, or choose another folder"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        marker.write_text(json.dumps({"volpatch_demo": 1}) + "\n", encoding="utf-8")
        if (folder / _SPECIMEN).is_dir():
            shutil.rmtree(folder / _SPECIMEN)
    except OSError as error:
        raise TargetError(f"{str(folder)!r} cannot be used for the demo: {error}") from None


def _judged(specimen: Path, result: Path, plan: Plan) -> str:
    """How far the noise fell, and whether the borders of patches show, on a slab in the middle."""
    source, output = open_source(specimen), open_source(result)
    start = max(0, source.shape[0] // 2 - _JUDGED_PLANES // 2)
    slab = slice(start, min(start + _JUDGED_PLANES, source.shape[0]))
    noisy, smooth = (volume[slab].astype(np.float32) for volume in (source, output))
    clean = np.empty(noisy.shape, np.uint16)
    _render(clean, start, 0, np.array(source.spacing, np.float64), False)
    ideal = _smoothing().load()(clean)
    before, after, blurred = _rms(noisy, clean), _rms(smooth, ideal), _rms(smooth, clean)
    border, elsewhere = _steps(smooth, [n for n in plan.blending.grid.starts[2] if n])
    return "\n".join(
        [
            f"noise     {before:.1f} counts (rms) before, {after:.1f} after: "
            f"{before / max(after, 1e-9):.1f} times less; {blurred:.1f} with what smoothing blurs",
            f"seams     neighbouring voxels differ by {border:.2f} counts across patch borders and "
            f"by {elsewhere:.2f} elsewhere: {border / max(elsewhere, 1e-9):.2f} times as much",
        ]
    )


def _smoothing() -> FunctionSpec:
    return FunctionSpec.parse("gaussian", _SMOOTHING)


def _rms(values: NDArray[Any], truth: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean((values - truth.astype(np.float32)) ** 2)))


def _steps(volume: NDArray[np.float32], borders: Sequence[int]) -> tuple[float, float]:
    """Mean difference of neighbours along x: across the borders, and everywhere else."""
    steps = np.abs(np.diff(volume, axis=2)).mean(axis=(0, 1), dtype=np.float64)
    across = np.zeros(len(steps), np.bool_)
    across[[border - 1 for border in borders]] = True
    if across.all() or not across.any():  # a specimen of one patch
        return float(steps.mean()), float(steps.mean())
    return float(steps[across].mean()), float(steps[~across].mean())


def _pictured(folder: Path, plan: Plan) -> Path | None:
    """The picture, if something that draws is installed."""
    if find_spec("matplotlib") is None:
        return None
    from volpatch.report.plot import planes

    path = folder / _PICTURE
    planes(open_source(folder / _SPECIMEN), open_source(folder / _RESULT), path, plan=plan)
    return path


def _what_next(specimen: Path, result: Path, picture: Path | None) -> str:
    look = (
        f"look at {picture}"
        if picture is not None
        else 'for a picture: pip install "volpatch[viz]"'
    )
    xarray = f'xarray.open_datatree("{result}", engine="zarr", consolidated=False)["scale0/image"]'
    return "\n".join(
        [
            f"\nnext      {look}",
            f"          volpatch info {result}",
            f"          volpatch plan {specimen} --patch 96 --overlap 25% --memory-limit 1GiB",
            f"          napari --plugin napari-ome-zarr {result}",
            f"          in Python: {xarray}",
        ]
    )


def _check(shape: Sequence[int], seed: int, spacing_um: Sequence[float], planes: int) -> None:
    if len(shape) != 3 or any(n < 1 for n in shape):
        raise SettingError(f"shape={tuple(shape)} must be three positive numbers (z, y, x)")
    if len(spacing_um) != 3 or not all(0 < step < 1e6 for step in spacing_um):
        raise SettingError(
            f"spacing_um={tuple(spacing_um)} must be three positive numbers (z, y, x)"
        )
    if not 0 <= seed < 2**31:
        raise SettingError(f"seed={seed} must be an integer from 0 to {2**31 - 1}")
    if planes < 1:
        raise SettingError(f"planes={planes} must be at least 1")


@compiled
def _hash(seed: int, a: int, b: int, c: int) -> Any:
    """64 well-mixed bits of four integers (uint64)."""
    h = np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15)
    for part in (a, b, c):
        h = (h ^ np.uint64(part)) * np.uint64(0xBF58476D1CE4E5B9)
        h ^= h >> np.uint64(29)
    h *= np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(32))


@compiled
def _uniform(bits: Any, k: int) -> Any:
    """Number k (0 to 3) in [0, 1) out of 64 bits."""
    return float((bits >> np.uint64(16 * k)) & np.uint64(0xFFFF)) / 65536.0


@compiled
def _render(slab: Any, start: int, seed: int, steps: Any, noise: bool) -> None:
    """Fill a slab (planes, y, x) of uint16 whose first plane is number `start`."""
    light = np.empty(slab.shape[1:], np.float32)
    for k in range(slab.shape[0]):
        z = start + k
        _background(light, z * steps[0], steps)
        _fibres(light, z * steps[0], seed, steps)
        _vessels(light, z * steps[0], seed, steps)
        _cells(light, z * steps[0], seed, steps)
        if noise:
            _expose_noisy(slab[k], light, z, seed)
        else:
            _expose(slab[k], light)


@compiled
def _background(light: Any, z: float, steps: Any) -> None:
    """Slow haze in counts, brighter towards the middle of long waves along y and x."""
    along_x = np.empty(light.shape[1], np.float32)
    for x in range(light.shape[1]):
        along_x[x] = 1.0 + 0.35 * np.sin(x * steps[2] / 71.0 + 0.4)
    for y in range(light.shape[0]):
        level = np.float32(
            120.0 + 50.0 * np.sin(y * steps[1] / 93.0 + 1.1) + 30.0 * np.cos(z / 57.0)
        )
        for x in range(light.shape[1]):
            light[y, x] = level * along_x[x]


@compiled
def _blob(
    light: Any, y: float, x: float, ry: float, rx: float, depth: float, level: float, steps: Any
) -> None:
    """Paint one plane of a soft ellipsoid; `depth` is the squared distance along z, in radii."""
    spread_y, spread_x = ry * np.sqrt(1.0 - depth), rx * np.sqrt(1.0 - depth)
    y0 = max(0, int(np.ceil((y - spread_y) / steps[1])))
    y1 = min(light.shape[0], int(np.floor((y + spread_y) / steps[1])) + 1)
    x0 = max(0, int(np.ceil((x - spread_x) / steps[2])))
    x1 = min(light.shape[1], int(np.floor((x + spread_x) / steps[2])) + 1)
    for row in range(y0, y1):
        dy = (row * steps[1] - y) / ry
        for column in range(x0, x1):
            dx = (column * steps[2] - x) / rx
            inside = 1.0 - depth - dy * dy - dx * dx
            if inside > 0.0:  # a soft rim, then flat
                value = np.float32(level * min(1.0, 2.5 * inside))
                light[row, column] = max(light[row, column], value)


@compiled
def _cells(light: Any, z: float, seed: int, steps: Any) -> None:
    """Paint the cells of the lattice layers that reach this plane: a body with a bright nucleus."""
    layer = int(np.floor(z / _CELL_UM))
    rows = int(light.shape[0] * steps[1] / _CELL_UM) + 2
    columns = int(light.shape[1] * steps[2] / _CELL_UM) + 2
    for i in range(layer - 1, layer + 2):
        for j in range(-1, rows):
            for k in range(-1, columns):
                first, second = _hash(8 * seed, i, j, k), _hash(8 * seed + 1, i, j, k)
                if _uniform(first, 3) > 0.62:  # an empty site
                    continue
                radius = _CELL_UM * (0.28 + 0.2 * _uniform(second, 0))
                centre_z = (i + 0.3 + 0.4 * _uniform(first, 0)) * _CELL_UM
                y = (j + 0.2 + 0.6 * _uniform(first, 1)) * _CELL_UM
                x = (k + 0.2 + 0.6 * _uniform(first, 2)) * _CELL_UM
                ry, rx = radius * (0.7 + 0.3 * _uniform(second, 1)), radius
                level = 300.0 + 900.0 * _uniform(second, 2)
                depth = ((z - centre_z) / radius) ** 2
                if depth < 1.0:
                    _blob(light, y, x, ry, rx, depth, level, steps)
                if depth < 0.25:
                    _blob(light, y, x, 0.5 * ry, 0.5 * rx, 4.0 * depth, 2.6 * level, steps)


@compiled
def _vessels(light: Any, z: float, seed: int, steps: Any) -> None:
    """Paint tubes that wind along z: a bright wall round a dim bore."""
    rows = int(light.shape[0] * steps[1] / _VESSEL_UM) + 2
    columns = int(light.shape[1] * steps[2] / _VESSEL_UM) + 2
    for j in range(-1, rows):
        for k in range(-1, columns):
            bits = _hash(8 * seed + 2, 0, j, k)
            turn = 6.2832 * _uniform(bits, 0)
            y = (j + 0.5 + 0.3 * np.sin(z / 61.0 + turn)) * _VESSEL_UM
            x = (k + 0.5 + 0.3 * np.cos(z / 83.0 + 2.0 * turn)) * _VESSEL_UM
            radius = 5.0 + 9.0 * _uniform(bits, 1)
            _ring(light, y, x, radius, 700.0 + 500.0 * _uniform(bits, 2), steps)


@compiled
def _ring(light: Any, y: float, x: float, radius: float, level: float, steps: Any) -> None:
    y0 = max(0, int(np.ceil((y - radius) / steps[1])))
    y1 = min(light.shape[0], int(np.floor((y + radius) / steps[1])) + 1)
    x0 = max(0, int(np.ceil((x - radius) / steps[2])))
    x1 = min(light.shape[1], int(np.floor((x + radius) / steps[2])) + 1)
    for row in range(y0, y1):
        dy = (row * steps[1] - y) / radius
        for column in range(x0, x1):
            dx = (column * steps[2] - x) / radius
            reach = dy * dy + dx * dx
            if reach < 1.0:
                wall = max(0.0, 1.0 - ((reach - 0.7) / 0.3) ** 2)
                light[row, column] = np.float32(40.0 + level * wall)


@compiled
def _fibres(light: Any, z: float, seed: int, steps: Any) -> None:
    """Paint thin fibres that wind along x through this plane."""
    layer = int(np.floor(z / _FIBRE_UM))
    rows = int(light.shape[0] * steps[1] / _FIBRE_UM) + 2
    for i in range(layer - 1, layer + 2):
        for j in range(-1, rows):
            bits = _hash(8 * seed + 3, i, j, 0)
            turn, radius = 6.2832 * _uniform(bits, 0), 1.2 + 2.3 * _uniform(bits, 1)
            level = 350.0 + 450.0 * _uniform(bits, 2)
            for column in range(light.shape[1]):
                x = column * steps[2]
                dz = (z - (i + 0.5 + 0.4 * np.sin(x / 97.0 + turn)) * _FIBRE_UM) / radius
                if dz * dz >= 1.0:
                    continue
                y = (j + 0.5 + 0.4 * np.sin(x / 53.0 + 3.0 * turn)) * _FIBRE_UM
                _stroke(light, column, y, radius, dz * dz, level, steps[1])


@compiled
def _stroke(
    light: Any, column: int, y: float, radius: float, depth: float, level: float, step: float
) -> None:
    spread = radius * np.sqrt(1.0 - depth)
    first = max(0, int(np.ceil((y - spread) / step)))
    last = min(light.shape[0], int(np.floor((y + spread) / step)) + 1)
    for row in range(first, last):
        dy = (row * step - y) / radius
        value = np.float32(level * (1.0 - depth - dy * dy))
        light[row, column] = max(light[row, column], value)


@compiled
def _expose(plane: Any, light: Any) -> None:
    """Add the offset, and round."""
    for y in range(plane.shape[0]):
        for x in range(plane.shape[1]):
            plane[y, x] = np.uint16(light[y, x] + np.float32(_OFFSET + 0.5))


@compiled
def _expose_noisy(plane: Any, light: Any, z: int, seed: int) -> None:
    """Add the offset, shot noise (variance = gain * light) and read noise.

    The sum of four uniform numbers out of one hash stands for a normal one: variance 1/3, and
    nothing beyond 3.5 standard deviations.
    """
    scale = np.float32(np.sqrt(3.0) / 65536.0)
    for y in range(plane.shape[0]):
        row = _hash(8 * seed + 4, z, y, 0)
        for x in range(plane.shape[1]):
            h = (row + np.uint64(x)) * np.uint64(0xBF58476D1CE4E5B9)
            h = (h ^ (h >> np.uint64(31))) * np.uint64(0x94D049BB133111EB)
            h ^= h >> np.uint64(30)
            mask = np.uint64(0xFFFF)
            total = (h & mask) + ((h >> np.uint64(16)) & mask)
            total += ((h >> np.uint64(32)) & mask) + (h >> np.uint64(48))
            normal = (np.float32(np.int64(total)) - np.float32(131070.0)) * scale
            width = np.sqrt(np.float32(_GAIN) * light[y, x] + np.float32(_READ_NOISE**2))
            counts = light[y, x] + np.float32(_OFFSET + 0.5) + width * normal
            plane[y, x] = np.uint16(max(counts, np.float32(0.0)))
