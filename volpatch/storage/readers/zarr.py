"""Zarr arrays (v2, v3, sharded) and OME-Zarr images as sources.

The JSON is read here before zarr-python sees it, so that a damaged file, a codec that could run
code or a chunk of terabytes is refused with a sentence, and a group is told from an array without
listing chunks.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.buffer.cpu import NDBuffer

from volpatch.core.axes import has_positions
from volpatch.core.errors import SourceError
from volpatch.storage import ngff as ome
from volpatch.storage.chain import FileForm, file_form
from volpatch.storage.chunk_check import AbsentChunk, checked
from volpatch.storage.decode import Decoder
from volpatch.storage.patience import patiently
from volpatch.storage.volume import Format, Source, StoredAxes, axis_names, make_source

_MAX_JSON_BYTES = 16 * 2**20
_LISTED = 10


@dataclass(frozen=True)
class Node:
    """A Zarr group or array as its JSON describes it."""

    path: str
    version: int
    is_array: bool
    content: Mapping[str, Any]
    attributes: Mapping[str, Any]

    @property
    def metadata_path(self) -> str:
        """The file that says what this is."""
        names = {(2, True): ".zarray", (2, False): ".zgroup"}
        return os.path.join(self.path, names.get((self.version, self.is_array), "zarr.json"))


@dataclass(frozen=True)
class ZarrReader:
    """Reads one array; `stamp` keeps a store that was replaced apart from the one before it."""

    path: str
    metadata_path: str
    version: int
    stamp: tuple[int, int]
    missing: str

    def read(self, selection: tuple[slice, ...], out: NDArray[Any]) -> None:
        """Fill `out`; a chunk that cannot be decoded, or must not be missing, is named."""
        array, form = _opened(self)
        if not os.path.exists(self.metadata_path):  # else each chunk would be "missing": zeros
            raise SourceError(f"{self.path} was there when it was opened, and is gone")
        dense = self.missing == "error"
        if form.chunk.plain:
            fill = array.fill_value
            decoder = Decoder(form, 0 if fill is None else fill, dense=dense)
            for box, key in _touched(array, form, selection):
                path, inside = os.path.join(self.path, key), _within(box, form)
                part = out[_from(box, selection)]
                with self._named(key):
                    patiently(functools.partial(decoder.read, path, inside, part))
            return
        for box, key in _touched(array, form, selection):
            path, inside = os.path.join(self.path, key), _within(box, form)
            with self._named(key), checked(path, inside, form, dense=dense) as chunks:
                for _ in chunks:
                    pass
        try:
            patiently(lambda: _fill(array, selection, out))
        except MemoryError:
            raise
        except Exception as error:
            raise self._culprit(array, form, selection, error) from error

    @contextmanager
    def _named(self, key: str) -> Iterator[None]:
        """Say of which file an error speaks."""
        try:
            yield
        except AbsentChunk as absent:
            where = f"chunk {key}" if absent.place is None else f"chunk {absent.place} in {key}"
            instead = f" ({absent.instead} is in its place)" if absent.instead else ""
            raise SourceError(
                f"{where} of {self.path} is missing{instead}; restore it, or read it as its fill "
                f"value with missing='fill'"
            ) from None
        except MemoryError:
            raise
        except Exception as error:  # decoders raise what they like
            raise self._damaged(key, error) from error

    def _culprit(
        self,
        array: zarr.Array[Any],
        form: FileForm,
        selection: tuple[slice, ...],
        error: Exception,
    ) -> SourceError:
        """What to raise after a failed read: read again, file by file, to find the bad one."""
        for box, key in _touched(array, form, selection):
            part = np.empty([one.stop - one.start for one in box], array.dtype.newbyteorder("="))
            try:
                _fill(array, box, part)
            except Exception as found:
                return self._damaged(key, found)
        return SourceError(f"{self.path} could not be read, then it could: {error}; try again")

    def _damaged(self, key: str, error: Exception) -> SourceError:
        said = str(error) or type(error).__name__
        return SourceError(
            f"chunk {key} of {self.path} is damaged: {said}; "
            f"restore the file or the whole volume from a copy"
        )

    @property
    def metadata_files(self) -> tuple[str, ...]:
        """The array's own JSON."""
        return (self.metadata_path,)

    @property
    def n_files(self) -> int:
        """Shards, else chunks."""
        return math.prod(_objects_grid(_opened(self)[0]))

    def file(self, number: int) -> str:
        """The file of one shard or chunk, in C order."""
        array, _ = _opened(self)
        place = np.unravel_index(number, _objects_grid(array))
        key = array.metadata.encode_chunk_key(tuple(int(i) for i in place))
        return os.path.join(self.path, key)

    def file_box(self, number: int) -> tuple[slice, ...]:
        """The box of one shard or chunk."""
        array, _ = _opened(self)
        place = np.unravel_index(number, _objects_grid(array))
        edges = array.shards or array.chunks
        starts = [int(i) * edge for i, edge in zip(place, edges, strict=True)]
        return tuple(slice(a, a + edge) for a, edge in zip(starts, edges, strict=True))


