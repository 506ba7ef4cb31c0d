"""Read and decode the chunks of one file, straight to where their voxels belong.

For chains that are known (`ChunkForm.plain`): a compressor or none, and a CRC32C behind it or none.
The library behind each compressor is the one that zarr uses, so that the voxels are the same; what
is left out is what happens around it: an event loop, tasks, threads, and copies.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.storage.chain import ChunkForm, FileForm
from volpatch.storage.chunk_check import Span, checked
from volpatch.storage.codec import checksum

Array = NDArray[Any]


class Decoder:
    """Fills boxes from files; it owns room for one decoded chunk.

    Parameters
    ----------
    form : FileForm
        Of files whose chunks are plain.
    fill : scalar
        The value of chunks that are not stored.
    dense : bool
        Whether an absent chunk is an error.
    """

    def __init__(self, form: FileForm, fill: Any, *, dense: bool) -> None:
        self._form, self._fill, self._dense = form, fill, dense
        self._room: Array = np.empty(form.chunk_shape, form.chunk.plain)

    def read(self, path: str, box: Sequence[slice], out: Array) -> None:
        """Fill `out` (any strides) with a box of a file, in voxels from the file's first one.

        Raises
        ------
        AbsentChunk, ValueError
            As `checked` does; a ValueError, or another error of a decoder's, also where a
            chunk does not decode to its voxels, or its checksum is another.
        """
        shape = self._form.chunk_shape
        with checked(path, box, self._form, dense=self._dense, load=True) as chunks:
            for place, span in chunks:
                here, there = [], []
                for one, index, edge in zip(box, place, shape, strict=True):
                    start, stop = max(one.start, index * edge), min(one.stop, (index + 1) * edge)
                    here.append(slice(start - index * edge, stop - index * edge))
                    there.append(slice(start - one.start, stop - one.start))
                part = out[tuple(there)]
                if span is None:
                    part[...] = self._fill
                    continue
                try:
                    part[...] = self._decoded(span)[tuple(here)]
                except Exception as error:
                    if self._form.index is None:
                        raise
                    raise ValueError(f"chunk {place} of the shard: {error}") from error

    def _decoded(self, span: Span) -> Array:
        form, room = self._form.chunk, self._room
        held = span.held
        assert held is not None
        stored = _verified(held, form, room.nbytes)
        if form.compressor is None:
            return np.frombuffer(stored, room.dtype).reshape(room.shape)
        found = _codec(form.compressor).decode(stored, room.reshape(-1).view(np.uint8))
        if found.nbytes != room.nbytes:
            raise ValueError(f"it decodes to {found.nbytes} bytes, its voxels take {room.nbytes}")
        return room


def _verified(held: memoryview, form: ChunkForm, nbytes: int) -> memoryview:
    """What a chunk holds before its checksum, if it has one, which must be right."""
    if not form.back and (form.compressor is not None or form.nbytes == nbytes):
        return held
    stored, told = held[:-4], bytes(held[-4:])
    found = checksum(np.frombuffer(stored, np.uint8))
    if found != told:
        raise ValueError(
            f"its bytes have the checksum (CRC32C) {found.hex()}, and {told.hex()} is stored"
        )
    return stored


@functools.cache
def _codec(name: str) -> Any:
    from numcodecs import get_codec

    return get_codec({"id": name})
