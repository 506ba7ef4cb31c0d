"""What the cases of the differential test are made of: volumes, functions, options.

A case holds plain values only, so what a failing test prints can be pasted into a test of its own.
`drawing` draws cases, `brute_force` says what each must give, `test_differential` compares.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

Array = np.ndarray
Numbers = tuple[int, ...]

# -- functions -----------------------------------------------------------------------------
# deterministic in what is in the patch, so that no path can see another result than the others


def _real(patch: Array) -> Array:
    return patch.astype(np.result_type(patch, np.float32))


def _digest(patch: Array) -> int:
    """A number that tells patches apart: what lies in another one gives another number."""
    return zlib.crc32(np.ascontiguousarray(patch).tobytes())


def _every(patch: Array, n: int) -> Array:
    """True at every n-th voxel, which ones depends on the patch."""
    return (np.arange(patch.size).reshape(patch.shape) + _digest(patch)) % n == 0


def identity(patch):
    return patch


def numbered(patch):
    return np.full(patch.shape, _digest(patch) % 251, "float32")


def affine(patch):
    real = _real(patch)
    return real * real.dtype.type(0.5) + real.flat[-1] * real.dtype.type(0.25)


def channels(patch):
    real = _real(patch)
    return np.stack([real, -real / 2, numbered(patch).astype(real.dtype)])


def one_channel(patch):
    return affine(patch)[None]


def ends(patch):
    """Of the channels that were given, the first and the last, and the second's number."""
    return np.stack([patch[0], patch[-1], np.full_like(patch[0], _digest(patch) % 97)])


def mean_of_channels(patch):
    return _real(patch).mean(0)


def labels(patch):
    return (_every(patch, 3) * 7 + _digest(patch) % 1000 - 500).astype("int32")


def small_labels(patch):
    return (_every(patch, 2) + _digest(patch) % 200).astype("uint8")


def huge_labels(patch):
    return np.full(patch.shape, 2**63 + _digest(patch), "uint64")


def brighter(patch):
    return patch > patch.flat[0]


def halves(patch):
    return affine(patch).astype("float16")


def doubles(patch):
    return patch.astype("float64") * 1.1 - 3


def foreign(patch):
    return affine(patch).astype(">f4")


def in_place(patch):
    if patch.dtype == np.bool_:
        return np.logical_not(patch, out=patch)
    return np.add(patch, 1, out=patch, casting="unsafe")


def spoil(patch):
    result = affine(patch)
    patch[...] = 0
    return result


def holey(patch):
    return np.where(_every(patch, 5), np.float32("nan"), affine(patch))


def infinite(patch):
    result = affine(patch)
    result[_every(patch, 7)] = np.inf if _digest(patch) % 2 else -np.inf
    return result


def flipped(patch):
    return patch[..., ::-1]


def holey_channels(patch):
    return np.stack([holey(patch), np.where(_every(patch, 4), np.float32("nan"), -affine(patch))])


def half_largest(patch):
    real = _real(patch).dtype
    sign = 1 if _digest(patch) % 2 else -1
    return np.full(patch.shape, sign * (np.finfo(real).max / 2), real)


PLAIN = (identity, numbered, affine, doubles, halves, foreign, in_place, spoil, flipped)
ODD = (holey, infinite, half_largest)
LABELS = (labels, small_labels, huge_labels, brighter)
SEVERAL = (channels, one_channel, holey_channels)
WHOLE = (ends, mean_of_channels, identity, affine, in_place, holey)  # of a channel axis
FUNCTIONS = {f.__name__: f for f in (*PLAIN, *ODD, *LABELS, *SEVERAL, *WHOLE)}


@dataclass(frozen=True)
class Quiet:
    """The function of a case: of one patch, or of a batch."""

    name: str
    batched: bool = False

    def __call__(self, given: Array) -> Array:
        function = FUNCTIONS[self.name]
        with np.errstate(all="ignore"):
            return np.stack([function(p) for p in given]) if self.batched else function(given)


# -- windows, finalizers and skips ---------------------------------------------------------


def steep(n):
    """Underflows at a few voxels from the centre."""
    return np.exp(-((np.arange(n) - (n - 1) / 2) ** 2) * 90.0)


def huge(n):
    return np.linspace(1e305, 1e306, n)


def tiny(n):
    return np.linspace(1e-307, 1e-306, n)


def lopsided(n):
    return np.arange(n) + 1.0


