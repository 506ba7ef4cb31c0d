"""Functions that worker processes import by name; the tests of runs use them."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np


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


told: list[int] = []


def shade_and_tell(patch):
    """Notes the first voxel of each patch that it is called with."""
    told.append(int(patch.flat[0]))
    return shade(patch)
