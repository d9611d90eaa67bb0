#!/usr/bin/env python3
"""What a lab of nine instances costs on this machine: times of run, re-run and stop, and memory.

    cargo lab recipes/stop.rhai --confirm; python3 benches/lab.py [--rounds 5] [--clone]

Works in a temporary folder with the repository's recipes and programs that are built already (they are built
first if they are not; that is not counted). Prints a Markdown table of medians with minimum and maximum.
--clone also measures the way from a fresh clone with an empty target folder to the printed address, programs
included; crates must have been downloaded before.

Python's standard library and Linux only.
"""
import argparse, os, pathlib, platform, shutil, statistics, subprocess, sys, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run(command, cwd, env=None, expect=0):
    """Seconds that a command takes, and what it prints; ends the script when it fails."""
    started = time.monotonic()
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    elapsed = time.monotonic() - started
    if done.returncode != expect:
        sys.exit(f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return elapsed, done.stdout


def rss_mb(pid):
    for line in open(f"/proc/{pid}/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def processes(needle):
    """Ids of processes whose first two words contain `needle`."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                words = open(f"/proc/{entry}/cmdline", "rb").read().split(b"\0")
            except OSError:
                continue
            if needle.encode() in b" ".join(words):
                found.append(int(entry))
    return found


def row(name, values, unit, limit):
    middle = statistics.median(values)
    print(f"| {name} | {middle:.2f} {unit} | {min(values):.2f}-{max(values):.2f} | {limit} |")


def measure(labhost, programs, rounds):
    figures = {"run": [], "re-run": [], "stop": [], "agent": [], "worker": [], "balancer": []}
    env = dict(os.environ, LABHOST_PROGRAMS=str(programs))
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="labfig") as folder:
            shutil.copytree(ROOT / "recipes", pathlib.Path(folder) / "recipes")
            figures["run"].append(run([labhost, "recipes/run.rhai"], folder, env)[0])
            try:
                figures["re-run"].append(run([labhost, "recipes/run.rhai"], folder, env)[0])
                agent = processes(f"agent\0--state\0{folder}".replace("\0", " "))
                figures["agent"] += [rss_mb(pid) for pid in agent]
                figures["worker"] += [rss_mb(pid) for pid in processes("./worker --listen 127.77.")]
                figures["balancer"] += [rss_mb(pid) for pid in processes("./balancer --config")]
            finally:
                figures["stop"].append(run([labhost, "recipes/stop.rhai", "--confirm"], folder, env)[0])
    return figures


def build():
    """labhost, and the folder of the static programs."""
    run(["cargo", "build", "--quiet", "--profile", "lab", "-p", "labhost"], ROOT)
    labhost = str(ROOT / "target/lab/labhost")
    target = f"{platform.machine()}-unknown-linux-gnu"
    flags = f"CARGO_TARGET_{target.upper().replace('-', '_')}_RUSTFLAGS"
    env = dict(os.environ, **{flags: "-C target-feature=+crt-static"})
    env.pop("RUSTFLAGS", None)
    run(["cargo", "build", "--quiet", "--release", "--target", target, "-p", "worker", "-p", "balancer"], ROOT, env)
    return labhost, ROOT / "target" / target / "release"


def from_clone():
    with tempfile.TemporaryDirectory(prefix="labclone") as folder:
        clone = pathlib.Path(folder) / "labhost"
        run(["git", "clone", "-q", str(ROOT), str(clone)], folder)
        env = {key: value for key, value in os.environ.items() if key != "CARGO_TARGET_DIR"}
        seconds = run(["cargo", "lab", "recipes/run.rhai"], clone, env)[0]
        run(["cargo", "lab", "recipes/stop.rhai", "--confirm"], clone, env)
        return seconds


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--rounds", type=int, default=5)
    parse.add_argument("--clone", action="store_true")
    options = parse.parse_args()

    labhost, programs = build()
    figures = measure(labhost, programs, options.rounds)
    print(f"{os.cpu_count()} cores, Linux {platform.release()}, {options.rounds} rounds, nine instances\n")
    print("| what | median | min-max | goal |\n|---|---|---|---|")
    row("run, from built programs", figures["run"], "s", "3 s")
    row("run again, nothing changed", figures["re-run"], "s", "1 s")
    row("stop", figures["stop"], "s", "2 s")
    row("agent with nine instances", figures["agent"], "MB", "60 MB")
    row("idle worker", figures["worker"], "MB", "10 MB")
    row("idle balancer", figures["balancer"], "MB", "20 MB")
    if options.clone:
        row("fresh clone to printed address", [from_clone()], "s", "210 s")


if __name__ == "__main__":
    main()
