"""The table of regions against a list, and what it takes for a billion of them."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volpatch.core.numbers import Numbers
from volpatch.core.parse import show_numbers
from volpatch.storage import records, regions
from volpatch.storage.records import DONE, State
from volpatch.storage.regions import RegionTable


@pytest.fixture(autouse=True, scope="module")
def small_pages():
    patch = pytest.MonkeyPatch()
    patch.setattr(regions, "PAGE", 7)
    patch.setattr(regions, "OPEN_PAGES", 2)
    yield
    patch.undo()


@given(
    st.integers(1, 60).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, 5)), max_size=80),
            st.tuples(st.integers(0, n), st.integers(0, n), st.integers(1, 5)),
        )
    ),
    st.sets(st.integers(0, 5)),
)
def test_it_is_a_list_of_states(case, asked):
    n, changes, bounds = case
    table, states = RegionTable(n, 6), [0] * n
    for region, state in changes:
        table[region] = states[region] = state
    assert [table[i] for i in range(n)] == states
    assert table.tally == [states.count(state) for state in range(6)]

    def chosen(page):
        return np.isin(page, list(asked))

    wanted = [i for i, state in enumerate(states) if state in asked]
    found = table.where(chosen)
    assert list(found) == wanted == [found[i] for i in range(len(found))]
    assert found == wanted
    assert all(a.stop < b.start for a, b in zip(found.ranges, found.ranges[1:], strict=False))
    numbers = range(*bounds)
    assert table.count(numbers, chosen) == sum(states[i] in asked for i in numbers)
    for most in (None, 1, 2):
        assert show_numbers(found, most) == show_numbers(wanted, most)


@given(st.lists(st.integers(0, 30), unique=True).map(sorted))
def test_numbers_are_a_sequence_of_them(numbers):
    found = Numbers(range(n, n + 1) for n in numbers)
    assert list(found) == numbers
    assert found[1:-1] == numbers[1:-1]
    assert bool(found) == bool(numbers)
    assert found == Numbers(found.ranges)
    with pytest.raises(IndexError):
        found[len(numbers)]


def done(region):
    units = [[region, 1, "0"]]
    told = {"of": 1, "units": units, "patches": 1, "clipped": 0, "time": 0.0}
    return {"kind": "layer", "region": region, **told}


def test_a_billion_regions_take_what_was_done_of_them(monkeypatch):
    monkeypatch.setattr(regions, "PAGE", 2**16)
    n = 956_000_000
    tracemalloc.start()
    try:
        state = State(n)
        for region in itertools.chain(range(3 * 2**16), [n - 1]):
            state.take(done(region))
        left = state.left
        asked = state.status.count(range(1, n, 2), lambda states: states < DONE)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert left.ranges == [range(3 * 2**16, n - 1)]
    assert (asked, state.n_done) == ((n - 3 * 2**16) // 2 - 1, 3 * 2**16 + 1)
    assert peak < 4 * 2**20 < regions.table_bytes(n, mixed=False) < 2**24


@pytest.mark.parametrize("mixed", [False, True])
def test_a_table_takes_no_more_than_it_is_planned_to(monkeypatch, mixed):
    monkeypatch.setattr(regions, "PAGE", 2**12)
    n = 2**16
    states = np.random.default_rng(0).integers(3, 6, n) if mixed else np.full(n, DONE)
    tracemalloc.start()
    try:
        table = RegionTable(n, 6)
        for region, state in enumerate(states.tolist()):
            table[region] = state
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < regions.table_bytes(n, mixed=mixed) + 2**13


def test_records_are_not_looked_at_more_often_than_asked(monkeypatch):
    now, looks = [100.0], []
    monkeypatch.setattr(records.time, "monotonic", lambda: now[0])

    def events():
        looks.append(now[0])
        return [done(len(looks) - 1)]

    state = State(9, events=events)
    for _ in range(5):
        state.refresh(at_most_every=1.0)
    now[0] = 100.9
    state.refresh(at_most_every=1.0)
    assert (looks, state.n_done) == ([100.0], 1)
    now[0] = 101.0
    state.refresh(at_most_every=1.0)
    state.refresh()
    assert (looks, state.n_done) == ([100.0, 101.0, 101.0], 3)
