"""Functions that worker processes import by name; the tests of runs use them."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np

from volpatch import SettingError


def identity(patch):
    return patch


def shade(patch):
    """Values that depend on the whole patch, so that a misplaced patch shows."""
    return patch * np.float32(0.5) + np.float32(patch.flat[0]) - np.float32(patch.flat[-1])


def shade_batch(batch):
    return np.stack([shade(patch) for patch in batch])


def labels(patch):
    """Whole numbers that tell patches apart."""
    return (patch.astype("int64") * 3 + int(patch.flat[0])).astype("int32")


def channels(patch):
    return np.stack([patch, -patch, patch * patch.flat[0]]).astype("float32")


def brightest(block):
    return block.argmax(0).astype("uint8")


def mean_of_channels(patch):
    return patch.mean(0, dtype="float32")


def zeros(patch):
    return np.zeros(patch.shape, "float32")


def fail_at_noon(patch):
    if patch.flat[0] == 777:
        raise ValueError("the sun is too high")
    return patch.astype("float32")


class AwkwardError(Exception):
    """Cannot be rebuilt from its arguments, nor pickled."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")
        self.lock = threading.Lock()


class WordlessError(Exception):
    """Nothing can be said of it."""

    def __str__(self):
        raise RuntimeError("no words")

    __repr__ = __str__


class Ending(BaseException):
    """No error by its class, as those that end a program are."""


def fail_awkwardly(patch):
    raise AwkwardError("this", "that")


def die(patch):
    os._exit(17)


def die_later(patch):
    """Survives the trial's two calls, then ends its process."""
    die_later.calls = getattr(die_later, "calls", 0) + 1
    if die_later.calls > 3:
        os._exit(23)
    return patch.astype("float32")


def make_and_count():
    """A factory that leaves a file per process and per call in the folder of the test."""
    folder = Path(os.environ["VOLPATCH_TEST_FOLDER"])
    (folder / f"{os.getpid()}-{time.monotonic_ns()}").touch()
    return shade


class Crowd:
    """Counts how many calls run at the same time."""

    def __init__(self):
        self.now = self.most = 0
        self.lock = threading.Lock()

    def __call__(self, patch):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.004)
        with self.lock:
            self.now -= 1
        return patch.astype("float32")


def half(patch):
    return patch * np.float32(0.5)


def four(patch):
    return np.stack([patch * np.float32(k) for k in (0.25, 0.5, 0.75, 1)])


class Tensor:
    """Looks like what a network returns."""

    def cpu(self):
        return self


def _raise(error):
    raise error


# what a function may do wrong on one of many patches, after it was right on others
MISDEEDS = {
    "None": lambda patch: None,
    "list": lambda patch: patch.tolist(),
    "scalar": lambda patch: patch.dtype.type(3),
    "number": lambda patch: 3.0,
    "tensor": lambda patch: Tensor(),
    "one voxel": lambda patch: np.zeros((1, 1, 1), "float32"),
    "extra axis": lambda patch: shade(patch)[None],
    "axis dropped": lambda patch: shade(patch)[0],
    "another dtype": lambda patch: shade(patch).astype("float64"),
    "complex": lambda patch: shade(patch).astype("complex64"),
    "objects": lambda patch: shade(patch).astype(object),
    "masked": lambda patch: np.ma.masked_greater(shade(patch), 500),
    "raises": lambda patch: _raise(ValueError("too dark")),
    "raises without a word": lambda patch: _raise(ValueError),
    "raises at length": lambda patch: _raise(ValueError("a" * 3_000_000)),
    "awkward": fail_awkwardly,
    "stops": lambda patch: _raise(StopIteration("no more")),
    "exits": lambda patch: sys.exit(0),
    "interrupts": lambda patch: _raise(KeyboardInterrupt()),
    "cancels": lambda patch: _raise(asyncio.CancelledError("by a library")),
    "ends": lambda patch: _raise(Ending("of all")),
    "has no memory": lambda patch: _raise(MemoryError("no room for 9 GB")),
    "speaks for us": lambda patch: _raise(SettingError("choose another one")),
    "is wordless": lambda patch: _raise(WordlessError()),
    # for worker processes alone
    "ends its process": lambda patch: os._exit(0),
    "aborts": lambda patch: os.abort(),
}
MARK = 1000


def folder():
    """The folder of the test, also in worker processes."""
    return Path(os.environ["VOLPATCH_TEST_FOLDER"])


def misbehave(patch):
    """Does the misdeed whose number the first voxel tells, until the test says it is mended."""
    number = int(patch.flat[0]) - MARK
    if number < 0 or (folder() / "mended").exists():
        return shade(patch)
    return list(MISDEEDS.values())[number](patch)


def misbehave_batch(batch):
    return np.stack([misbehave(patch) for patch in batch])


def shade_and_count(patch):
    """Leaves a byte per call."""
    with open(folder() / "calls", "ab", buffering=0) as calls:
        calls.write(b".")
    return shade(patch)


def end_after(patch):
    """Ends its process, without a word, at the call whose number is in a file."""
    limit = int((folder() / "limit").read_text())
    with open(folder() / "calls", "ab", buffering=0) as calls:
        calls.write(b".")
    if (folder() / "calls").stat().st_size >= limit:
        os._exit(9)
    return shade(patch)


def fail_twice(patch):
    """On the patch that is marked, twice; then never again."""
    if patch.flat[0] >= MARK:
        with open(folder() / "tries", "ab", buffering=0) as tries:
            tries.write(b".")
        if (folder() / "tries").stat().st_size <= 2:
            raise ConnectionError("the server is busy")
    return shade(patch)


def spoil(patch):
    """Uses its input as scratch space."""
    result = shade(patch)
    patch[...] = 0
    return result


def in_place(patch):
    """Gives back its input, changed."""
    patch += np.float32(1)
    return patch


def flipped_view(patch):
    return patch[::-1, ::-1, ::-1]


class OneBuffer:
    """Gives back the same array at each call, as compiled networks do."""

    def __init__(self):
        self.buffer = None

    def __call__(self, patch):
        if self.buffer is None:
            self.buffer = np.empty(patch.shape, "float32")
        self.buffer[...] = shade(patch)
        return self.buffer


def rude(patch):
    """Changes what all of a process shares."""
    os.chdir("/")
    np.seterr(all="raise")
    np.random.seed(0)  # noqa: NPY002 - just what must not be done
    return shade(patch)


def behind_a_gate(patch):
    """As `misbehave`; where the environment says so, it tells that it is here and waits."""
    gate = folder() / "gate"
    if "VOLPATCH_TEST_WAITS" in os.environ and gate.exists():
        (folder() / "arrived").touch()
        while gate.exists():
            time.sleep(0.005)
    return misbehave(patch)


def generate(patch):
    yield patch


async def later(patch):
    return patch


told: list[int] = []


def shade_and_tell(patch):
    """Notes the first voxel of each patch that it is called with."""
    told.append(int(patch.flat[0]))
    return shade(patch)
