"""Run the benchmarks: `python -m benchmarks [NAME ...]`, all but the long ones where none is named."""

from __future__ import annotations

import argparse
import importlib
import sys

STANDARD = ("masking", "device_startup", "step_memory", "rounds", "transport")
LONG = (
    "device",
    "example_store",
    "epsilon_tables",
    "java_step",
    "personal",
    "secagg",
    "step_loop",
    "train_step",
    "utility_table",
)


def main() -> None:
    """Run what is named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join((*STANDARD, *LONG))}")
    names = parser.parse_args().names or STANDARD
    unknown = set(names) - set(STANDARD) - set(LONG)
    if unknown:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    for name in names:
        print(f"\n== {name}", flush=True)
        sys.argv = [name]
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()
