"""Hand patches to the user's function, and check what it gives back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from volpatch.compute.blend import Finalize, finalized, name_of
from volpatch.compute.rounding import convert
from volpatch.core.blending import BlendSpec, is_numeric
from volpatch.core.box import Box
from volpatch.core.errors import FunctionError, SettingError, blamed

Array = NDArray[Any]
Place = tuple[tuple[int, ...], Box]  # lattice position of a patch, and its voxels
_OPEN = nullcontext()


class Call(Protocol):
    """The user's function, with its answers checked: see `Caller`."""

    def __call__(self, blending: BlendSpec, batch: Array, patch: Callable[[int], Place]) -> Array:
        """Values for a batch."""
        ...


@dataclass(frozen=True)
class Caller:
    """The user's function, with its answers checked.

    `gate` bounds how many calls of one process run at the same time. A function that counts
    on that may give back one buffer of its own each time, so it is copied before the next call.
    """

    function: Callable[[Array], Any]
    gate: AbstractContextManager[Any] | None = None

    def __call__(self, blending: BlendSpec, batch: Array, patch: Callable[[int], Place]) -> Array:
        """Values (B, *patch) or (B, channels, *patch) for a batch (B, channels, *patch).

        `patch(i)` says which patch is the i-th of the batch.

        Raises
        ------
        FunctionError
            Naming the patch, when the function raises, or gives back something that is no
            array of the expected shape and dtype.
        """
        given = batch if blending.channels_in is not None else batch[:, 0]
        single = blending.batch_size is None
        with self.gate or _OPEN:
            try:
                result = self.function(given[0] if single else given)
            except BaseException as error:
                if self._refuses(error):
                    raise
                raise blamed(error, self.name, f"on {_where(patch, len(batch))}") from error
            if self.gate is not None and isinstance(result, np.ndarray):
                # one that only this call holds, or that lies in what it was given, stays as it is
                alone = sys.getrefcount(result) <= 2 and result.flags.owndata
                if not alone and not np.may_share_memory(result, batch):
                    result = result.copy()
        problem = None
        if not _as_known(result, blending, len(batch)):
            problem = _problem(result, blending, len(batch))
        if problem:
            raise FunctionError(
                f"{self.name} returned {problem[0]} for {_where(patch, len(batch))}, "
                f"wanted {problem[1]}"
            )
        values = np.ascontiguousarray(result, result.dtype.newbyteorder("="))
        return values[None] if single else values

    @property
    def name(self) -> str:
        return f"the function {name_of(self.function)}"

    def _refuses(self, error: BaseException) -> bool:
        """Whether a ready-made operation refuses its settings, which no other patch will suit."""
        inner = getattr(self.function, "func", self.function)
        ours = str(getattr(inner, "__module__", "")).startswith("volpatch.functions.")
        return ours and isinstance(error, SettingError)


def _as_known(result: Any, blending: BlendSpec, count: int) -> bool:
    """Whether a function returned just what it did before: most calls need no other look."""
    if type(result) is not np.ndarray or blending.result_dtype is None:
        return False
    known = bool(result.dtype == blending.result_dtype)
    return known and result.shape == _known_shape(blending, count)


def _known_shape(blending: BlendSpec, count: int) -> tuple[int, ...]:
    """Of what the function returns for `count` patches, once it is known."""
    batched = () if blending.batch_size is None else (count,)
    own = () if blending.channels_out is None else (blending.channels_out,)
    return (*batched, *own, *blending.grid.patch)


def _problem(result: Any, blending: BlendSpec, count: int) -> tuple[str, str] | None:
    """What is wrong with what a function returned, and what was wanted; None if nothing."""
    if not isinstance(result, np.ndarray):
        tensor = hasattr(result, "cpu") or hasattr(result, "get")
        hint = " (a tensor becomes one by .cpu().numpy())" if tensor else ""
        kind = "None" if result is None else f"a {type(result).__module__}.{type(result).__name__}"
        return kind, f"a numpy array{hint}"
    if isinstance(result, np.ma.MaskedArray):
        return "a masked array", "a plain one (.filled(VALUE) says what masked voxels become)"
    if not is_numeric(result.dtype):
        return f"dtype {result.dtype}", "real numbers of up to 64 bits"
    known = blending.result_dtype
    if known is None:
        batched = () if blending.batch_size is None else (count,)
        plain = (*batched, *blending.grid.patch)
        channels = result.shape[len(batched) : len(batched) + 1]
        shapes = [plain, (*batched, *channels, *blending.grid.patch)]
        wanted = f"{plain}, or the same with channels {(*batched, 'C', *blending.grid.patch)}"
        if blending.channels_out is not None:
            shapes = [_known_shape(blending, count)]
            wanted = f"{shapes[0]}, as out_channels={blending.channels_out} says"
    else:
        shapes = [_known_shape(blending, count)]
        wanted = str(shapes[0])
    if result.shape not in shapes or 0 in result.shape:
        return f"shape {result.shape}", wanted
    if known is not None and result.dtype.newbyteorder("=") != known:
        return f"dtype {result.dtype}", f"{known} as for other patches"
    return None


def learn(blending: BlendSpec, values: Array, finalize: Finalize | None) -> BlendSpec:
    """The blending with what a first answer (B, [channels,] *patch) of the function tells."""
    if blending.result_dtype is None:
        has_channels = values.ndim == blending.grid.ndim + 2
        channels = values.shape[1] if has_channels else None
        blending = replace(blending, result_dtype=values.dtype, channels_out=channels)
    if finalize is None or blending.final_dtype is not None:
        return blending
    block = values[:1].reshape(blending.channels_out or 1, *blending.grid.patch)
    final, channels = finalized(finalize, blending, block.astype(blending.blended_dtype))
    return replace(blending, final_dtype=final.dtype, final_channels=channels)


def made_up(blending: BlendSpec) -> Array:
    """A batch that looks like patches: random, positive, no two voxels alike to speak of."""
    shape = (blending.batch_size or 1, blending.channels_in or 1, *blending.grid.patch)
    rng = np.random.default_rng(0)
    if blending.input_dtype.kind == "f":
        return rng.uniform(0.5, 1.5, shape).astype(blending.input_dtype)
    return rng.integers(1, 100, shape).astype(blending.input_dtype)


def learn_made_up(blending: BlendSpec, caller: Call, finalize: Finalize | None) -> BlendSpec:
    """The blending with what one call on a made-up batch tells; nothing is read for it."""
    if blending.complete:
        return blending
    grid = blending.grid
    position = (0,) * grid.ndim
    first = Box(position, grid.patch) if 0 in grid.lattice else grid.box(position)
    values = caller(blending, made_up(blending), lambda i: (position, first))
    return learn(blending, values, finalize)


def narrow(blending: BlendSpec, patch: Array, out: Array, place: Callable[[], Place]) -> None:
    """Write a patch (channels, *patch) as the function is given it; refuse what does not fit."""
    at = convert(patch, out)
    if at is None:
        return
    position, box = place()
    voxel = tuple(a + i for a, i in zip(box.start, at[1:], strict=True))
    raise SettingError(
        f"input_dtype={blending.input_dtype} cannot hold {patch[at]}, at voxel {voxel} of patch "
        f"{position} at {box}; choose one that holds all values of the source, {patch.dtype}, "
        f"or scale and clip them in the function"
    )


def _where(patch: Callable[[int], Place], count: int) -> str:
    position, box = patch(0)
    if count == 1:
        return f"patch {position} at {box}"
    last, last_box = patch(count - 1)
    return f"the batch of patches {position} at {box} to {last} at {last_box}"
