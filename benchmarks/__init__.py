"""Benchmarks: volpatch beside a plain copy and other libraries; run `python -m benchmarks`."""
