# The public names, each with the module that it comes from: read by type checkers, and by
# __init__.py when a name is used first.
from volpatch.arrays.api import coverage as coverage
from volpatch.arrays.api import extract as extract
from volpatch.arrays.api import map_patches as map_patches
from volpatch.arrays.api import merge as merge
from volpatch.arrays.merger import Merger as Merger
from volpatch.core.box import Box as Box
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

__version__: str
