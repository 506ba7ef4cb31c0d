"""The output of a run: built beside its place, put there by one rename.

    out.zarr.volpatch/          the work folder
        volpatch.json           says that the folder is ours, and whether `out.zarr` may be replaced
        tmp/                    files being written
        data/                   what becomes `out.zarr` when every write unit is there
            .volpatch/          its plan and records (see volpatch.storage.ledger)
        old/                    between the two renames of an overwrite: what `out.zarr` was

The image is OME-Zarr 0.5 on Zarr 3. zarr gives the metadata and the coordinates; the image's
objects are encoded and put by `LayerWriter`, each whole and by one task. Several processes may
build one output: whatever they do twice, they do with the same bytes.
"""

from __future__ import annotations

import itertools
import json
import os
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from volpatch.core.axes import has_positions
from volpatch.core.errors import RunError, TargetError
from volpatch.core.options import Durability
from volpatch.storage.codec import TargetSpec, zarr_codecs
from volpatch.storage.layers import IMAGE, LayerWriter
from volpatch.storage.locks import lock
from volpatch.storage.ngff import multiscales, omero
from volpatch.storage.stores.local import (
    KNOWN,
    MARKER,
    SUFFIX,
    Puts,
    check_replaceable,
    check_target,
    check_work_folder,
    disk_errors,
    read_marker,
    work_folder,
)

__all__ = ["Site", "TargetSpec", "WorkTree", "check_target"]

_NODE = "zarr.json"


@dataclass(frozen=True)
class Site:
    """Where one run writes: the root group, and a folder for temporary files.

    That folder is the run's own: what is left of a run that was discarded finds it gone, and
    can put nothing into a tree that was begun anew in the same place.
    """

    root: Path
    temp: Path
    durability: Durability

    @property
    def puts(self) -> Puts:
        return Puts(self.temp, root=self.root, durability=self.durability)

    @property
    def ledger(self) -> Path:
        """Folder of the plan and the records."""
        return self.root / SUFFIX