def cut_off(n):
    """Nothing at the far end."""
    return np.array([*np.arange(n - 1, 0, -1.0), 0.0]) if n > 1 else np.ones(1)


def gap(n):
    """Nothing inside, which is refused."""
    weights = np.ones(n)
    weights[1:-1] = 0
    return weights


CALLABLE = {f.__name__: f for f in (steep, huge, tiny, lopsided, cut_off, gap)}
NAMED = ("constant", "hann", "triangle", "gaussian", "gaussian:0.4", "gaussian:2")


def halved(block):
    return block * np.float32(0.5)


def total(block):
    with np.errstate(all="ignore"):
        return block.sum(0)


def both(block):
    return np.stack([block, block]) if block.ndim else block


def brightest(block):
    """The channel with the largest value; what is NaN is never picked."""
    return np.where(np.isnan(block), -np.inf, block).argmax(0).astype("uint8")


FINALIZERS = {f.__name__: f for f in (halved, total, both, brightest)}


def mostly_dark(patch):
    return np.count_nonzero(patch > 40) < patch.size // 2


def some_by_content(patch):
    return _digest(patch) % 3 == 0


SKIPS = {f.__name__: f for f in (mostly_dark, some_by_content)}


# -- the case ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mask:
    """A mask over the patched axes.

    With `first` it has a place of its own: cells of `factor` voxels from voxel `first` on. Without,
    it is a bare array, and `factor` is what `mask_factor` says.
    """

    shape: Numbers
    share: float = 0.3
    seed: int = 0
    dtype: str = "bool"
    factor: Numbers | None = None
    first: Numbers | None = None

    def values(self) -> Array:
        rng = np.random.default_rng(self.seed)
        return (rng.random(self.shape) < self.share).astype(self.dtype)


AS_THEY_ARE = (
    *(
        "edge",
        "offset",
        "pad_mode",
        "pad_value",
        "reduce",
        "nan_policy",
        "fill_value",
        "input_dtype",
    ),
    *("batch_size", "channel_axis", "out_channels"),
)


