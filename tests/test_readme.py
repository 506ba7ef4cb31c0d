"""The Python of the README and of the guides runs as it stands, top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import volpatch
from volpatch.cli import guide
from volpatch.cli.main import execute

ROOT = Path(__file__).parent.parent
GUIDES = Path(str(guide.FOLDER))
PAGES = [ROOT / "README.md", *(GUIDES / f"{name}.md" for name in guide.NAMES)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_snippets_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    volume = np.random.default_rng(0).integers(0, 99, (66, 70, 70), dtype=np.uint8)
    volpatch.to_zarr(volume, "scan.ome.zarr")
    import tifffile

    tifffile.imwrite("scan.tif", volume)
    place: dict[str, object] = {"__name__": "page"}
    for number, block in enumerate(python_of(page)):
        exec(compile(block, f"{page.name}, snippet {number}", "exec"), place)


def python_of(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def test_there_is_something_to_run():
    assert len(python_of(ROOT / "README.md")) >= 2
    assert sum(len(python_of(page)) for page in PAGES) >= 20


def test_the_set_up_commands_stand_on_lines_of_their_own():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert lines.count('python -m pip install ".[viz]" && volpatch demo') == 1
    assert lines.count('python -m pip install ".[test]" && python -m pytest') == 1


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 150
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert {f"volpatch/guides/{name}.md" for name in guide.NAMES} <= set(links)
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_guides_are_listed_and_shown(capsys):
    assert {path.stem for path in GUIDES.glob("*.md")} == set(guide.NAMES)
    assert execute(["guide"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(guide.NAMES)
    for name in guide.NAMES:
        assert execute(["guide", name]) == 0
        assert capsys.readouterr().out == (GUIDES / f"{name}.md").read_text()


def test_a_guide_that_there_is_not_gets_the_names_of_all(capsys):
    assert execute(["guide", "widnows"]) == 3
    assert (
        "there is no guide 'widnows'; there are start, windows, filters" in capsys.readouterr().err
    )
