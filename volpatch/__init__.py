"""Run a function over overlapping patches of a volume, and blend the results.

The public names are resolved on first use, so that importing volpatch costs next to
nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from volpatch.api import plan as plan
    from volpatch.api import retry as retry
    from volpatch.api import run as run
    from volpatch.api import run_job as run_job
    from volpatch.arrays import coverage as coverage
    from volpatch.arrays import extract as extract
    from volpatch.arrays import map_patches as map_patches
    from volpatch.arrays import merge as merge
    from volpatch.errors import ClippedWarning as ClippedWarning
    from volpatch.errors import FunctionError as FunctionError
    from volpatch.errors import GridError as GridError
    from volpatch.errors import IncompleteError as IncompleteError
    from volpatch.errors import MemoryLimitError as MemoryLimitError
    from volpatch.errors import RunError as RunError
    from volpatch.errors import SettingError as SettingError
    from volpatch.errors import SourceError as SourceError
    from volpatch.errors import TargetError as TargetError
    from volpatch.errors import VolpatchError as VolpatchError
    from volpatch.geometry import Box as Box
    from volpatch.geometry import PatchGrid as PatchGrid
    from volpatch.merger import Merger as Merger
    from volpatch.planner import Plan as Plan
    from volpatch.report import RunReport as RunReport
    from volpatch.sampling import Samples as Samples
    from volpatch.sampling import iter_patches as iter_patches
    from volpatch.sampling import sample_patches as sample_patches
    from volpatch.storage.opening import open_volume as open_volume
    from volpatch.upkeep import Status as Status
    from volpatch.upkeep import Verification as Verification
    from volpatch.upkeep import clean as clean
    from volpatch.upkeep import commit as commit
    from volpatch.upkeep import status as status
    from volpatch.upkeep import verify as verify
    from volpatch.writing import to_zarr as to_zarr

__version__ = "0.1.0"

_PLACES = {
    "volpatch.api": ["plan", "retry", "run", "run_job"],
    "volpatch.arrays": ["coverage", "extract", "map_patches", "merge"],
    "volpatch.merger": ["Merger"],
    "volpatch.sampling": ["Samples", "iter_patches", "sample_patches"],
    "volpatch.planner": ["Plan"],
    "volpatch.report": ["RunReport"],
    "volpatch.storage.opening": ["open_volume"],
    "volpatch.upkeep": ["Status", "Verification", "clean", "commit", "status", "verify"],
    "volpatch.writing": ["to_zarr"],
    "volpatch.geometry": ["Box", "PatchGrid"],
    "volpatch.errors": [
        "ClippedWarning",
        "FunctionError",
        "GridError",
        "IncompleteError",
        "MemoryLimitError",
        "RunError",
        "SettingError",
        "SourceError",
        "TargetError",
        "VolpatchError",
    ],
}
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names}

__all__ = ["__version__", *_PLACE_OF]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _PLACE_OF:
        raise AttributeError(f"module 'volpatch' has no attribute {name!r}")
    return getattr(import_module(_PLACE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