@functools.lru_cache(maxsize=64)
def _opened(reader: ZarrReader) -> tuple[zarr.Array[Any], FileForm]:
    version: Any = reader.version
    form = _form(_read_node(reader.path))
    return zarr.open_array(reader.path, mode="r", zarr_format=version), form


def _objects_grid(array: zarr.Array[Any]) -> tuple[int, ...]:
    edges = array.shards or array.chunks
    return tuple(-(-n // edge) for n, edge in zip(array.shape, edges, strict=True))


def _form(node: Node) -> FileForm:
    return file_form(node.path, node.version, node.content)


def _fill(array: zarr.Array[Any], selection: tuple[slice, ...], out: NDArray[Any]) -> None:
    array.get_basic_selection(selection, out=NDBuffer.from_numpy_array(out))


def _touched(
    array: zarr.Array[Any], form: FileForm, selection: Sequence[slice]
) -> Iterator[tuple[tuple[slice, ...], str]]:
    """The files (shards, else chunks) that a box touches: the part of the box in each, its key."""
    spans = [
        range(one.start // edge, -(-one.stop // edge))
        for one, edge in zip(selection, form.shape, strict=True)
    ]
    for place in itertools.product(*spans):
        box = tuple(
            slice(max(one.start, index * edge), min(one.stop, (index + 1) * edge))
            for one, index, edge in zip(selection, place, form.shape, strict=True)
        )
        yield box, array.metadata.encode_chunk_key(place)


def _within(box: Sequence[slice], form: FileForm) -> list[slice]:
    """A box that lies in one file, in voxels from the file's first one."""
    return [
        slice(one.start % edge, one.start % edge + one.stop - one.start)
        for one, edge in zip(box, form.shape, strict=True)
    ]


def _from(box: Sequence[slice], selection: Sequence[slice]) -> tuple[slice, ...]:
    """A box within a selection, in voxels from the selection's first one."""
    return tuple(
        slice(one.start - whole.start, one.stop - whole.start)
        for one, whole in zip(box, selection, strict=True)
    )


def is_zarr(path: str) -> bool:
    """Whether a folder holds Zarr metadata of either version."""
    names = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
    return any(os.path.exists(os.path.join(path, name)) for name in names)


def open_zarr(path: str, *, level: int, series: int | str | None, missing: str) -> Source:
    """An array, or a level of an image, as a Source."""
    node = _read_node(path)
    if node.is_array:
        if level:
            raise SourceError(f"{path} is one array and has no level {level}; leave level at 0")
        return _array_source(node, _given_by_parents(path), missing)
    image = ome.parse(node.attributes, path)
    if image is None:
        raise _no_image(node)
    if level >= len(image.datasets):
        raise SourceError(f"{path} has no level {level}; it has {_levels(path, image)}")
    dataset = image.datasets[level]
    array_path = os.path.join(path, dataset.path)
    if not is_zarr(array_path) or not (inner := _read_node(array_path)).is_array:
        raise SourceError(
            f"{path} is incomplete: level {level} should be an array at {dataset.path!r}, "
            f"and there is none; restore it or choose another level"
        )
    source = _array_source(inner, _OmeLevel(image, level), missing)
    return replace(
        source,
        path=path,
        kind="OME-Zarr image",
        level=level,
        levels=len(image.datasets),
        name=os.path.basename(path),
    )


def _is_complete(node: Node) -> bool:
    """Whether an array, or a group up to three folders above, says that volpatch finished it."""
    for _ in range(4):
        if _mapping(node.attributes.get("volpatch")).get("complete") is True:
            return True
        parent = os.path.dirname(node.path)
        if not is_zarr(parent):
            return False
        try:
            node = _read_node(parent)
        except SourceError:
            return False  # the array itself is fine, and asked for by its own name
    return False


def _read_node(path: str) -> Node:
    v3 = os.path.join(path, "zarr.json")
    if os.path.exists(v3):
        content = _read_json(v3)
        kind = content.get("node_type")
        if content.get("zarr_format") != 3 or kind not in ("array", "group"):
            raise SourceError(
                f"metadata of {path} is damaged or too new: zarr.json has zarr_format "
                f"{content.get('zarr_format')!r} and node_type {kind!r}"
            )
        return Node(path, 3, kind == "array", content, _mapping(content.get("attributes")))
    attributes = _read_json(os.path.join(path, ".zattrs"), missing_ok=True)
    is_array = os.path.exists(os.path.join(path, ".zarray"))
    name = ".zarray" if is_array else ".zgroup"
    content = _read_json(os.path.join(path, name), missing_ok=not is_array)
    return Node(path, 2, is_array, content, attributes)


def _mapping(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}


def _read_json(path: str, *, missing_ok: bool = False) -> Mapping[str, Any]:
    folder, name = os.path.split(path)
    if missing_ok and not os.path.exists(path):
        return {}
    if not os.path.isfile(path):  # opening a FIFO could wait for ever
        raise SourceError(f"metadata of {folder} is damaged ({name} is no file); restore the file")
    size = os.path.getsize(path)
    why = f"{name} has {size} bytes"
    if size <= _MAX_JSON_BYTES:
        try:
            with open(path, "rb") as file:
                found = json.loads(file.read())
        except (ValueError, RecursionError) as error:
            why += f": {str(error)[:200]}"
        else:
            if isinstance(found, dict):
                return found
            why += f" and holds a {type(found).__name__}, not an object"
    raise SourceError(f"metadata of {folder} is damaged ({why}); restore the file")


@dataclass(frozen=True)
class _OmeLevel:
    """Axes, spacing and the rest of an array as the image it belongs to gives them."""

    image: ome.Image
    level: int

    @property
    def names(self) -> tuple[str | None, ...]:
        return self.image.names

    def grid(
        self, names: tuple[str, ...]
    ) -> tuple[tuple[float, ...], tuple[float, ...], tuple[str | None, ...]]:
        dataset = self.image.datasets[self.level]
        return dataset.scale, dataset.translation, self.image.units


@dataclass(frozen=True)
class _Coordinates:
    """The same from 1-D coordinate arrays beside an array (xarray's layout), or from nothing."""

    beside: str | None = None
    shape: tuple[int, ...] = ()

    def grid(
        self, names: tuple[str, ...]
    ) -> tuple[tuple[float, ...], tuple[float, ...], tuple[str | None, ...]]:
        sizes = zip(names, self.shape, strict=True)
        steps = [_regular(self.beside, name, size) for name, size in sizes]
        spacing, origin, units = zip(*steps, strict=True)
        return spacing, origin, units


def _given_by_parents(path: str) -> _OmeLevel | None:
    """The OME image that lists the array at `path`, up to three folders above it."""
    parent = path
    for _ in range(3):
        parent = os.path.dirname(parent)
        if not is_zarr(parent):
            return None
        try:
            image = ome.parse(_read_node(parent).attributes, parent)
        except SourceError:
            return None  # the array itself is fine, and asked for by its own name
        inside = os.path.relpath(path, parent)
        for level, dataset in enumerate(image.datasets if image else ()):
            if os.path.normpath(dataset.path) == inside:
                return _OmeLevel(image, level) if image else None
    return None


def _regular(folder: str | None, name: str, size: int) -> tuple[float, float, str | None]:
    """Spacing, origin and unit from a coordinate array; 1, 0, None where there is none."""
    unknown = (1.0, 0.0, None)
    path = os.path.join(folder or "", name)
    if folder is None or not has_positions(name.lower()) or not is_zarr(path):
        return unknown
    try:
        node = _read_node(path)
        if not node.is_array or node.content.get("shape") != [size] or size < 2:
            return unknown
        _form(node)
        values = np.empty(size)
        reader = _reader(node, "fill")
        reader.read((slice(0, size),), values)
    except SourceError:
        return unknown
    spacing = float(values[-1] - values[0]) / (size - 1)
    even = np.allclose(np.diff(values), spacing, rtol=1e-3, atol=0)
    dated = "since" in str(node.attributes.get("units"))
    if not even or not math.isfinite(spacing) or spacing <= 0 or dated:
        return unknown
    return spacing, float(values[0]), ome.normal_unit(node.attributes.get("units"))


def _reader(node: Node, missing: str) -> ZarrReader:
    if missing == "auto":
        missing = "error" if _is_complete(node) else "fill"
    status = os.stat(node.metadata_path)
    stamp = status.st_mtime_ns, status.st_size
    return ZarrReader(node.path, node.metadata_path, node.version, stamp, missing)


def _array_source(node: Node, image: _OmeLevel | None, missing: str) -> Source:
    _form(node)
    reader = _reader(node, missing)
    try:
        array, form = _opened(reader)
    except Exception as error:
        raise SourceError(
            f"metadata of {node.path} is damaged, or of a kind zarr cannot read: {error}"
        ) from error
    names: Sequence[str | None] = image.names if image else _own_names(node, array.ndim)
    if len(names) != array.ndim:
        raise SourceError(
            f"metadata of {node.path} is damaged: {len(names)} axes {tuple(names)} are named, "
            f"and the array has {array.ndim}: {array.shape}"
        )
    dims = axis_names(names, node.path)
    grid = image or _Coordinates(os.path.dirname(node.path), array.shape)
    spacing, origin, units = grid.grid(dims)
    omero = image.image.omero if image else None
    axes = StoredAxes(
        names=dims,
        shape=array.shape,
        chunks=array.chunks,
        shards=array.shards,
        spacing=spacing,
        origin=origin,
        units=units,
    )
    return make_source(
        node.path,
        kind="Zarr array",
        level=0,
        axes=axes,
        dtype=array.dtype,
        reader=reader,
        channel_names=image.image.channel_names if image else _names_beside(node, dims),
        attributes={} if omero is None else {"omero": dict(omero)},
        in_turn=bool(form.chunk.plain),
    )


def _names_beside(node: Node, dims: Sequence[str]) -> tuple[str, ...] | None:
    """Names of channels from a text array c beside an array (xarray's layout)."""
    path = os.path.join(os.path.dirname(node.path), "c")
    if "c" not in dims or not is_zarr(path):
        return None
    with warnings.catch_warnings(), suppress(Exception):  # without names it is a volume too
        warnings.simplefilter("ignore")  # that text is no settled part of Zarr 3
        values = np.asarray(zarr.open_array(path, mode="r")[...])
        if values.ndim == 1 and all(isinstance(value, str) for value in values.tolist()):
            return tuple(values.tolist())
    return None


def _own_names(node: Node, ndim: int) -> tuple[str | None, ...]:
    found = node.content.get("dimension_names")
    if node.version == 2:
        found = node.attributes.get("_ARRAY_DIMENSIONS")
    named = isinstance(found, list) and len(found) == ndim
    if not named or not all(isinstance(name, str) for name in found or ()):
        return (None,) * ndim
    return tuple(found or ())


def _levels(path: str, image: ome.Image) -> str:
    described = []
    for number, dataset in enumerate(image.datasets):
        inside = os.path.join(path, dataset.path)
        shape = _read_node(inside).content.get("shape") if is_zarr(inside) else "missing"
        described.append(f"{number} {_shape_text(shape)}")
    return f"levels {', '.join(described)}"


def _shape_text(shape: object) -> str:
    return f"({', '.join(map(str, shape))})" if isinstance(shape, list) else str(shape)


def _no_image(node: Node) -> SourceError:
    """Why a group cannot be opened, and what in it can."""
    path = node.path
    content = ome.image_metadata(node.attributes)
    if "bioformats2raw.layout" in content and is_zarr(os.path.join(path, "0")):
        return SourceError(f"{path} holds several images (bioformats2raw); pass {path}/0")
    inside = list(itertools.islice(_inside(path, ""), _LISTED + 1))
    if not inside:
        return SourceError(f"{path} is a Zarr group with no array in it")
    more = ", ..." if len(inside) > _LISTED else ""
    first = inside[0].split(" ")[0]
    return SourceError(
        f"{path} is a Zarr group and no OME-Zarr image; in it: "
        f"{', '.join(inside[:_LISTED])}{more}; pass one of them, e.g. {path}/{first}"
    )


def _inside(path: str, prefix: str, depth: int = 4) -> Iterator[str]:
    """Arrays (with their shapes) and images below a group, in order of name."""
    for name in sorted(os.listdir(path)):
        child = os.path.join(path, name)
        if not os.path.isdir(child) or not is_zarr(child):
            continue
        try:
            node = _read_node(child)
        except SourceError:
            continue
        if node.is_array:
            yield f"{prefix}{name} {_shape_text(node.content.get('shape'))}"
        elif "multiscales" in ome.image_metadata(node.attributes):
            yield f"{prefix}{name} (image)"
        elif depth > 1:
            yield from _inside(child, f"{prefix}{name}/", depth - 1)


FORMAT = Format("Zarr, OME-Zarr", lambda path: os.path.isdir(path) and is_zarr(path), open_zarr)
