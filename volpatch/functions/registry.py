"""Ready-made functions for `--apply`: what there is, and what each of them takes."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from volpatch.core.errors import SettingError
from volpatch.functions.filters import (
    MODES,
    check_gaussian,
    check_median,
    check_normalize,
    gaussian,
    gaussian_reach,
    identity,
    median,
    median_reach,
    normalize,
)

__all__ = ["OPERATIONS", "Operation", "gaussian", "get", "identity", "median", "normalize"]


def _check_nothing() -> None:
    """Accept no parameters at all."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One ready-made function and what a user may set.

    Parameters
    ----------
    name : str
        What the user writes.
    function : callable
        `function(patch, **parameters)`; importable, so it pickles.
    dtype : {"source", "float32"}
        What the result is stored as when the user asks for nothing else.
    summary : str
        One line for the help.
    parameters : mapping of str to str
        Name of each parameter and its help.
    check : callable
        `check(**parameters)` raises SettingError for a bad value.
    reach : callable, optional
        `reach(**parameters)`: how many voxels it looks to each side, for all axes or each of the
        array's; None where that is not bounded.
    """

    name: str
    function: Callable[..., Any]
    dtype: Literal["source", "float32"]
    summary: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    check: Callable[..., None] = _check_nothing
    reach: Callable[..., Sequence[int] | int | None] | None = None

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
        for name in parameters:
            if name not in self.parameters:
                raise SettingError(
                    f"{self.name} has no parameter {name!r}{did_you_mean(name, self.parameters)}; "
                    f"it takes {', '.join(self.parameters) or 'none'}"
                )
        self.check(**parameters)
        return functools.partial(self.function, **parameters) if parameters else self.function

    def reach_of(self, ndim: int, parameters: Mapping[str, object]) -> tuple[int, ...] | None:
        """Voxels to each side along the last `ndim` axes; None where it is not bounded."""
        self.bind(parameters)
        found = None if self.reach is None else self.reach(**parameters)
        if found is None:
            return None
        sizes = (found,) * ndim if isinstance(found, int) else tuple(found)[-ndim:]
        return sizes if len(sizes) == ndim else None  # the call says what is wrong


OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (
        Operation(
            "identity",
            identity,
            "source",
            "the volume as it is: a test of the whole way",
            reach=lambda: 0,
        ),
        Operation(
            "gaussian",
            gaussian,
            "source",
            "Gaussian smoothing",
            {
                "sigma": "standard deviation in voxels, or one per axis (1.0)",
                "truncate": "cut-off in standard deviations (4.0)",
                "mode": f"beyond the patch: {', '.join(MODES)} (reflect)",
            },
            check_gaussian,
            gaussian_reach,
        ),
        Operation(
            "median",
            median,
            "source",
            "median of a box around each voxel",
            {"size": "edge of the box in voxels, odd, or one per axis (3)"},
            check_median,
            median_reach,
        ),
        Operation(
            "normalize",
            normalize,
            "float32",
            "mean 0 and variance 1 in every patch",
            {"epsilon": "relative deviation up to which a patch counts as constant (1e-6)"},
            check_normalize,
        ),
    )
}


def get(name: str) -> Operation:
    """Look an operation up by name.

    Parameters
    ----------
    name : str
        One of `OPERATIONS`.

    Returns
    -------
    Operation
        What goes by that name.
    """
    try:
        return OPERATIONS[name]
    except KeyError:
        raise SettingError(
            f"no ready-made operation is called {name!r}{did_you_mean(name, OPERATIONS)}; "
            f"there are {', '.join(OPERATIONS)}. A function of your own is written "
            "package.module:function or path/to/file.py:function"
        ) from None


def did_you_mean(word: str, known: Mapping[str, object]) -> str:
    """Return `": did you mean 'x'?"` where a known word is close, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f": did you mean {close[0]!r}?" if close else ""
