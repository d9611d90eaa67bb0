#!/usr/bin/env python3
"""Prints what `cargo bench -p benches --bench select` measured as the tables of balancer/select/README.md.

    python3 benches/table.py [target/criterion]

A number is criterion's median of one pick and one finish, in nanoseconds. It reads the latest results of each bench
and runs nothing, so that a table may mix runs: remove the folder first.
"""

import json
import pathlib
import sys


def results(folder):
    """Group -> row -> size -> median in nanoseconds."""
    groups = {}
    for found in sorted(folder.glob("**/new/benchmark.json")):
        bench = json.loads(found.read_text())
        estimates = json.loads(found.with_name("estimates.json").read_text())
        rows = groups.setdefault(bench["group_id"], {})
        row = rows.setdefault(bench["function_id"], {})
        row[int(bench["value_str"])] = estimates["median"]["point_estimate"]
    return groups


def table(rows):
    sizes = sorted({size for row in rows.values() for size in row})
    yield "| ns at so many backends | " + " | ".join(f"{size:,}" for size in sizes) + " |"
    yield "|---|" + "---|" * len(sizes)
    for name, row in sorted(rows.items(), key=lambda row: row[1].get(8, 0)):
        cells = (f"{row[size]:.0f}" if size in row else "" for size in sizes)
        yield f"| {name} | " + " | ".join(cells) + " |"


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "target/criterion")
    groups = {name: rows for name, rows in results(folder).items() if name.startswith("pick and finish")}
    if not groups:
        sys.exit(f"{folder}: no results; run cargo bench -p benches --bench select first")
    for name, rows in groups.items():
        print(f"{name}\n")
        print("\n".join(table(rows)), end="\n\n")


main()
