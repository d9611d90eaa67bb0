#!/usr/bin/env python3
"""What load generators report of a server whose latencies are known: bench::http beside wrk, oha and wrk2.

    cargo build --release -p labhost
    python3 benches/honesty.py [--rate 1000] [--seconds 10] [--oha PATH] [--wrk2 PATH]

The server (this file, on CPU 0) answers every request 5 ms after it came. Three cases: `steady`; `pause`, where it
does nothing at all for one second, once; and `starved`, where it is steady but three busy programs share the
generator's CPU 1. The truth is computed: what clients who come at the rate, whatever becomes of others, have to wait.
Prints a Markdown table: milliseconds, the error at p99, and what the generator says of its own result.

wrk has no rate: it gets as many connections as are in flight at the rate, and so makes about the same load. oha runs
as it is and with its --latency-correction. Generators that are not there are left out and named. Needs Linux, two
CPUs, and wrk (Debian: wrk); oha is `cargo install oha --locked`.
"""
import argparse, collections, json, os, pathlib, platform, re, select, shutil, signal, socket, subprocess, sys
import tempfile, time

ROOT = pathlib.Path(__file__).resolve().parent.parent
LABHOST = ROOT / "target/release/labhost"
DELAY_S = 0.005
PAUSE_S = 1.0
PAUSE_AT = 0.6  # Of the run: after the ten seconds in which wrk2 calibrates itself, if the run is long enough.
HOGS = 3
CONNECTIONS = 64
DEADLINE_S = 60
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1}


def serve(port, pause_at):
    """Answers in the order of requests; turns round without sleeping while any is due, to be on time."""
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    listener.setblocking(False)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    clients, due = {}, collections.deque()
    paused_at = None if pause_at is None else float("inf")
    while True:
        for fd, _ in poll.poll(0 if due else 1):
            if fd == listener.fileno():
                client = listener.accept()[0]
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                clients[client.fileno()] = client
                poll.register(client, select.EPOLLIN)
                continue
            try:
                requests = clients[fd].recv(65536).count(b"\r\n\r\n")
            except ConnectionError:
                requests = 0
            if requests == 0:
                clients.pop(fd).close()
                continue
            now = time.monotonic()
            if paused_at == float("inf"):
                paused_at = now + pause_at
            due.extend([(now + DELAY_S, fd)] * requests)
        now = time.monotonic()
        if paused_at is not None and now >= paused_at:
            time.sleep(PAUSE_S)
            paused_at = None
        while due and due[0][0] <= now:
            _, fd = due.popleft()
            try:
                if fd in clients:
                    clients[fd].sendall(ANSWER)
            except OSError:
                pass


def truth(case, options):
    """Milliseconds of evenly spaced clients, by quantile."""
    count = int(options.rate * options.seconds)
    begin = options.seconds * PAUSE_AT
    def latency(at):
        if case != "pause" or not begin - DELAY_S < at < begin + PAUSE_S:
            return DELAY_S
        return begin + PAUSE_S - at + (DELAY_S if at >= begin else 0)
    latencies = sorted(latency(n / options.rate) for n in range(count))
    return {name: latencies[min(int(q * count), count - 1)] * 1000 for name, q in QUANTILES.items()}


def milliseconds(text):
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000, "m": 60_000}[unit]


def on_cpu(cpu, *command):
    done = subprocess.run(["taskset", "-c", str(cpu), *command], capture_output=True, text=True, check=True)
    return done.stdout


def labhost(url, options, folder):
    recipe = folder / "honesty.rhai"
    recipe.write_text(f"""let report = bench::http("{url}", #{{ mode: "open", rate: {options.rate}.0,
    arrivals: "constant", duration: "{options.seconds}s" }});
bench::save([report], "honesty");
""")
    on_cpu(1, str(LABHOST), str(recipe), "--state", str(folder / "artifacts"))
    report = json.loads((folder / "artifacts/bench-honesty.json").read_text())["reports"][0]
    ok = report["latency_ms"]["ok"]
    words = [reason for reason in report["reasons"] if "generator" in reason]
    says = report["verdict"] + (": " + words[0] if words else "")
    return {"p50": ok["p50"], "p99": ok["p99"], "p99.9": ok.get("p999"), "max": ok["max"]}, says


def wrk(program, rate):
    def run(url, options, _):
        connections = CONNECTIONS if rate else max(1, round(options.rate * DELAY_S))
        out = on_cpu(1, program, "-t1", f"-c{connections}", f"-d{options.seconds}s", "--latency",
                     *(["-R", str(options.rate)] if rate else []), url)
        found = {float(q): milliseconds(value) for q, value in re.findall(r"^ +([\d.]+)% +([\d.]+[a-z]+)$", out, re.M)}
        most = re.search(r"Latency +\S+ +\S+ +(\S+)", out).group(1)
        values = {"p50": found.get(50.0), "p99": found.get(99.0), "p99.9": found.get(99.9), "max": milliseconds(most)}
        return values, "; ".join(re.findall(r"Socket errors.*|Non-2xx.*", out)) or "nothing"
    return run