class WorkTree:
    """`TARGET.volpatch`, beside TARGET, where the output is built.

    Parameters
    ----------
    target : str or Path
        Where the output is to be.
    durability : {"full", "process"}
        What finished writes survive: a power cut, or only the death of the process.
    overwrite : bool
        Whether the caller allows that an earlier output is replaced.
    """

    def __init__(
        self, target: str | Path, *, durability: Durability = "full", overwrite: bool = False
    ) -> None:
        self.target = Path(os.path.abspath(target))
        self.overwrite = overwrite
        self.folder = work_folder(self.target)
        self.data = self.folder / "data"
        self.tmp = self.folder / "tmp"
        self.old = self.folder / "old"
        self.puts = Puts(self.tmp, root=self.data, durability=durability)

    @property
    def may_replace(self) -> bool:
        """Whether what is built here may replace an earlier output, by this caller or another."""
        return self.overwrite or read_marker(self.folder).get("overwrite") is True

    @property
    def has_plan(self) -> bool:
        """Whether a run was begun here that can go on."""
        return (self.data / SUFFIX / "plan.json").exists()

    @property
    def is_leftover(self) -> bool:
        """Whether the folder holds what nobody will go on with: no plan, but more than that."""
        if self.has_plan:
            return False
        marker = read_marker(self.folder)
        if marker and ("tree" not in marker or "mends" in marker):
            return True
        return self.data.is_dir() and bool(set(os.listdir(self.data)) - {SUFFIX})

    @property
    def site(self) -> Site:
        """Where to write, once `begin` was called by this process or another."""
        tree = read_marker(self.folder).get("tree")
        if not isinstance(tree, str) or not tree.isalnum():
            raise RunError(
                f"the work folder {str(self.folder)!r} is gone, or was never begun: somebody "
                f"published or removed it; run again"
            )
        return Site(self.data, self.tmp / tree, self.puts.durability)

    def prepare(
        self, spec: TargetSpec, *, overwrite: bool, record: Mapping[str, Any] | None = None
    ) -> None:
        """Start afresh: check, drop an unfinished tree of ours, write the metadata.

        Parameters
        ----------
        spec : TargetSpec
        overwrite : bool
            Whether `publish` may replace an earlier output; that one stays until then.
        record : mapping, optional
            What the finished output says of itself, which it is when it is seen under its name.
        """
        self.restore()
        check_target(self.target, overwrite=overwrite, source_path=None)
        with self.unused():
            self.discard()
        self.begin(overwrite=overwrite)
        self.put_metadata(spec, {"complete": True} if record is None else record)

    def begin(self, *, overwrite: bool, mends: bool = False) -> None:
        """Make the folders, or those that are missing; several processes may do so at once.

        Parameters
        ----------
        overwrite : bool
            Whether `publish` may replace an earlier output; that one stays until then.
        mends : bool
            Whether the finished output is repaired in its place, so that no tree is built.
        """
        with disk_errors(self.folder):
            for folder in (self.folder, self.tmp):
                self.puts.make_folder(folder, exist_ok=True)
            if "volpatch" not in read_marker(self.folder):
                marker = {"volpatch": _version(), "overwrite": overwrite, "tree": uuid.uuid4().hex}
                marker.update({"mends": True} if mends else {})
                self.puts.put_new(self.folder / MARKER, json.dumps(marker).encode())
            site = self.site
            for folder in (site.temp, *(() if mends else (site.root,))):
                self.puts.make_folder(folder, exist_ok=True)

    def go_on(self) -> Site:
        """Where to write in a tree that was begun; a folder for temporary files that was lost
        is made again.
        """
        site = self.site
        with disk_errors(self.folder):
            for folder in (self.tmp, site.temp):
                self.puts.make_folder(folder, exist_ok=True)
        return site

    def put_metadata(
        self, spec: TargetSpec, record: Mapping[str, Any] | None = None
    ) -> dict[str, bytes]:
        """Put all that is not the image's objects; the root's own metadata comes last.

        Parameters
        ----------
        spec : TargetSpec
        record : mapping, optional
            What the root's attributes say under 'volpatch' besides.

        Returns
        -------
        dict of str to bytes
            What was put, by key.
        """
        files = metadata_files(spec, record or {})
        with disk_errors(self.data):
            for key, content in files.items():
                self.puts.put(self.data / key, content)
        return files

    def writer(
        self,
        spec: TargetSpec,
        start: Sequence[int],
        stop: Sequence[int],
        *,
        stream_axis: int,
        check: Callable[[], None] = lambda: None,
    ) -> LayerWriter:
        """A writer for the box from `start` to `stop` (see `LayerWriter`)."""
        return LayerWriter(
            self.data,
            self.puts,
            spec,
            start=start,
            stop=stop,
            stream_axis=stream_axis,
            check=check,
        )

    def missing(self, spec: TargetSpec) -> Iterator[str]:
        """Keys, below the root, of write units that are not there; in C order."""
        *lead, last = spec.unit_grid
        for position in itertools.product(*map(range, lead)):
            key = "/".join((IMAGE, "c", *map(str, position)))
            there = _objects(self.data / key)
            yield from (f"{key}/{i}" for i in range(last) if str(i) not in there)

    def publish(self, spec: TargetSpec) -> None:
        """Put the finished tree in its place and remove the work folder.

        Raises
        ------
        RunError
            Something is missing; nothing is changed.
        TargetError
            There is something in that place that must not be replaced.
        """
        self._check_complete(spec)
        check_work_folder(self.folder)
        replaces = os.path.lexists(self.target)
        if replaces:
            check_replaceable(self.target, overwrite=self.may_replace)
        with self.mending(), disk_errors(self.target):
            if replaces:
                self.puts.rename(self.target, self.old)
            try:
                self.puts.rename(self.data, self.target)
            except OSError:
                self.restore()
                raise
            if replaces:  # half removed, it must never be taken for what to put back
                self.puts.rename(self.old, self.tmp / "old")
        self._remove("the output itself is complete")

    def discard(self) -> None:
        """Remove the work folder, if it is there and all in it is ours."""
        if not os.path.lexists(self.folder):
            return
        check_work_folder(self.folder)
        self.restore()
        self._remove("nothing was published")

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep others from discarding the tree while inside; any number may be inside."""
        with self._locked(self.folder / MARKER, shared=True):
            yield

    @contextmanager
    def unused(self) -> Iterator[None]:
        """Refuse to go on while a run of this machine is at work in the tree, or beside it."""
        # in this order: who is refused here must not keep the other from publishing meanwhile
        with self._locked(self.folder / MARKER), self.mending():
            yield

    @contextmanager
    def mending(self) -> Iterator[None]:
        """Let one process at a time repair the finished output; others are refused."""
        with self._locked(self.target / SUFFIX):
            yield

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Let one process at a time move finished trees to their place; others wait."""
        with self._locked(self.folder, wait=True):
            yield

    @contextmanager
    def _locked(self, path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
        """Hold a lock that goes with the process, however that ends.

        A kindness rather than a need: on file systems without locks nothing is held, and of
        two that start over or publish at the same instant one is told so by an error.
        """
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError:
            yield
            return
        try:
            try:
                lock(handle, shared=shared, wait=wait)
            except BlockingIOError:
                raise TargetError(
                    f"another run is writing {str(self.target)!r} at this moment, or a retry "
                    f"mends it; wait for it, or choose another name"
                ) from None
            except OSError:
                pass
            yield
        finally:
            os.close(handle)

    def _remove(self, outcome: str) -> None:
        with disk_errors(self.folder, outcome):
            for name in (*KNOWN, MARKER):
                self.puts.remove(self.folder / name)
            self.puts.remove(self.folder)

    def restore(self) -> None:
        """Undo a publish that was cut short between its two renames."""
        if os.path.lexists(self.old) and not os.path.lexists(self.target):
            check_work_folder(self.folder)
            with disk_errors(self.target):
                self.puts.rename(self.old, self.target)

    def clear_up(self) -> None:
        """Finish a publish that was cut short after its renames.

        A folder that another process begins just now looks the same: not to be called by one
        of several that replace an output together.
        """
        ended = os.path.lexists(self.folder) and not os.path.lexists(self.data)
        if ended and os.path.lexists(self.target):
            with self.unused():
                self.discard()

    def _check_complete(self, spec: TargetSpec) -> None:
        for name in ("", "scale0/", f"{IMAGE}/"):
            if not (self.data / f"{name}zarr.json").is_file():
                raise RunError(
                    f"{str(self.data)!r} has no {name}zarr.json, so there is nothing to publish; "
                    "run again from the start"
                )
        first: list[str] = []
        count = 0
        for key in self.missing(spec):
            count += 1
            if len(first) < 3:
                first.append(key)
        if count:
            more = ", ..." if count > len(first) else ""
            raise RunError(
                f"{count} of {spec.n_units} write units of {str(self.target)!r} are missing "
                f"({', '.join(first)}{more}); nothing was published. Run again to compute them"
            )


def _version() -> str:
    try:
        return version("volpatch")
    except PackageNotFoundError:
        return "unknown"


def metadata_files(spec: TargetSpec, record: Mapping[str, Any]) -> dict[str, bytes]:
    """Groups, coordinates and an image without objects, by key; the root's own file is last.

    `record` is added to what the root's attributes say under 'volpatch'.
    """
    import zarr

    level = [(IMAGE, spec.spacing, spec.origin)]
    ome = multiscales(name=spec.name, dims=spec.dims, units=spec.units, datasets=level)
    if spec.channel_names is not None:
        ome["omero"] = omero(spec.channel_names, np.dtype(spec.dtype))
    # sorted, so that the bytes are the same when the spec comes from a file
    ours = dict(sorted({"version": _version(), **spec.attributes, **record}.items()))
    held: dict[str, Any] = {}
    store = zarr.storage.MemoryStore(held)
    root = zarr.create_group(store, zarr_format=3, attributes={"ome": ome, "volpatch": ours})
    scale = root.create_group("scale0")
    itemsize = np.dtype(spec.dtype).itemsize
    scale.create_array(
        "image",
        shape=spec.shape,
        dtype=spec.dtype,
        chunks=spec.chunks,
        shards=spec.shards,
        compressors=zarr_codecs(spec.codec, itemsize),
        filters=None,
        fill_value=0,
        dimension_names=spec.dims,
    )
    for dim, size, step, first, unit in zip(
        spec.dims, spec.shape, spec.spacing, spec.origin, spec.units, strict=True
    ):
        if has_positions(dim):
            scale.create_array(
                dim,
                data=first + step * np.arange(size, dtype=np.float64),
                chunks=(size,),
                compressors=zarr_codecs("zstd", 8),
                dimension_names=(dim,),
                attributes={} if unit is None else {"units": unit},
                config={"write_empty_chunks": True},  # a lone 0.0 is a value, not a gap
            )
    keys = sorted(held, key=lambda key: (-key.count("/"), key))
    return _consolidated({key: held[key].to_bytes() for key in keys})


def _consolidated(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Metadata files with a root that repeats what all others say, so that one read tells all.

    It is outside of the specification, but readers that do not know it pass it over. The bytes
    are those of `zarr.consolidate_metadata`, which zarr 3.1 cannot do under `python -O`.
    """
    root = json.loads(files[_NODE])
    below = {
        key.removesuffix(f"/{_NODE}"): json.loads(content)
        for key, content in files.items()
        if key.endswith(f"/{_NODE}")
    }
    order = sorted(below, key=lambda path: (path.count("/"), path))
    nodes = {path: _with_members(below[path], {}) for path in order}
    text = json.dumps(_with_members(root, nodes), indent=2)
    return {**files, _NODE: text.encode()}


def _with_members(node: dict[str, Any], members: dict[str, Any]) -> dict[str, Any]:
    """A group's metadata with those of its members; an array's as it is."""
    if node["node_type"] != "group":
        return node
    told = {"kind": "inline", "must_understand": False, "metadata": members}
    kind = node.pop("node_type")
    return {**node, "consolidated_metadata": told, "node_type": kind}


def _objects(folder: Path) -> set[str]:
    """Names of the files in a folder that hold anything; none if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            states = ((entry.name, entry.stat(follow_symlinks=False)) for entry in entries)
            return {name for name, s in states if stat.S_ISREG(s.st_mode) and s.st_size}
    except (FileNotFoundError, NotADirectoryError):
        return set()
