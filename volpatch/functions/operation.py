"""What is known of a ready-made function, so that nothing has to be tried out."""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from volpatch.core.errors import SettingError

Reach = Sequence[int] | int | None
_BUFFERS = 1.05  # lines and planes that a filter keeps on its way
MODES = ("reflect", "nearest", "mirror", "constant", "wrap")


@dataclass(frozen=True, slots=True)
class Parameter:
    """What a user may set.

    Parameters
    ----------
    name, help : str
    default : JSON value
    allowed : callable
        Whether a value can be.
    wanted : str
        Those that can, in words.
    """

    name: str
    default: Any
    help: str
    allowed: Callable[[Any], bool]
    wanted: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One ready-made function and what a user may set.

    Parameters
    ----------
    name : str
        What the user writes.
    function : callable
        `function(patch, **parameters)`; importable, so it pickles.
    summary : str
        One line for the help.
    parameters : tuple of Parameter
    returns : {"source", "float32", "bool"}
        The dtype of what it gives for a patch of the source's.
    stored : {"source", "float32", "bool"}, optional
        What the result is stored as when the user asks for nothing else; as it is, without.
    reach : callable, optional
        `reach(**parameters)`, all of them: how many voxels it looks to each side, for all axes or
        each of the array's; None where that is not bounded.
    memory : (int, int), optional
        What a call takes for each voxel of the patch, its result among it: bytes, and how many
        times those of the patch. Without it a trial call is measured.
    speed : float
        Millions of voxels in a second of one core, about: of uint16, with its defaults.
    """

    name: str
    function: Callable[..., Any]
    summary: str
    parameters: tuple[Parameter, ...] = ()
    returns: Literal["source", "float32", "bool"] = "source"
    stored: Literal["source", "float32", "bool"] | None = None
    reach: Callable[..., Reach] | None = None
    memory: tuple[int, int] | None = None
    speed: float = math.nan

    def bind(self, parameters: Mapping[str, object]) -> Callable[..., Any]:
        """Return the function with checked parameters filled in.

        Parameters
        ----------
        parameters : mapping of str to object
            By name; what is left out keeps its default.

        Returns
        -------
        callable
            Of one patch; picklable.
        """
        self.filled(parameters)
        return functools.partial(self.function, **parameters) if parameters else self.function

    def filled(self, parameters: Mapping[str, object]) -> dict[str, Any]:
        """All parameters: those given, checked, and the defaults of the others.

        Raises
        ------
        SettingError
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        for name, value in parameters.items():
            if name not in known:
                raise SettingError(
                    f"{self.name} has no parameter {name!r}{did_you_mean(name, known)}; "
                    f"it takes {', '.join(known) or 'none'}"
                )
            if not known[name].allowed(value):
                raise SettingError(f"{self.name}: {name}={value!r} must be {known[name].wanted}")
        return {name: parameter.default for name, parameter in known.items()} | dict(parameters)

    def reach_of(self, ndim: int, parameters: Mapping[str, object]) -> tuple[int, ...] | None:
        """Voxels to each side along the last `ndim` axes; None where it is not bounded."""
        filled = self.filled(parameters)
        found = None if self.reach is None else self.reach(**filled)
        if found is None:
            return None
        sizes = (found,) * ndim if isinstance(found, int) else tuple(found)[-ndim:]
        return sizes if len(sizes) == ndim else None  # the call says what is wrong

    def call_bytes(self, voxels: int, source: Any) -> int | None:
        """Bytes of a call on so many voxels of this dtype; None where that is not known."""
        if self.memory is None:
            return None
        fixed, copies = self.memory
        dtype = np.dtype(source)
        itemsize = 10 if dtype == np.float16 else dtype.itemsize  # filtered as float32, and back
        return int(voxels * (fixed + copies * itemsize) * _BUFFERS)

    def result(self, source: Any) -> np.dtype[Any]:
        """The dtype of what it gives for patches of this dtype."""
        return np.dtype(source if self.returns == "source" else self.returns)

    def output(self, source: Any) -> np.dtype[Any]:
        """The dtype that its result is stored as."""
        return np.dtype(source if self.kept == "source" else self.kept)

    @property
    def kept(self) -> str:
        """What the result is stored as, in the words of `stored`."""
        return self.stored or self.returns


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `": did you mean 'x'?"` where a known word is close, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f": did you mean {close[0]!r}?" if close else ""


# -- parameters that several have ----------------------------------------------------------


def listed(value: Any) -> list[Any]:
    """One value or several, as a list."""
    return list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value]


def is_number(value: Any) -> bool:
    """Whether it is a finite real number."""
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return real and math.isfinite(value)


def is_integer(value: Any) -> bool:
    """Whether it is a whole number, and written as one."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _are_widths(value: Any) -> bool:
    widths = listed(value)
    sound = all(is_number(width) and width >= 0 for width in widths)
    return sound and any(widths)


def _are_edges(value: Any) -> bool:
    edges = listed(value)
    return bool(edges) and all(is_integer(edge) and edge >= 1 and edge % 2 for edge in edges)


def sigma(name: str = "sigma", default: float = 1.0, help: str = "standard deviation") -> Parameter:
    """The width of a Gaussian."""
    return Parameter(
        name,
        default,
        f"{help} in voxels, or one per axis ({default})",
        _are_widths,
        "a number of voxels above 0, or one per axis, of which some may be 0",
    )


TRUNCATE = Parameter(
    "truncate",
    4.0,
    "cut-off in standard deviations (4.0)",
    lambda value: is_number(value) and value > 0,
    "a positive number of standard deviations",
)
MODE = Parameter(
    "mode",
    "reflect",
    f"beyond the patch: {', '.join(MODES)} (reflect)",
    lambda value: value in MODES,
    "one of " + ", ".join(MODES),
)
SIZE = Parameter(
    "size",
    3,
    "edge of the box in voxels, odd, or one per axis (3)",
    _are_edges,
    "an odd, positive number of voxels, or one per axis",
)


def number(name: str, default: float, help: str) -> Parameter:
    """Any finite number."""
    return Parameter(name, default, f"{help} ({default})", is_number, "a finite number")


def each(values: Any, reach: Callable[[Any], int]) -> Reach:
    """The reach for a parameter of one value, or of one per axis."""
    reaches = [reach(value) for value in listed(values)]
    return reaches if isinstance(values, Sequence) else reaches[0]


def gaussian_reach(sigma: Any, truncate: float, mode: str = "reflect") -> Reach:
    """How far a Gaussian of scipy's looks; around the whole volume where it is wrapped."""
    return None if mode == "wrap" else each(sigma, lambda width: int(truncate * width + 0.5))


def box_reach(size: Any) -> Reach:
    """How far a box looks."""
    return each(size, lambda edge: edge // 2)


def twice_box_reach(size: Any) -> Reach:
    """How far two boxes look, one after another."""
    return each(size, lambda edge: edge // 2 * 2)
