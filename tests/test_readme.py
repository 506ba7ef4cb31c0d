"""The README's Python runs as it stands, top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

import volpatch

README = Path(__file__).parent.parent / "README.md"


def test_the_snippets_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    volume = np.random.default_rng(0).integers(0, 99, (66, 70, 70), dtype=np.uint8)
    volpatch.to_zarr(volume, "scan.ome.zarr")
    import tifffile

    tifffile.imwrite("scan.tif", volume)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 8
    place: dict[str, object] = {"__name__": "readme"}
    for number, block in enumerate(blocks):
        if number:  # the outputs of one snippet are made again by another
            block = block.replace("sharp.ome.zarr", f"sharp{number}.ome.zarr")
        exec(compile(block, f"README snippet {number}", "exec"), place)


def test_the_set_up_commands_stand_on_lines_of_their_own():
    lines = README.read_text().splitlines()
    assert lines.count('python -m pip install ".[viz]" && volpatch demo') == 1
    assert lines.count('python -m pip install ".[test]" && python -m pytest') == 1
