"""Compute again what failed, or what is no longer as it was written."""

from __future__ import annotations

import hashlib

from volpatch.core.errors import IncompleteError, RunError, TargetError
from volpatch.core.parse import show_numbers
from volpatch.planning.provenance import changed_versions
from volpatch.report.report import RunReport
from volpatch.running.lifecycle import Request, calling, compute, rejoined, unless_published
from volpatch.running.status import Verification, check_units, fault
from volpatch.storage.layers import OtherBytesError
from volpatch.storage.ledger import Ledger
from volpatch.storage.metadata import completion, metadata_files
from volpatch.storage.output import Site, Stage
from volpatch.storage.records import FAILED, State
from volpatch.storage.stores.local import disk_errors


def repair(request: Request, stage: Stage, ledger: Ledger) -> RunReport:
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
    if stage is Stage.BUILDING:
        return unless_published(request, lambda: _repair_unfinished(request, ledger))
    with request.work.mending():
        if not ledger.is_current:
            raise TargetError(
                f"{str(ledger.root)!r} was replaced at this moment by another run; look again"
            )
        return _repair_finished(request, ledger)


def _repair_finished(request: Request, ledger: Ledger) -> RunReport:
    joined = rejoined(request, ledger, checked=True)
    bad = check_units(ledger, Verification(str(ledger.root), finished=True, deep=False))
    broken = ledger.state(bad).left
    with calling(request) as pool, request.work.beside() as site:
        _repair_metadata(ledger, site)
        wanted = ledger.checksums(broken)
        try:
            return compute(
                request, joined, pool, site, broken, bad=bad, publish=False, wanted=wanted
            )
        except OtherBytesError as error:
            if not (changed := changed_versions(ledger.file)):
                raise
            raise OtherBytesError(f"{error}. Since then {changed}") from None


def _repair_unfinished(request: Request, ledger: Ledger) -> RunReport:
    target = str(request.work.target)
    joined = rejoined(request, ledger)
    bad = check_units(ledger, Verification(target, finished=False, deep=False))
    state = ledger.state(bad)
    with calling(request) as pool:
        numbers = _failed_or_bad(ledger, state)
        if not numbers and state.left:
            raise IncompleteError(
                f"nothing of {target!r} failed or went bad, but {len(state.left)} of "
                f"{ledger.file.n_regions} regions were never computed "
                f"({show_numbers(state.left, 5)}): run again, or the parts that are missing"
            )
        with request.work.in_use():
            site = request.work.go_on()
            return compute(request, joined, pool, site, numbers, bad=bad, whole=False)


def _failed_or_bad(ledger: Ledger, state: State) -> list[int]:
    """Regions that failed, and those that are done by their records but not in truth."""
    hollow = {n for n in ledger.told().done if not state.is_done(n)}
    return sorted(hollow.union(state.status.where(lambda states: states == FAILED)))


def _repair_metadata(ledger: Ledger, site: Site) -> None:
    """Put metadata again that is not as it was written."""
    told = ledger.told().metadata
    files = metadata_files(ledger.spec, completion(ledger.file, ledger.spec))
    root = ledger.root
    if unrecorded := {key: content for key, content in files.items() if key not in told}:
        for key, content in unrecorded.items():
            size, checksum = len(content), hashlib.sha256(content).hexdigest()
            if fault(root / key, size, checksum) is not None:
                with disk_errors(root / key):
                    site.disk.put(root / key, content)
        ledger.tell_metadata(unrecorded, site.disk)
    for key, of in told.items():
        if fault(root / key, *of) is None:
            continue
        content = files.get(key, b"")
        if hashlib.sha256(content).hexdigest() != told[key][1]:
            raise RunError(
                f"{key} of {str(root)!r} is damaged, and comes out with other bytes than "
                f"it had (another version of zarr or volpatch?); restore it from a copy"
            )
        with disk_errors(root / key):
            site.disk.put(root / key, content)
