"""What determines the voxels of a result, whoever computes them, wherever and in what order.

A `BlendSpec` is the grid, the windows and the dtypes on the way: source -> what the function
is given -> what it returns -> the accumulator -> the output. The lazy path, the in-memory
path and the store-to-store path all follow the same one and so give the same bits.
"""

from __future__ import annotations

import enum
import math
import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np

from volpatch.core.errors import GridError, SettingError
from volpatch.core.grid import REACH, PatchGrid
from volpatch.core.options import check_choice
from volpatch.core.window import Window, check_window

# visits of a voxel x magnitude of a value that float32 sums still round right for whole numbers
FLOAT32_LIMIT = 2**22
FLOAT_MAGNITUDE = 2**16
FLOAT32_AXES = 5
# of small patches that are cut at a time: they are in cache still when the function gets them
TOGETHER_BYTES = 2**19
# of shares that are looked up at a time along the axis that is streamed
TABLE_BYTES = 2**19
# that `finalize` is given at a time, to bound what it makes of them
FINALIZE_PLANES = 8

DType = np.dtype[Any]


def rows_at_once(patch: int) -> int:
    """Patches along one axis whose shares are small beside all else."""
    return max(1, TABLE_BYTES // (8 * patch))


class Mode(enum.Enum):
    """What happens to a value at a voxel."""

    ADD = "its share of it is added"
    SELECT = "it is taken if the voxel is in the patch's own part"
    PRESENT = "like ADD, counting the shares that came"
    NEAREST = "it is taken if no nearer patch gave one"
    MAX = "it is kept if it is the largest"
    MIN = "it is kept if it is the smallest"


def is_numeric(dtype: DType) -> bool:
    """Whether values of a dtype can be blended: real numbers of up to 64 bits.

    >>> [is_numeric(np.dtype(name)) for name in ("bool", "float16", "complex64", "object")]
    [True, True, False, False]
    """
    return dtype.kind in "biuf" and dtype.itemsize <= 8


def check_dtype(dtype: Any, what: str) -> DType:
    """A native-endian numeric dtype, or an error that says what there is."""
    try:
        found: DType = np.dtype(dtype).newbyteorder("=")
    except TypeError:
        raise SettingError(f"{what} {dtype!r} is no dtype; write for example uint16") from None
    if not is_numeric(found):
        raise SettingError(
            f"{what} {found} is not supported; there are bool, int8 to int64, uint8 to uint64, "
            f"float16, float32 and float64"
        )
    return found


def plain_number(value: Any) -> Any:
    """A number of any kind as Python's own, which compares exactly and goes into JSON.

    >>> plain_number(np.uint64(2**64 - 1)), plain_number(np.float32(0.5)), plain_number("a")
    (18446744073709551615, 0.5, 'a')
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def holds_all(dtype: DType, other: DType) -> bool:
    """Whether no value of another dtype is beyond the range of this one.

    >>> holds_all(np.dtype("float32"), np.dtype("uint16"))
    True
    >>> holds_all(np.dtype("float16"), np.dtype("uint16"))
    False
    """
    if dtype == other or other.kind == "b":
        return True
    if dtype.kind == "b" or (dtype.kind != "f" and other.kind == "f"):
        return False
    if dtype.kind == "f":
        largest = np.finfo(other).max if other.kind == "f" else np.iinfo(other).max
        return float(largest) <= float(np.finfo(dtype).max)
    own, its = np.iinfo(dtype), np.iinfo(other)
    return bool(own.min <= its.min and its.max <= own.max)


def check_number(value: Any, dtype: DType, what: str) -> None:
    """Refuse a value that is no number, or that the dtype cannot hold."""
    number = plain_number(value)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise SettingError(f"{what} must be a number, got {value!r}")
    if dtype.kind == "f":
        largest = float(np.finfo(dtype).max)
        if largest < abs(number) < math.inf:
            raise SettingError(
                f"{what} {value!r} cannot be held by {dtype}: its largest value is {largest:.6g}; "
                f"choose another dtype"
            )
        return
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if not low <= number <= high or number % 1:
        raise SettingError(
            f"{what} {value!r} cannot be held by {dtype}: it must be a whole number from {low} to "
            f"{high}, or choose another dtype"
        )


@dataclass(frozen=True, slots=True)
class BlendSpec:
    """How patches are cut, handed over and blended.

    Attributes
    ----------
    grid : PatchGrid over the patched axes.
    windows : one per axis; "crop" on all or on none.
    source_dtype, input_dtype : of the volume, and of what the function is given.
    channels_in : length of the axis that is handed whole to the function; None without one.
    batch_size : patches per call in a leading axis; None hands over single patches.
    result_dtype, channels_out : what the function returns; None until it is known
        (`channels_out` stays None for a function that returns no channel axis).
    dtype : of the output where it was asked for.
    finalizes, final_dtype, final_channels : whether, and to what, `finalize` changes a block.
    fill_value : of voxels that no patch covers.
    pad_mode, pad_value : how patches that hang over the end (edge="pad") are filled.
    reduce : "mean" blends; "sum", "max" and "min" of all values at a voxel.
    nan_policy : what a NaN that the function returns does: "propagate", "omit", "raise".
    may_skip : whether patches may be skipped, by a mask or by what is in them.
    """

    grid: PatchGrid
    windows: tuple[Window, ...]
    source_dtype: DType
    input_dtype: DType
    channels_in: int | None = None
    batch_size: int | None = None
    result_dtype: DType | None = None
    channels_out: int | None = None
    dtype: DType | None = None
    finalizes: bool = False
    final_dtype: DType | None = None
    final_channels: int | None = None
    fill_value: float | None = None
    pad_mode: str = "reflect"
    pad_value: float = 0
    reduce: str = "mean"
    nan_policy: str = "propagate"
    may_skip: bool = False

    def __post_init__(self) -> None:
        for name in ("fill_value", "pad_value"):
            object.__setattr__(self, name, plain_number(getattr(self, name)))
        if self.batch_size is not None and self.batch_size < 1:
            raise SettingError(f"batch_size must be at least 1, got {self.batch_size}")
        for name in ("pad_mode", "reduce", "nan_policy"):
            check_choice(name, getattr(self, name))
        self._check_reduction()
        if self.averages:
            for axis, window in zip(self.grid.axes, self.windows, strict=True):
                check_window(axis, window)
        uncovered, shape = self.grid.uncovered, self.grid.shape
        if uncovered and self.fill_value is None:
            raise GridError(
                f"no patch covers {uncovered} of the {math.prod(shape)} voxels "
                f"(patch {self.grid.patch}, stride {self.grid.stride}, offset {self.grid.offset}, "
                f"edge {self.grid.edge[0]!r}); give fill_value=VALUE for them, or a grid "
                f"that covers all"
            )
        check_number(self.pad_value, self.source_dtype, "pad_value")
        if self.fill_value is not None:
            dtype = self.out_dtype if self.complete or self.dtype else np.dtype(np.float64)
            check_number(self.fill_value, dtype, "fill_value")
        if self.result_dtype is not None:
            self._check_labels(self.result_dtype)

    def _check_reduction(self) -> None:
        if self.reduce != "mean" and any(w != "constant" for w in self.windows):
            raise SettingError(
                f"reduce={self.reduce!r} weighs all values alike; leave window out, or say "
                f"window='constant' (got {self.windows[0]!r})"
            )

    def _check_labels(self, result: DType) -> None:
        if result.kind not in "biu" or not self.averages or self.dtype is not None:
            return
        raise SettingError(
            f"the function returns {result}, and window={self.windows[0]!r} would average it: "
            f"averaged labels are other labels. For class labels use window='crop'; for "
            f"intensities that may be rounded say dtype='{result}'. Instance ids of separate "
            f"patches collide under any window: blend probabilities or flows instead, and "
            f"label the blended volume"
        )

    @property
    def crop(self) -> bool:
        """Whether voxels are selected from one patch each instead of being blended."""
        return self.windows[0] == "crop"

    @property
    def averages(self) -> bool:
        """Whether values are weighted by shares."""
        return self.reduce == "mean" and not self.crop

    @property
    def omits(self) -> bool:
        return self.nan_policy == "omit" and self.known_result.kind == "f"

    @property
    def together(self) -> int:
        """Patches that are cut at a time: a batch, or some that are small."""
        if self.batch_size is not None:
            return self.batch_size
        patch = (self.channels_in or 1) * math.prod(self.grid.patch) * self.input_dtype.itemsize
        return max(1, TOGETHER_BYTES // patch)

    @property
    def mode(self) -> Mode:
        """What happens to each value at its voxel."""
        missing = self.may_skip or self.nan_policy == "omit"
        if self.crop:
            return Mode.NEAREST if missing else Mode.SELECT
        if self.reduce in ("max", "min"):
            return Mode.MAX if self.reduce == "max" else Mode.MIN
        return Mode.PRESENT if missing else Mode.ADD

    @property
    def owns(self) -> bool:
        """Whether a patch gives values to its own part only."""
        return self.mode is Mode.SELECT

    @property
    def by_blocks(self) -> bool:
        """Whether blocks with a margin are computed, each voxel from the block it lies in."""
        return self.owns and self.grid.axes[0].edge == REACH

    @property
    def narrows(self) -> bool:
        """Whether a value may not fit what the function is given, so that each is looked at."""
        return not holds_all(self.input_dtype, self.source_dtype)

    @property
    def halves(self) -> bool:
        """Whether to or from float16 is cast, which the kernels cannot do while cutting."""
        one = (self.source_dtype == np.float16) != (self.input_dtype == np.float16)
        return one and not self.narrows

    @property
    def cut_dtype(self) -> DType:
        """In which patches are cut: as the function gets them, unless they are looked at first."""
        return self.source_dtype if self.narrows else self.input_dtype

    @property
    def accumulator(self) -> DType:
        """Where shares x values are summed; grid and the function's dtype alone decide."""
        result = self.known_result
        if self.mode is Mode.SELECT:
            return result
        if self.crop or self.reduce in ("max", "min"):  # float16 cannot be compared there
            return np.dtype(np.float32) if result == np.float16 else result
        if result.kind == "f":
            magnitude = FLOAT_MAGNITUDE if result.itemsize <= 4 else FLOAT32_LIMIT + 1
        elif result.kind == "b":
            magnitude = 1
        else:
            limits = np.iinfo(result)
            magnitude = max(int(limits.max), -int(limits.min))
        single = self.grid.most_visits * magnitude <= FLOAT32_LIMIT
        # shares are at least about 2**-20 along each axis: more of them vanish in float32
        single &= self.grid.ndim <= FLOAT32_AXES
        return np.dtype(np.float32 if single else np.float64)

    @property
    def known_result(self) -> DType:
        """The function's dtype; before it is known, the widest it is likely to be."""
        if self.result_dtype is not None:
            return self.result_dtype
        return np.result_type(self.input_dtype, np.float32)

    @property
    def complete(self) -> bool:
        """Whether it is known what the function, and `finalize` after it, return."""
        return self.result_dtype is not None and (
            not self.finalizes or self.final_dtype is not None
        )

    @property
    def blended_dtype(self) -> DType:
        """Of the blended values that `finalize` is given."""
        result = self.known_result
        return result if self.crop else np.result_type(result, np.float32)

    @property
    def out_dtype(self) -> DType:
        """Of the output: as declared, else what `finalize` or the function returns."""
        found = self.dtype or self.final_dtype or self.known_result
        if self.reduce == "sum" and not self.dtype and not self.final_dtype and found.kind in "biu":
            return np.dtype(np.uint64 if found.kind in "bu" else np.int64)
        return found

    @property
    def out_channels(self) -> int | None:
        """Channels of the output; None without a channel axis."""
        return self.final_channels if self.finalizes else self.channels_out

    @property
    def filling(self) -> float:
        """Of voxels without a value: `fill_value`; else 0, or NaN where NaNs were left out."""
        if self.fill_value is not None:
            return self.fill_value
        return float("nan") if self.omits and self.out_dtype.kind == "f" else 0
