"""The benchmarks still run; what they measure is not a matter for tests."""

from __future__ import annotations

import pytest

from benchmarks.__main__ import CASES

TINY = {
    "in-memory": {"n": 24, "patch": 8},
    "stores": {"n": 24, "patch": 8, "workers": 1},
    "dense": {"n": 24, "patch": 5, "batch": 16},
}


@pytest.mark.parametrize("case", CASES)
def test_a_benchmark_prints_a_table(case):
    assert case in TINY, "say how small this benchmark can be"
    text = CASES[case](runs=1, **TINY[case])
    title, header, *rows = text.splitlines()
    assert title
    assert "s" in header.split() or "median" in header.split()
    assert any("volpatch" in row and any(c.isdigit() for c in row) for row in rows)