@dataclass(frozen=True, repr=False)
class Case:
    """One volume, one function, and all that is said about it."""

    dims: tuple[str, ...]
    shape: Numbers
    patched: tuple[str, ...]
    patch: Numbers
    stride: Numbers
    function: str = "identity"
    dtype: str = "float32"
    content: str = "distinct"
    seed: int = 0
    channel_axis: str | None = None
    edge: tuple[str, ...] | None = None
    offset: Numbers | None = None
    pad_mode: str = "reflect"
    pad_value: float = 0
    window: tuple[str, ...] | None = None
    reduce: str = "mean"
    nan_policy: str = "propagate"
    fill_value: float | None = None
    out_dtype: str | None = None
    input_dtype: str | None = None
    batch_size: int | None = None
    mask: Mask | None = None
    skip: float | str | None = None
    roi: tuple[tuple[str, int, int], ...] = ()
    finalize: str | None = None
    out_channels: int | None = None
    by_name: bool = True
    as_overlap: bool = False

    def __repr__(self) -> str:
        said = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        ]
        return f"Case({', '.join(said)})"

    # -- roles of the axes

    @property
    def sizes(self) -> Numbers:
        return tuple(self.shape[self.dims.index(d)] for d in self.patched)

    @property
    def lead(self) -> tuple[str, ...]:
        return tuple(d for d in self.dims if d not in self.patched and d != self.channel_axis)

    @property
    def edges(self) -> tuple[str, ...]:
        return self.edge or ("shift",) * len(self.patched)

    @property
    def offsets(self) -> Numbers:
        return self.offset or (0,) * len(self.patched)

    @property
    def windows(self) -> tuple[str, ...]:
        default = "hann" if self.reduce == "mean" else "constant"
        return self.window or (default,) * len(self.patched)

    @property
    def crop(self) -> bool:
        return self.windows[0] == "crop"

    @property
    def spacing(self) -> dict[str, float]:
        """Voxel sizes along the axes that have one, where the volume has a place."""
        return dict(zip("zyx", (2.0, 0.5, 0.3), strict=True))

    @property
    def origin(self) -> dict[str, float]:
        return dict(zip("zyx", (10.0, -3.0, 0.125), strict=True))

    # -- what is given

    def volume(self) -> Array:
        rng = np.random.default_rng(self.seed)
        dtype, n = np.dtype(self.dtype).newbyteorder("="), math.prod(self.shape)
        if dtype.kind == "b":
            flat = rng.random(n) < 0.5
        elif dtype.kind == "f":
            flat = _floats(self.content, n, np.finfo(dtype), rng)
        else:
            flat = _integers(self.content, n, np.iinfo(dtype), self.most_exact, rng)
        return np.asarray(flat).astype(self.dtype).reshape(self.shape)

    @property
    def most_exact(self) -> int:
        """A magnitude up to which identity is exact, whatever the window."""
        visits = [-(-p // s) + 1 for p, s in zip(self.patch, self.stride, strict=True)]
        return 2**52 // (math.prod(visits) + sum(visits) + len(visits)) - 1

    def labelled(self, data: Any) -> xr.DataArray:
        coords = {
            d: self.origin[d] + self.spacing[d] * np.arange(n)
            for d, n in zip(self.dims, self.shape, strict=True)
            if d in self.spacing
        }
        return xr.DataArray(data, dims=self.dims, coords=coords, name="seen", attrs={"by": "us"})

    def labelled_mask(self) -> xr.DataArray:
        """The mask as an array with a place: centres of its cells in the volume's units."""
        mask = self.mask
        assert mask is not None
        assert mask.first is not None
        assert mask.factor is not None
        coords = {}
        for d, m, k, a in zip(self.patched, mask.shape, mask.factor, mask.first, strict=True):
            centres = a + k * np.arange(m) + (k - 1) / 2
            coords[d] = self.origin[d] + self.spacing[d] * centres
        return xr.DataArray(mask.values(), dims=self.patched, coords=coords)

    def called(self) -> Quiet:
        return Quiet(self.function, self.batch_size is not None)

    def said(self, mask: Any = None) -> dict[str, Any]:
        """The options in the words of `map_patches`; the mask as it is to be given."""
        said: dict[str, Any] = {"stride": self._spelled(self.stride)}
        if self.as_overlap:
            shared = tuple(p - s for p, s in zip(self.patch, self.stride, strict=True))
            said = {"overlap": self._spelled(shared)}
        if self.window is not None:
            said["window"] = self._spelled(tuple(CALLABLE.get(w, w) for w in self.window))
        said.update({name: getattr(self, name) for name in AS_THEY_ARE})
        said["dtype"] = self.out_dtype
        if self.mask is not None:
            said["mask"] = mask if mask is not None else self.mask.values()
            if self.mask.factor is not None and self.mask.first is None:
                said["mask_factor"] = self.mask.factor
        if self.skip is not None:
            said["skip"] = SKIPS[self.skip] if isinstance(self.skip, str) else self.skip
        if self.roi:
            said["roi"] = {name: slice(a, b) for name, a, b in self.roi}
        if self.finalize is not None:
            said["finalize"] = FINALIZERS[self.finalize]
        return {k: v for k, v in said.items() if v is not None}

    def said_patch(self) -> Any:
        return self._spelled(self.patch)

    def _spelled(self, values: tuple[Any, ...]) -> Any:
        return dict(zip(self.patched, values, strict=True)) if self.by_name else values


def _floats(content: str, n: int, info: Any, rng: Any) -> Array:
    small = float(info.smallest_subnormal)
    if content == "largest":
        return rng.choice([-1, 1], n) * (np.longdouble(info.max) / 2)
    if content == "smallest":
        return rng.choice([0.0, -0.0, small, -small, float(info.tiny), 1.0], n)
    if content == "wide":
        top = 4 if info.bits == 16 else 30
        return rng.choice([-1, 1], n) * 10.0 ** rng.uniform(-top, top, n)
    flat = (rng.permutation(n) + 1.5) * (0.25 if n < 8000 else 0.01)
    if content in ("nan", "infinite"):
        at = rng.random(n) < 0.08
        flat[at] = np.nan if content == "nan" else rng.choice([np.inf, -np.inf, np.nan], at.sum())
    return flat


def _integers(content: str, n: int, info: Any, most: int, rng: Any) -> Array:
    low, high = int(info.min), int(info.max)
    if content == "exact":
        low, high = max(low, -most), min(high, most)
        return rng.integers(max(low, high - 100), high, n, dtype=info.dtype, endpoint=True)
    if content == "largest":
        return np.array([low, high, high - 1], info.dtype)[rng.integers(0, 3, n)]
    if content == "wide":
        return rng.integers(low, high, n, dtype=info.dtype, endpoint=True)
    if content == "smallest":
        return rng.integers(0, 2, n).astype(info.dtype)
    top = min(high, 1000)
    return (rng.permutation(n) % top + (1 if high > n else 0)).astype(info.dtype)
