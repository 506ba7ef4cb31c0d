"""The one table of axes: what they are called, in which order they stand, what each is.

made up d0, d1, ...   t      c         any other   z      y      x
of an array without   time   channel   (an angle,  space  space  space
names                                  say)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from volpatch.core.errors import SettingError

ROLES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
POSITIONAL = tuple(ROLES)
SPATIAL = tuple(dim for dim, role in ROLES.items() if role == "space")
CHANNELS = "c"
_MADE_UP = "d"


def default_dims(ndim: int) -> tuple[str, ...]:
    """Names for the axes of an array that has none: the last are (t, c,) z, y, x.

    >>> default_dims(2), default_dims(4), default_dims(6)
    (('y', 'x'), ('c', 'z', 'y', 'x'), ('d0', 't', 'c', 'z', 'y', 'x'))
    """
    extra = tuple(f"{_MADE_UP}{i}" for i in range(ndim - len(POSITIONAL)))
    return (*extra, *POSITIONAL[-ndim:])[-ndim:] if ndim else ()


def in_order(dims: Sequence[str]) -> tuple[int, ...]:
    """Numbers of some axes in the order of the table; those it does not know keep theirs.

    >>> in_order(("x", "angle", "c", "y", "t")), in_order(default_dims(6))
    ((4, 2, 1, 3, 0), (0, 1, 2, 3, 4, 5))
    """
    return tuple(sorted(range(len(dims)), key=lambda axis: (_rank(dims[axis]), axis)))


def _rank(dim: str) -> int:
    if dim not in ROLES:
        made_up = dim[:1] == _MADE_UP and dim[1:].isdecimal()
        return -1 if made_up else POSITIONAL.index(CHANNELS) + 1
    place = POSITIONAL.index(dim)
    return place if place <= POSITIONAL.index(CHANNELS) else place + 1


def has_positions(dim: str) -> bool:
    """Whether indices along an axis lie somewhere, in space or in time."""
    return ROLES.get(dim) in ("space", "time")


def known_name(name: str) -> str:
    """A name as the table spells it, where it knows it; any other as it is.

    >>> known_name("Z"), known_name("Angle")
    ('z', 'Angle')
    """
    return name.lower() if name.lower() in ROLES else name


def distinct_names(dims: Sequence[Any], what: str) -> tuple[str, ...]:
    """The names of an array's axes, of which no two may be alike."""
    names = tuple(map(str, dims))
    for name in names:
        if names.count(name) > 1:
            raise SettingError(
                f"{what} has {names.count(name)} axes named {name!r}, and it cannot be said which "
                f"is meant; rename them: DataArray(array.data, dims=...)"
            )
    return names
