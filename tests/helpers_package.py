"""The files that the package consists of."""

from __future__ import annotations

from pathlib import Path

import volpatch

ROOT = Path(volpatch.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