def oha(program, *flags):
    def run(url, options, _):
        out = on_cpu(1, program, "-z", f"{options.seconds}s", "-q", str(options.rate), "-c", str(CONNECTIONS),
                     "--no-tui", "--output-format", "json", *flags, url)
        result = json.loads(out)
        found = result["latencyPercentiles"]
        values = {"p50": found["p50"], "p99": found["p99"], "p99.9": found["p99.9"],
                  "max": result["summary"]["slowest"]}
        errors = {text: count for text, count in result["errorDistribution"].items() if count}
        says = "; ".join(f"{count} {text}" for text, count in errors.items()) or "nothing"
        return {name: value * 1000 for name, value in values.items()}, says
    return run


def generators(options):
    known = {"bench::http": labhost}
    if shutil.which("wrk"):
        known["wrk (no rate)"] = wrk("wrk", rate=False)
    if shutil.which(options.wrk2):
        known["wrk2"] = wrk(options.wrk2, rate=True)
    if shutil.which(options.oha):
        known["oha"] = oha(options.oha)
        known["oha --latency-correction"] = oha(options.oha, "--latency-correction")
    missing = [name for name in ("wrk", options.wrk2, options.oha) if not shutil.which(name)]
    return known, missing


class Processes:
    """Started for one turn, ended by id."""

    def __enter__(self):
        self.started = []
        return self

    def start(self, cpu, *command):
        self.started.append(subprocess.Popen(["taskset", "-c", str(cpu), *command], stdout=subprocess.DEVNULL))

    def __exit__(self, *_):
        for process in self.started:
            process.kill()
            process.wait()


def turn(case, generate, options, folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with Processes() as processes:
        pause = ["--pause-at", str(options.seconds * PAUSE_AT)] if case == "pause" else []
        processes.start(0, sys.executable, __file__, "--serve", str(port), *pause)
        due = time.monotonic() + DEADLINE_S
        while socket.socket().connect_ex(("127.0.0.1", port)) != 0:
            if time.monotonic() > due:
                sys.exit("the server does not listen")
            time.sleep(0.02)
        for _ in range(HOGS if case == "starved" else 0):
            processes.start(1, sys.executable, "-c", "while True: pass")
        return generate(f"http://127.0.0.1:{port}/", options, folder)


def cell(value):
    return "-" if value is None else f"{value:.1f}"


def report(options, folder):
    known, missing = generators(options)
    print(versions(options) + (f"; not there: {', '.join(missing)}" if missing else ""))
    print(f"\n`python3 benches/honesty.py {' '.join(sys.argv[1:])}`\n")
    print("| case | generator | p50 ms | p99 ms | p99.9 ms | max ms | p99 error | says |\n" + "|---" * 8 + "|")
    for case in ("steady", "pause", "starved"):
        true = truth(case, options)
        print(f"| {case} | **truth** | " + " | ".join(cell(true[name]) for name in QUANTILES) + " | | |")
        for name, generate in known.items():
            values, says = turn(case, generate, options, folder)
            error = "-" if values["p99"] is None else f"{(values['p99'] / true['p99'] - 1) * 100:+.0f} %"
            cells = [cell(values[quantile]) for quantile in QUANTILES]
            print(f"| {case} | {name} | " + " | ".join(cells) + f" | {error} | {says} |", flush=True)


def versions(options):
    def first_line(*command):
        if not shutil.which(command[0]):
            return ""
        done = subprocess.run(command, capture_output=True, text=True)
        return ", " + (done.stdout + done.stderr).splitlines()[0].split(" [")[0]
    model = re.search(r"model name\s*: (.*)", open("/proc/cpuinfo").read()).group(1)
    commit = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return (f"{os.cpu_count()} x {model}, Linux {platform.release()}, commit {commit.stdout.strip()}"
            + first_line("wrk", "-v") + first_line(options.oha, "--version") + first_line(options.wrk2, "-v"))


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--rate", type=int, default=1000)
    parse.add_argument("--seconds", type=int, default=10)
    parse.add_argument("--oha", default="oha", metavar="PATH")
    parse.add_argument("--wrk2", default="wrk2", metavar="PATH")
    parse.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parse.add_argument("--pause-at", type=float, help=argparse.SUPPRESS)
    options = parse.parse_args()
    if options.serve:
        return serve(options.serve, options.pause_at)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="honesty") as name:
        report(options, pathlib.Path(name))


if __name__ == "__main__":
    main()
