"""Compressors of chunks, by the name that `codec=` gives them: the same bytes wherever they run.

    'blosc-zstd:1:bitshuffle' --parse--> Codec --> for the metadata (zarr's objects)
                                              '-> bytes -> bytes (numcodecs)

Blosc cuts a chunk into blocks, reorders the bytes of each by their place in a voxel (the high bytes
of integers are alike, which is what makes it small) and compresses them one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from volpatch.core.errors import SettingError

BLOSC_LIMIT = 2**31 - 17  # it keeps sizes in 32 bits, its header included
Shuffle = Literal["noshuffle", "shuffle", "bitshuffle"]
_SHUFFLES: tuple[Shuffle, ...] = get_args(Shuffle)  # in the order of Blosc's numbers
_USUAL: Shuffle = "shuffle"
_IN_BLOSC: dict[str, Literal["zstd", "lz4"]] = {"blosc-zstd": "zstd", "blosc-lz4": "lz4"}
_LEVELS = {  # what is taken where none is given, and the highest
    "blosc-zstd": (1, 9),
    "blosc-lz4": (5, 9),
    "zstd": (3, 22),
    "none": (0, 0),
}
NAMES = "blosc-zstd[:LEVEL][:bitshuffle|noshuffle], blosc-lz4 likewise, zstd[:LEVEL], none"

Compress = Callable[[NDArray[np.uint8]], bytes]


@dataclass(frozen=True, slots=True)
class Codec:
    """A compressor, how hard it tries, and how bytes are reordered before it.

    >>> print(Codec.parse("blosc-zstd"), Codec.parse("zstd:9"), Codec.parse("none"))
    blosc-zstd:1 zstd:9 none
    """

    name: str
    level: int
    shuffle: Shuffle | None = None

    @classmethod
    def parse(cls, text: str) -> Codec:
        """Read what a user wrote.

        Raises
        ------
        SettingError
        """
        name, *rest = text.split(":") if isinstance(text, str) else ("",)
        if name not in _LEVELS:
            hint = "; lz4 is called blosc-lz4" if name == "lz4" else ""
            raise SettingError(f"codec={text!r} is not known{hint}; there are {NAMES}")
        level, highest = _LEVELS[name]
        shuffle = _USUAL if name in _IN_BLOSC else None
        if rest and rest[0].isascii() and rest[0].isdigit():
            level = int(rest.pop(0)[:9])
        if shuffle and rest and rest[0] in _SHUFFLES:
            shuffle = _SHUFFLES[_SHUFFLES.index(rest.pop(0))]
        if rest or (highest and not 1 <= level <= highest) or (not highest and text != name):
            levels = f" with a LEVEL from 1 to {highest}" if highest else " alone"
            raise SettingError(
                f"codec={text!r} cannot be: {name} stands{levels}; there are {NAMES}"
            )
        return cls(name, level, shuffle)

    def __str__(self) -> str:
        words = [self.name]
        if self.level:
            words.append(str(self.level))
        if self.shuffle and self.shuffle != _USUAL:
            words.append(self.shuffle)
        return ":".join(words)

    def check(self, nbytes: int) -> None:
        """Refuse chunks of so many bytes, if they are too many."""
        if self.shuffle and nbytes > BLOSC_LIMIT:
            raise SettingError(
                f"codec={str(self)!r} takes chunks below 2 GiB, and these have {nbytes} bytes; "
                f"choose smaller chunks, or codec='zstd'"
            )

    def for_metadata(self, itemsize: int) -> list[Any]:
        """The codecs that follow zarr's `bytes` codec, as zarr's own objects."""
        from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

        if self.shuffle:
            blosc = BloscCodec(
                typesize=itemsize,
                cname=_IN_BLOSC[self.name],
                clevel=self.level,
                shuffle=self.shuffle,
                blocksize=0,
            )
            return [blosc, Crc32cCodec()]
        if self.name == "zstd":
            return [ZstdCodec(level=self.level, checksum=False), Crc32cCodec()]
        return [Crc32cCodec()]

    def compressor(self, itemsize: int) -> Compress | None:
        """What makes the bytes of a chunk smaller; None if nothing does."""
        if self.shuffle:
            return _blosc(_IN_BLOSC[self.name], self.level, self.shuffle, itemsize)
        if self.name == "zstd":
            from numcodecs import Zstd

            encode: Compress = Zstd(level=self.level).encode
            return encode
        return None


def _blosc(name: str, level: int, shuffle: Shuffle, itemsize: int) -> Compress:
    from numcodecs import Blosc, blosc

    encode = Blosc(name, level, _SHUFFLES.index(shuffle), 0, typesize=itemsize).encode

    def compress(voxels: NDArray[np.uint8]) -> bytes:
        # Threads of Blosc's own append blocks as they finish. The switch is the process's, and any
        # library may turn it between the next two lines; then the blocks tell.
        while True:
            blosc.use_threads = False
            payload: bytes = encode(voxels)
            if _in_order(payload):
                return payload

    return compress


_HEADER = 16  # version, its compressor's version, flags, typesize; bytes, block size, stored bytes
_COPIED = 0x2  # nothing became smaller: the bytes as they are, and no blocks


def _in_order(payload: bytes) -> bool:
    """Whether blocks lie in the file as they do in the chunk."""
    if payload[2] & _COPIED:
        return True
    nbytes, block = np.frombuffer(payload, "<u4", 2, 4).tolist()
    starts = np.frombuffer(payload, "<i4", -(-nbytes // block), _HEADER)
    return bool(np.all(starts[1:] > starts[:-1]))
