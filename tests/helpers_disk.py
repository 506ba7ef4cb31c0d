"""A disk that remembers: every change below a folder, and what any crash would have left of it.

`Trace` notes each operation on files while a run goes on. `states` plays them again on a model
of a file system and gives what a reader would find if everything had stopped there: before the
first operation, between any two, in the middle of each write, after the last. So one run gives
all crash points, also those within the cleaning up that an exception would set off but a kill
does not.

What stopped is the process, or the machine:

    killed    all that was done is there
    empty     folders are as they were, but no byte that was not flushed is there
    torn      the same, with some first part of those bytes
    unnamed   names that were made, moved or removed in a folder since it was last flushed are
              as they were then, and no byte that was not flushed is there

A rename is one step for both of its folders, and lasts when either of them is flushed. Not
modelled: bytes of a file that arrive in another order than they were written in, a name that
is in both or in none of two folders, disks that lie about flushing.
"""

from __future__ import annotations

import math
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

KILLED, EMPTY, TORN, UNNAMED = "killed", "empty", "torn", "unnamed"
POWER_CUTS = (EMPTY, TORN, UNNAMED)
Tree = dict[str, bytes | None]  # by path below the root; None for a folder
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Op:
    """One change: `kind` on paths below the root, or on an opened file by its number."""

    kind: str
    paths: tuple[str, ...] = ()
    file: int = -1
    data: bytes = field(default=b"", repr=False)


class Dead(BaseException):
    """Raised where a process that has ended would do something."""


class Trace:
    """Notes what is done by way of `os` to files below a folder while inside; flushes nothing.

    Parameters
    ----------
    root : Path
    watch : callable, optional
        Is told each change after it was made.
    lifetime : int, optional
        Number of changes after which each further one raises `Dead`, and is not made.

    Attributes
    ----------
    ops : what succeeded, in order.
    tried : how often each kind of change was tried.
    """

    def __init__(
        self,
        root: Path,
        watch: Callable[[Op], None] = lambda op: None,
        lifetime: float = math.inf,
    ) -> None:
        self.root, self.watch, self.lifetime = root, watch, lifetime
        self.ops: list[Op] = []
        self.tried: Counter[str] = Counter()
        self._files: dict[int, int] = {}  # by handle
        self._count = 0

    def __enter__(self) -> Trace:
        calls = {"open": self._open, "write": self._write, "fsync": self._fsync}
        for name in ("replace", "rename", "link", "unlink", "remove", "mkdir", "rmdir"):
            calls[name] = self._named(name)
        self._patches = [mock.patch.object(os, name, call) for name, call in calls.items()]
        self._real = {name: getattr(os, name) for name in calls}
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *error: object) -> None:
        for patch in self._patches:
            patch.stop()

    def _below(self, path: Any) -> str | None:
        """The path below the root, if it is there."""
        try:
            return str(Path(os.path.abspath(os.fspath(path))).relative_to(self.root))
        except ValueError:
            return None

    def _live(self) -> None:
        if len(self.ops) >= self.lifetime:
            raise Dead

    def _note(self, op: Op) -> None:
        self.ops.append(op)
        self.watch(op)

    def _open(self, path: Any, flags: int, *more: Any, **options: Any) -> int:
        name = self._below(path)
        if name is not None:
            self._live()
            assert not options
            assert not flags & os.O_TRUNC
            self.tried["open"] += bool(flags & _WRITES)
        handle: int = self._real["open"](path, flags, *more, **options)
        self._files.pop(handle, None)
        if name is not None:
            self._count += 1
            self._files[handle] = self._count
            unnamed = flags & os.O_TMPFILE == os.O_TMPFILE
            kind = "hide" if unnamed else "make" if flags & os.O_CREAT else "open"
            self._note(Op(kind, (name,), self._count))
        return handle

    def _write(self, handle: int, data: Any) -> int:
        if handle in self._files:
            self._live()
        size: int = self._real["write"](handle, data)
        if handle in self._files:
            self._note(Op("write", (), self._files[handle], bytes(data[:size])))
        return size

    def _fsync(self, handle: int) -> None:
        if handle not in self._files:
            return self._real["fsync"](handle)
        self._live()
        return self._note(Op("flush", (), self._files[handle]))

    def _named(self, name: str) -> Callable[..., None]:
        kind = {"replace": "rename", "remove": "unlink"}.get(name, name)

        def call(*args: Any, **options: Any) -> None:
            paths = [self._below(p) for p in args[: 2 if kind in ("rename", "link") else 1]]
            ours = any(path is not None for path in paths)
            if ours:
                self._live()
            self.tried[kind] += ours
            self._real[name](*args, **options)
            if ours:
                assert not options
                self._note(Op(kind, tuple(str(path) for path in paths)))

        return call


@dataclass(eq=False)
class File:
    data: bytes = b""
    safe: int = 0  # first bytes, that were flushed


@dataclass(eq=False)
class Folder:
    names: dict[str, File | Folder] = field(default_factory=dict)
    safe: dict[str, File | Folder] = field(default_factory=dict)


