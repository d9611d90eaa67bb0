#!/usr/bin/env python3
"""Bringing the worker to nine instances over a slow uplink: sent to each of them, or sent once and then copied from host to host.

    cargo lab recipes/stop.rhai --confirm; python3 benches/uplink.py [--rounds 3] [--mbit 1 10 100 0]

The instances are local ones whose SSH servers share one uplink of that many Mbit/s (0: without a limit), in a temporary
folder for each measurement. `chosen` is what labhost does by itself. The ways take turns. Prints a Markdown table: seconds
that `upload` takes, medians with minimum and maximum.

Python's standard library and Linux only.
"""
import argparse, os, pathlib, platform, shutil, statistics, tempfile

from lab import ROOT, build, run

# In seconds, what copying must save: never, always, or as labhost judges.
WAYS = {"to each": "1e9", "copied": "0", "chosen": None}
RECIPE = """
import "provision" as provision;
let worker = build::programs(["worker"]).worker;
let hosts = ec2::wait(provision::HOSTS);
let begun = timestamp();
hosts.upload(worker, "worker");
print(`took ${begun.elapsed}`);
"""


def upload(labhost, programs, mbit, copy_after):
    env = dict(os.environ, LABHOST_PROGRAMS=str(programs))
    if mbit:
        env["LABHOST_LOCAL_UPLINK_MBIT"] = str(mbit)
    if copy_after:
        env["LABHOST_COPY_AFTER"] = copy_after
    with tempfile.TemporaryDirectory(prefix="labup") as folder:
        shutil.copytree(ROOT / "recipes", pathlib.Path(folder) / "recipes")
        (pathlib.Path(folder) / "recipes/upload.rhai").write_text(RECIPE)
        try:
            said = run([labhost, "recipes/upload.rhai"], folder, env)[1]
        finally:
            run([labhost, "recipes/stop.rhai", "--confirm"], folder, env)
    return float(next(line for line in said.splitlines() if line.startswith("took ")).split()[1])


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--rounds", type=int, default=3)
    parse.add_argument("--mbit", type=float, nargs="+", default=[1, 10, 100, 0])
    options = parse.parse_args()
    labhost, programs = build()
    took = {(mbit, way): [] for mbit in options.mbit for way in WAYS}
    for _ in range(options.rounds):
        for mbit in options.mbit:
            for way, copy_after in WAYS.items():
                took[mbit, way].append(upload(labhost, programs, mbit, copy_after))
    size = (programs / "worker").stat().st_size / 1e6
    print(f"{os.cpu_count()} cores, Linux {platform.release()}, {options.rounds} rounds, a worker of {size:.1f} MB to nine instances\n")
    print("| uplink | " + " | ".join(WAYS) + " |\n|---|" + "---|" * len(WAYS))
    for mbit in options.mbit:
        cells = [took[mbit, way] for way in WAYS]
        cells = [f"{statistics.median(one):.2f} s ({min(one):.2f}-{max(one):.2f})" for one in cells]
        print(f"| {f'{mbit:g} Mbit/s' if mbit else 'no limit'} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
