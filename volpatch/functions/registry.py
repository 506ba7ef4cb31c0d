"""Ready-made functions for `--apply`, by name."""

from __future__ import annotations

from volpatch.core.errors import SettingError
from volpatch.functions.filters import edges, pointwise, rank, smooth
from volpatch.functions.operation import Operation, did_you_mean

OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for module in (pointwise, smooth, rank, edges)
    for operation in module.OPERATIONS
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
