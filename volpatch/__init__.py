"""Run a function over overlapping patches of a volume, and blend the results.

The public names are resolved on first use, so that importing volpatch costs next to
nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from volpatch.arrays.api import coverage as coverage
    from volpatch.arrays.api import extract as extract
    from volpatch.arrays.api import map_patches as map_patches
    from volpatch.arrays.api import merge as merge
    from volpatch.arrays.merger import Merger as Merger
    from volpatch.core.errors import ClippedWarning as ClippedWarning
    from volpatch.core.errors import FunctionError as FunctionError
    from volpatch.core.errors import GridError as GridError
    from volpatch.core.errors import IncompleteError as IncompleteError
    from volpatch.core.errors import MemoryLimitError as MemoryLimitError
    from volpatch.core.errors import RunError as RunError
    from volpatch.core.errors import SettingError as SettingError
    from volpatch.core.errors import SourceError as SourceError
    from volpatch.core.errors import TargetError as TargetError
    from volpatch.core.errors import VolpatchError as VolpatchError
    from volpatch.core.grid import Box as Box
    from volpatch.core.grid import PatchGrid as PatchGrid
    from volpatch.planning.plan import Plan as Plan
    from volpatch.report.report import RunReport as RunReport
    from volpatch.running.api import plan as plan
    from volpatch.running.api import retry as retry
    from volpatch.running.api import run as run
    from volpatch.running.api import run_job as run_job
    from volpatch.running.status import Status as Status
    from volpatch.running.status import Verification as Verification
    from volpatch.running.status import clean as clean
    from volpatch.running.status import commit as commit
    from volpatch.running.status import status as status
    from volpatch.running.status import verify as verify
    from volpatch.running.to_zarr import to_zarr as to_zarr
    from volpatch.sampling import Samples as Samples
    from volpatch.sampling import iter_patches as iter_patches
    from volpatch.sampling import sample_patches as sample_patches
    from volpatch.storage.open import open_volume as open_volume

__version__ = "0.1.0"

_PLACES = {
    "volpatch.running.api": ["plan", "retry", "run", "run_job"],
    "volpatch.arrays.api": ["coverage", "extract", "map_patches", "merge"],
    "volpatch.arrays.merger": ["Merger"],
    "volpatch.sampling": ["Samples", "iter_patches", "sample_patches"],
    "volpatch.planning.plan": ["Plan"],
    "volpatch.report.report": ["RunReport"],
    "volpatch.storage.open": ["open_volume"],
    "volpatch.running.status": ["Status", "Verification", "clean", "commit", "status", "verify"],
    "volpatch.running.to_zarr": ["to_zarr"],
    "volpatch.core.grid": ["Box", "PatchGrid"],
    "volpatch.core.errors": [
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
