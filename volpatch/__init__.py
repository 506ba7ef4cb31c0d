"""Run a function over overlapping patches of a volume, and blend the results.

The public names are listed in `__init__.pyi`, for people, type checkers and this file alike. They
are resolved on first use, so that importing volpatch costs next to nothing.
"""

import os
from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def _places() -> dict[str, str]:
    """The module that each public name comes from, of lines `from MODULE import NAME as NAME`."""
    with open(os.path.join(__path__[0], "__init__.pyi"), encoding="utf-8") as listing:
        words = [line.split() for line in listing if line.startswith("from ")]
    return {name: place for _, place, _, name, _, _ in words}


_PLACE_OF = _places()
__all__ = ["__version__", *_PLACE_OF]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _PLACE_OF:
        raise AttributeError(f"module 'volpatch' has no attribute {name!r}")
    return getattr(import_module(_PLACE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
