"""Compute again what failed, or what is no longer as it was written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from volpatch.core.errors import IncompleteError, RunError, TargetError
from volpatch.core.parse import show_numbers
from volpatch.report.report import RunReport
from volpatch.running.lifecycle import Request, calling, compute, rejoined, unless_published
from volpatch.running.status import Place, Verification, check_units, fault
from volpatch.storage.ledger import DONE, FAILED, PlanFile, Reader, State
from volpatch.storage.output import Site, metadata_files
from volpatch.storage.publish import committed_files, completion, state_of, tell_metadata
from volpatch.storage.stores.local import SUFFIX, disk_errors


def mend(request: Request, place: Place) -> RunReport:
    """Compute the regions of an output that failed or went bad, and no others.

    Raises
    ------
    TargetError
        The function, the input or another thing is no longer what the output was made of.
    RunError
        An object came out with other bytes than it had; it is left as it is.
    IncompleteError
        Nothing failed, but there are regions that were never computed.
    """
    if not place.finished:
        return unless_published(request, lambda: _mend_unfinished(request, place))
    with request.work.mending():
        now = PlanFile.load(place.root / SUFFIX)
        if now is None or now.id != place.file.id:
            raise TargetError(
                f"{str(place.target)!r} was replaced at this moment by another run; look again"
            )
        return _mend_finished(request, place)


def _mend_finished(request: Request, place: Place) -> RunReport:
    settled = rejoined(request, place.file, place.root, checked=True)
    bad = check_units(place, Verification(str(place.target), place.finished, deep=False))
    state, _ = state_of(place.root, place.file, place.spec, bad)
    broken = np.flatnonzero(state.status < DONE).tolist()
    with (
        calling(request) as pool,
        _beside(request, place) as site,
    ):
        _mend_metadata(place, site)
        wanted = _recorded(place, set(broken))
        return compute(request, settled, pool, site, broken, bad=bad, publish=False, wanted=wanted)


def _mend_unfinished(request: Request, place: Place) -> RunReport:
    settled = rejoined(request, place.file, place.root)
    bad = check_units(place, Verification(str(place.target), place.finished, deep=False))
    state, _ = state_of(place.root, place.file, place.spec, bad)
    with calling(request) as pool:
        numbers = _failed_or_bad(place, state)
        if not numbers and state.n_done < place.file.n_regions:
            left = np.flatnonzero(state.status < DONE).tolist()
            raise IncompleteError(
                f"nothing of {str(place.target)!r} failed or went bad, but {len(left)} of "
                f"{place.file.n_regions} regions were never computed ({show_numbers(left, 5)}): "
                f"run again, or the parts that are missing"
            )
        with request.work.in_use():
            site = request.work.go_on()
            return compute(request, settled, pool, site, numbers, bad=bad, whole=False)


def _failed_or_bad(place: Place, state: State) -> list[int]:
    """Regions that failed, and those that are done by their records but not in truth."""
    told = State(place.file.n_regions)
    for event in Reader(place.root / SUFFIX)():
        told.take(event)
    hollow = (told.status >= DONE) & (state.status < DONE)
    return [int(n) for n in np.flatnonzero(hollow | (state.status == FAILED))]


@contextmanager
def _beside(request: Request, place: Place) -> Iterator[Site]:
    """A folder for temporary files beside a finished output, removed on the way out."""
    work = request.work
    work.begin(overwrite=False, mends=True)
    try:
        with work.in_use():
            yield Site(place.root, work.site.temp, work.site.durability)
    finally:
        work.discard()


def _recorded(place: Place, regions: set[int]) -> dict[int, str]:
    """SHA-256 of all units of some regions, as recorded."""
    return {
        unit: checksum
        for event in Reader(place.root / SUFFIX)()
        if event["kind"] == "layer" and event["region"] in regions
        for unit, _, checksum in event["units"]
    }


def _mend_metadata(place: Place, site: Site) -> None:
    """Put metadata again that is not as it was written."""
    told = committed_files(place.root)
    files = metadata_files(place.spec, completion(place.file, place.spec))
    if unrecorded := {key: content for key, content in files.items() if key not in told}:
        for key, content in unrecorded.items():
            size, checksum = len(content), hashlib.sha256(content).hexdigest()
            if fault(place.root / key, size, checksum) is not None:
                with disk_errors(place.root / key):
                    site.puts.put(place.root / key, content)
        tell_metadata(site, unrecorded)
    for key, of in told.items():
        if fault(place.root / key, *of) is None:
            continue
        content = files.get(key, b"")
        if hashlib.sha256(content).hexdigest() != told[key][1]:
            raise RunError(
                f"{key} of {str(place.target)!r} is damaged, and comes out with other bytes than "
                f"it had (another version of zarr or volpatch?); restore it from a copy"
            )
        with disk_errors(place.root / key):
            site.puts.put(place.root / key, content)
