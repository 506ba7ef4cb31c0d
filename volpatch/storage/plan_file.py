"""The plan of an output: what every process that builds it agrees on, in one immutable file.

Whoever comes first makes it, exclusively; whoever comes later compares what is asked for now,
field by field, and goes on only if the bytes would be the same.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volpatch.core.errors import TargetError
from volpatch.storage.files import open_file
from volpatch.storage.soundness import bad_field

PLAN = "plan.json"
FORMAT = 1
FUNCTIONS = ("function", "setup", "finalize", "skip")
INPUT = "source.data"  # how the input's files look: compared file by file, by planning.inputs
_MAX_PLAN_BYTES = 2**28


def canonical(value: Any) -> str:
    """JSON that is the same for the same value; 1, 1.0 and true are not, nor are 0.0 and -0.0.

    >>> canonical({"b": 1, "a": [2.0]})
    '{"a":[2.0],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest(value: Any) -> str:
    """SHA-256 of a value's canonical JSON.

    >>> digest({"b": 1, "a": [2]}) == digest({"a": [2], "b": 1})
    True
    """
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings, with dotted names.

    >>> list(flat({"a": {"b": 1}, "c": [2]}))
    [('a.b', 1), ('c', [2])]
    """
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{prefix}{key}.")
    else:
        yield prefix.rstrip("."), value


@dataclass(frozen=True)
class PlanFile:
    """What every process of a run agrees on.

    Attributes
    ----------
    identity : what determines the bytes of the output; its digest is the plan's id.
    layout : how the work is divided, and what the trial call told.
    job : the words that make the plan again; None where they hold objects, not names.
    """

    identity: dict[str, Any]
    layout: dict[str, Any]
    job: dict[str, Any] | None

    @property
    def id(self) -> str:
        return digest(self.identity)

    @property
    def writer(self) -> str | None:
        """What wrote the output, where that was no run: nobody can go on with it."""
        found = self.identity.get("writer")
        return None if found is None else str(found)

    @property
    def n_regions(self) -> int:
        return int(self.layout["regions"])

    def to_bytes(self) -> bytes:
        values = {"identity": self.identity, "layout": self.layout, "job": self.job}
        top = {"volpatch_plan": FORMAT, "id": self.id, "sum": digest(values)}
        return (json.dumps({**top, **values}, indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def load(cls, folder: Path) -> PlanFile | None:
        """The plan in a ledger's folder; None where there is none."""
        path = folder / PLAN
        try:
            with open_file(path) as file:
                values = json.loads(file.read(_MAX_PLAN_BYTES))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError as error:
            raise TargetError(
                f"the plan {str(path)!r} cannot be read (permission denied): it may be another "
                f"user's. Choose another output name, or let its owner change the permissions"
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise TargetError(
                f"the plan {str(path)!r} cannot be read ({error}); {_START_OVER}"
            ) from error
        if not isinstance(values, dict) or values.get("volpatch_plan") != FORMAT:
            raise TargetError(
                f"the plan {str(path)!r} was made by another version of volpatch; go on with that "
                f"version, or start over with overwrite=True"
            )
        parts: dict[str, Any] = {name: values.get(name) for name in ("identity", "layout", "job")}
        if (values.get("sum"), values.get("id")) != (digest(parts), digest(parts["identity"])):
            raise TargetError(
                f"the plan {str(path)!r} is damaged: it no longer matches its own checksum; "
                f"{_START_OVER}"
            )
        if (name := bad_field(parts)) is not None:
            raise TargetError(
                f"the plan {str(path)!r} is damaged: its {name} cannot be what it says; "
                f"{_START_OVER}"
            )
        return cls(**parts)

    def differences(self, other: PlanFile) -> list[str]:
        """Fields in which another plan differs, old against new; the input's files apart."""
        if self.writer is not None and self.writer != other.writer:
            return [f"it was written by {self.writer} and is now asked of run"]
        mine, theirs = dict(flat(self.identity)), dict(flat(other.identity))
        files = dict(flat({"depends_on": other.layout.get("depends_on")}))
        unlike = {
            name
            for name in {*mine, *theirs} - {INPUT}
            if canonical(mine.get(name)) != canonical(theirs.get(name))
        }
        # the attributes of an output repeat what other fields say
        told = {name for name in unlike if not name.startswith(_ATTRIBUTES)}
        return [
            f"{name}{f' ({files[name]})' if name in files else ''} was "
            f"{_shown(mine.get(name), theirs.get(name))} and is now "
            f"{_shown(theirs.get(name), mine.get(name))}"
            for name in sorted(told or unlike)
            if not _goes_without_saying(name, unlike)
        ]

    def check_same(self, wanted: PlanFile, place: Path, *, finished: bool = False) -> None:
        """Refuse to go on with a plan that would give other bytes, or to take it for done."""
        differences = self.differences(wanted)
        if differences and finished:
            raise TargetError(
                f"the output {str(place)!r} exists, and was made by another job: "
                f"{'; '.join(differences)}; pass overwrite=True to replace it when "
                f"the new one is complete, or choose another name"
            )
        if differences:
            raise TargetError(
                f"{str(place)!r} holds a run of another plan: {'; '.join(differences)}. Ask for "
                f"the same again to go on with it, or start over with overwrite=True"
            )


def _goes_without_saying(name: str, unlike: Collection[str]) -> bool:
    """Whether a field tells what a function is made of, and another one was given altogether."""
    parts = name.split(".")
    if parts[0] not in FUNCTIONS:
        return False
    return any(
        part not in ("target", "parameters", "factory")
        and ("func_version" in unlike or ".".join([*parts[:depth], "target"]) in unlike)
        for depth, part in enumerate(parts[1:], 1)
    )


_ATTRIBUTES = "output.attributes."
_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")  # a SHA-256, of which a part is shown
_START_OVER = "restore it from a copy, or start over with overwrite=True"


def _shown(value: Any, other: Any) -> str:
    """A value in words; of a long one the part from where it differs from another on."""
    text, unlike = (
        "nothing" if v is None else _HASH.sub(r"\1...", json.dumps(v)) for v in (value, other)
    )
    if len(text) <= 80:
        return text
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(text, unlike, strict=False))
    begin = max(0, sum(1 for _ in alike) - 30)
    part = f"{'...' if begin else ''}{text[begin : begin + 60]}"
    return part if begin + 60 >= len(text) else f"{part}... ({digest(value)[:12]})"