class Disk:
    """Files and folders, and how much of them would survive."""

    def __init__(self, tree: Tree) -> None:
        self.root = Folder()
        self._open: dict[int, File | Folder] = {}
        self._moves: list[tuple[Folder, str, Folder, str, File | Folder]] = []
        for path in sorted(tree, key=lambda path: path.count("/")):
            data = tree[path]
            parent, name = self._place(path)
            node = Folder() if data is None else File(data, len(data))
            parent.names[name] = parent.safe[name] = node

    def _place(self, path: str) -> tuple[Folder, str]:
        *parents, name = Path(path).parts or (".",)
        folder = self.root
        for part in parents:
            inner = folder.names[part]
            assert isinstance(inner, Folder)
            folder = inner
        return folder, name

    def do(self, op: Op) -> None:
        """Apply one change."""
        getattr(self, f"do_{op.kind}")(op)

    def do_make(self, op: Op) -> None:
        folder, name = self._place(op.paths[0])
        self._open[op.file] = folder.names.setdefault(name, File())

    def do_hide(self, op: Op) -> None:
        self._open[op.file] = File()

    def do_open(self, op: Op) -> None:
        folder, name = self._place(op.paths[0])
        self._open[op.file] = self.root if name == "." else folder.names[name]

    def do_write(self, op: Op) -> None:
        file = self._open[op.file]
        assert isinstance(file, File)
        file.data += op.data

    def do_flush(self, op: Op) -> None:
        node = self._open[op.file]
        if isinstance(node, File):
            node.safe = len(node.data)
            return
        node.safe = dict(node.names)
        for old, before, new, after, moved in self._moves:
            if node in (old, new):
                if old.safe.get(before) is moved:
                    del old.safe[before]
                if new.names.get(after) is moved:
                    new.safe[after] = moved

    def do_rename(self, op: Op) -> None:
        (old, before), (new, after) = map(self._place, op.paths)
        node = old.names.pop(before)
        new.names[after] = node
        self._moves.append((old, before, new, after, node))

    def do_link(self, op: Op) -> None:
        (old, before), (new, after) = map(self._place, op.paths)
        new.names[after] = old.names[before]

    def do_unlink(self, op: Op) -> None:
        folder, name = self._place(op.paths[0])
        del folder.names[name]

    do_rmdir = do_unlink

    def do_mkdir(self, op: Op) -> None:
        folder, name = self._place(op.paths[0])
        folder.names[name] = Folder()

    def tree(self, model: str = KILLED, chance: random.Random | None = None) -> Tree:
        """What is found if everything stops now."""
        found: Tree = {}
        kept: dict[File, bytes] = {}

        def survives(file: File) -> bytes:
            if file not in kept:
                size = {KILLED: len(file.data), TORN: -1}.get(model, file.safe)
                if size < 0:
                    assert chance is not None
                    size = chance.randint(file.safe, len(file.data))
                kept[file] = file.data[:size]
            return kept[file]

        def walk(folder: Folder, path: str) -> None:
            for name, node in (folder.safe if model == UNNAMED else folder.names).items():
                if isinstance(node, File):
                    found[path + name] = survives(node)
                else:
                    found[path + name] = None
                    walk(node, f"{path}{name}/")

        walk(self.root, "")
        return found


@dataclass(frozen=True)
class Crash:
    """What a crash left."""

    number: int
    where: str
    model: str
    tree: Tree = field(repr=False)


def states(
    before: Tree, ops: Sequence[Op], models: Sequence[str], seed: int = 0
) -> Iterator[Crash]:
    """What is left by crashes at all points of a run, each different state once.

    After operation k is before operation k + 1, and a flush changes nothing that a kill leaves,
    so there are fewer states than points. Without `KILLED` among the models, only such states
    come that no kill leaves.
    """
    disk, chance = Disk(before), random.Random(seed)
    seen: set[frozenset[tuple[str, bytes | None]]] = set()

    def now(number: int, where: str) -> Iterator[Crash]:
        for model in (KILLED, *POWER_CUTS):
            tree = disk.tree(model, chance)
            key = frozenset(tree.items())
            new = key not in seen and (model == KILLED or model in models)
            if new or model == KILLED:
                seen.add(key)
            if new and model in models:
                yield Crash(number, where, model, tree)

    for number, op in enumerate(ops):
        yield from now(number, f"before {op}")
        if op.kind == "write":
            half = len(op.data) // 2
            disk.do(Op("write", (), op.file, op.data[:half]))
            yield from now(number, f"half-way through {op}")
            op = Op("write", (), op.file, op.data[half:])
        disk.do(op)
    yield from now(len(ops), "after the last operation")


def read_tree(root: Path) -> Tree:
    """All below a folder."""
    found: Tree = {}
    for parent, folders, files in os.walk(root):
        prefix = "" if parent == str(root) else os.path.relpath(parent, root) + "/"
        found.update(dict.fromkeys((prefix + name for name in folders), None))
        for name in files:
            with open(f"{parent}/{name}", "rb") as file:
                found[prefix + name] = file.read()
    return found


def write_tree(root: Path, tree: Tree) -> None:
    """Make a folder hold just this."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for path, data in sorted(tree.items(), key=lambda item: item[0].count("/")):
        if data is None:
            os.mkdir(f"{root}/{path}")
        else:
            with open(f"{root}/{path}", "wb") as file:
                file.write(data)
