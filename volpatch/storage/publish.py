"""The one step that makes an output exist: check all, say so in the metadata, rename.

Any process may do it, also several at once, also again after it was cut short: what is
already done is found done.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from volpatch.core.errors import IncompleteError, RunError
from volpatch.core.parse import show_numbers
from volpatch.storage.layers import unit_key
from volpatch.storage.ledger import DONE, RECORDS, PlanFile, Reader, Recorder, State, size_is
from volpatch.storage.output import Site, TargetSpec, WorkTree
from volpatch.storage.stores.local import SUFFIX, disk_errors

LISTED = 3


def state_of(
    root: Path, file: PlanFile, spec: TargetSpec, bad: Collection[int] = ()
) -> tuple[State, Reader]:
    """What the records say of each region, where the objects are there with their size.

    Parameters
    ----------
    bad : units whose objects are not to be believed in until they are recorded anew.

    Returns
    -------
    State, Reader
        The reader gives what is added later; `state.take` counts it.
    """
    distrusted = set(bad)

    def believe(unit: int, size: int) -> bool:
        there = 0 <= unit < spec.n_units and unit not in distrusted
        return there and size_is(root, unit_key(spec, unit), size)

    state, reader = State(file.n_regions, believe), Reader(root / SUFFIX)
    for event in reader():
        state.take(event)
    distrusted.clear()
    return state, reader


def is_published(target: Path, plan_id: str) -> bool:
    """Whether the finished output of just this plan is in its place."""
    found = PlanFile.load(target / SUFFIX) if (target / "zarr.json").is_file() else None
    return found is not None and found.id == plan_id


def check_whole(target: Path, file: PlanFile, spec: TargetSpec) -> None:
    """Refuse to call an output complete that lacks objects, or has some of another size.

    What is in the objects is not looked at.

    Raises
    ------
    IncompleteError
        Names the metadata and the regions.
    """
    state, _ = state_of(target, file, spec)
    left = np.flatnonzero(state.status < DONE).tolist()
    told = {key: size for key, (size, _) in committed_files(target).items()}
    lacking = [key for key, size in told.items() if not size_is(target, key, size)]
    if not told and not (target / "zarr.json").is_file():
        lacking = ["zarr.json"]
    if not left and not lacking:
        return
    what = lacking[:LISTED]
    if left:
        count = f"{len(left)} of {file.n_regions} regions"
        what.append(f"objects of {count} ({show_numbers(left, LISTED)})")
    raise IncompleteError(
        f"{str(target)!r} was complete, but {', '.join(what)} are missing, have another size or "
        f"have no record; `volpatch verify {target}` names all that is wrong, and `volpatch retry "
        f"{target}` makes it again"
    )


def completion(file: PlanFile, spec: TargetSpec) -> dict[str, Any]:
    """What a finished output says of itself in its root's attributes."""
    return {"complete": True, "plan": file.id, "units": spec.n_units}


def publish(work: WorkTree, file: PlanFile, spec: TargetSpec) -> None:
    """Publish what is built in a work tree, if all of it is there.

    Raises
    ------
    RunError
        Regions are missing, or objects; nothing is changed.
    TargetError
        There is something in that place that must not be replaced.
    """
    with work.publishing():
        work.restore()
        if not os.path.lexists(work.data) and is_published(work.target, file.id):
            work.discard()
            return
        state, _ = state_of(work.data, file, spec)
        _refuse_gaps(work, state)
        site = work.site
        tell_metadata(site, work.put_metadata(spec, completion(file, spec)))
        with disk_errors(site.ledger):
            site.puts.flush_files(site.ledger / RECORDS)
        work.publish(spec)


def tell_metadata(site: Site, files: Mapping[str, bytes]) -> None:
    """Record size and SHA-256 of the metadata of a finished output."""
    told = [[key, len(b), hashlib.sha256(b).hexdigest()] for key, b in files.items()]
    Recorder(site.ledger, site.puts).write("commit", -1, files=told)


def _refuse_gaps(work: WorkTree, state: State) -> None:
    left = np.flatnonzero(state.status < DONE).tolist()
    if left:
        raise RunError(
            f"{len(left)} of {len(state.status)} regions of {str(work.target)!r} are not done "
            f"({show_numbers(left, LISTED)}); nothing was published. Run again to compute them, or "
            f"see `volpatch status`"
        )


def committed_files(root: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of the metadata of a finished output, by key, as its last commit says."""
    commits = [event for event in Reader(root / SUFFIX)() if event["kind"] == "commit"]
    last: dict[str, tuple[int, str]] = {}
    for event in sorted(commits, key=lambda event: event["time"]):
        last.update({key: (size, checksum) for key, size, checksum in event["files"]})
    return last
