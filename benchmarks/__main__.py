"""Run the benchmarks and print their tables."""

from __future__ import annotations

import argparse

from benchmarks import dense, in_memory, stores

CASES = {"in-memory": in_memory.main, "stores": stores.main, "dense": dense.main}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES), help=", ".join(CASES))
    parser.add_argument("-n", type=int, help="edge of the volume or image, in voxels")
    parser.add_argument("--runs", type=int, help="counted runs of each contender")
    words = vars(parser.parse_args())
    sizes = {k: v for k, v in words.items() if k != "cases" and v is not None}
    for name in words["cases"]:
        print(CASES[name](**sizes), flush=True)


if __name__ == "__main__":
    main()
