"""What notebooks show: plain tables that are well-formed, escaped, and hold the key figures."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import volpatch
from tests.strategies import problems
from volpatch import PatchGrid, to_zarr
from volpatch.core.tables import html as table

ALLOWED = {"table", "caption", "tbody", "tr", "th", "td", "br"}


class Reader(HTMLParser):
    """Texts of a table's cells, by row; refuses what is not closed, or not allowed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert tag in ALLOWED
        assert all(name == "scope" for name, _ in attrs)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1], data))

    @property
    def text(self) -> str:
        return "\n".join(data for _, data in self.texts)


@given(st.text(max_size=20), st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9))))
def test_whatever_is_shown_stays_text(title, rows):
    page = table(title, rows)
    Reader(page)
    assert page.count("<tr>") == len(rows)


def test_markup_in_a_value_is_escaped():
    page = table("<b>", [("<script>", "</td>&'\"")])
    assert "<script>" not in page
    assert ("td", "</td>&'\"") in Reader(page).texts


@given(problems())
def test_a_grid_shows_its_figures_and_its_text_makes_it_again(grid):
    shown = Reader(grid._repr_html_()).text
    for figure in (grid.shape, grid.patch, grid.stride, f"{len(grid):,}", grid.lattice):
        assert str(figure) in shown
    assert "\n" not in repr(grid)
    assert eval(repr(grid)) == grid
    assert repr(grid).startswith("PatchGrid(shape=(")


def test_a_huge_grid_is_shown_at_once():
    assert (
        f"{len(PatchGrid((10**6,) * 3, 64, 32)):,}" in PatchGrid((10**6,) * 3, 64, 32)._repr_html_()
    )


@pytest.fixture
def source(tmp_path):
    return to_zarr(np.ones((20, 24, 28), "uint8"), tmp_path / "a & <b>.zarr")


def test_a_plan_and_a_report_show_what_their_text_says(source, tmp_path):
    options = {"patch": 8, "dtype": "uint8"}
    plan = volpatch.plan(source, tmp_path / "<i>.zarr", **options)
    report = volpatch.run(lambda p: p, source, tmp_path / "<i>.zarr", **options)
    for thing, text in ((plan, plan.explain()), (report, repr(report))):
        page = thing._repr_html_()
        reader = Reader(page)
        assert "<i>" not in page
        names = [data for tag, data in reader.texts if tag == "th"]
        assert names == [line.split()[0] for line in text.splitlines() if line[0] != " "]
        shown = reader.text
        assert all(line[10:].strip() in shown for line in text.splitlines())
    assert f"{plan.patches_computed:,} computed" in plan._repr_html_()
