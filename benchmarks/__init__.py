"""Questions with a clock: `python -m benchmarks --help`."""
