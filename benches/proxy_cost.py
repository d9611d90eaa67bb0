#!/usr/bin/env python3
"""What a proxied request costs: the balancer beside nginx and HAProxy, in interleaved rounds.

    cargo build --release -p balancer -p worker
    python3 benches/proxy_cost.py [--connections 64] [--fresh] [--body-bytes N] [--upload-bytes N] [--backends N]
                                  [--idle N]

Each proxy has one thread on CPU 0; backends and wrk are on CPU 1. In each round every proxy takes its turn, in an
order that rotates; a round in which other programs were busy is repeated. Prints a Markdown table: medians of
requests (and MB) per second, CPU time of the proxy per request, p99 and peak resident size, and the medians of the
ratios within a round, the balancer's value divided by the other's. The ratios are what to quote; single figures
swing with the machine.

Backends are eight workers. With --body-bytes or --backends they are one nginx that listens on as many addresses and
serves a file; with --upload-bytes, a program that answers once it has read the whole body. --fresh opens a connection
per request. --idle N measures no load but the resident size before and after N clients have each sent a request and
kept their connection.

Needs Linux, two CPUs, nginx, haproxy and wrk (Debian: nginx-light, haproxy, wrk). Header fields are each proxy's own:
the balancer adds Via and X-Forwarded-*, nginx replaces Host, HAProxy adds nothing.
"""
import argparse, json, os, pathlib, platform, re, resource, signal, socket, statistics, subprocess, sys, tempfile
import threading, time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "target/release"
WORKERS = 8
PATH = "/cluster1"
DEADLINE_S = 20
# A round in which others used more of the CPUs than this is not counted, and repeated at most so often.
FOREIGN_SHARE_MAX = 0.08
REPEATS_PER_ROUND = 4
DESCRIPTORS_OTHER = 4096


def free_address(host="127.0.0.1"):
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"


def nginx_head(folder, name, connections):
    return f"""worker_processes 1; daemon off; pid {folder}/{name}.pid; error_log {folder}/{name}.err;
events {{ worker_connections {connections + DESCRIPTORS_OTHER}; }}
"""


def nginx_config(folder, listen, backends, connections):
    servers = "\n".join(f"server {address};" for address in backends)
    return nginx_head(folder, "nginx", connections) + f"""http {{
  access_log off; keepalive_requests 1000000000; client_body_temp_path {folder}/n1; proxy_temp_path {folder}/n2;
  upstream pool {{ least_conn; {servers} keepalive 512; keepalive_requests 1000000000; }}
  server {{ listen {listen} backlog=4096;
    location / {{ proxy_pass http://pool; proxy_http_version 1.1; proxy_set_header Connection "";
      client_max_body_size 0; proxy_request_buffering off; }} }} }}
"""


def haproxy_config(folder, listen, backends, connections):
    servers = "\n".join(f"  server s{n} {address}" for n, address in enumerate(backends))
    return f"""global
  nbthread 1
  maxconn {connections + 1000}
  no strict-limits
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  http-reuse always
listen pool
  bind {listen}
  balance leastconn
{servers}
"""


def balancer_config(folder, listen, backends, connections):
    named = [{"id": f"i-{n:04}", "address": address} for n, address in enumerate(backends)]
    return json.dumps({"listen": listen, "threads": 1, "limits": {"connections": connections + 1000},
                       "clusters": {"cluster1": {"backends": named, "probe": {"path": PATH}}}})


# Name: configuration and command; the balancer is what the others are compared with.
PROXIES = {
    "balancer": (balancer_config, [str(PROGRAMS / "balancer"), "--config"]),
    "nginx": (nginx_config, ["nginx", "-c"]),
    "HAProxy": (haproxy_config, ["haproxy", "-db", "-f"]),
}


def file_backends(folder, count, body_bytes):
    """The configuration and the addresses of an nginx that serves one file on many addresses."""
    addresses = [f"127.9.{n // 200}.{n % 200 + 1}" for n in range(count)]
    port = free_address(addresses[0]).split(":")[1]
    addresses = [f"{address}:{port}" for address in addresses]
    (folder / "cluster1").write_bytes(b"x" * body_bytes)
    listens = "\n".join(f"listen {address} backlog=4096;" for address in addresses)
    config = nginx_head(folder, "files", 4 * count) + f"""http {{
  access_log off; keepalive_requests 1000000000; sendfile on; open_file_cache max=10;
  server {{ {listens} root {folder}; }} }}
"""
    return config, addresses


def take_uploads(addresses):
    """A backend on each address: reads requests with a Content-Length whole, and answers them."""
    def serve(connection):
        space, received = bytearray(1 << 20), b""
        while True:
            while b"\r\n\r\n" not in received:
                more = connection.recv(16 << 10)
                if not more:
                    return
                received += more
            head, _, body = received.partition(b"\r\n\r\n")
            length = re.search(rb"(?mi)^content-length: *(\d+)", head)
            missing = int(length.group(1) if length else 0) - len(body)
            while missing > 0:
                count = connection.recv_into(space, min(missing, len(space)))
                if not count:
                    return
                missing -= count
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            received = b""

    def accept(listener):
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    listeners = [socket.create_server((host, int(port))) for host, port in (a.split(":") for a in addresses)]
    for listener in listeners:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
    threading.Event().wait()


class Processes:
    """What was started, ended by id."""

    def __init__(self):
        self.started = []

    def start(self, cpu, command, addresses):
        process = subprocess.Popen(["taskset", "-c", str(cpu), *command], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, text=True)
        self.started.append(process)
        due = time.monotonic() + DEADLINE_S
        for address in addresses:
            host, port = address.split(":")
            while socket.socket().connect_ex((host, int(port))) != 0:
                if process.poll() is not None or time.monotonic() > due:
                    process.kill()
                    sys.exit(f"{command}: nothing listens on {address}\n{process.stderr.read()}")
                time.sleep(0.02)
        return process.pid

    def end(self):
        for process in self.started:
            process.terminate()
        for process in self.started:
            try:
                process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def family(root):
    """A process and its children."""
    try:
        children = open(f"/proc/{root}/task/{root}/children").read().split()
    except FileNotFoundError:
        return []
    return [root] + [pid for child in children for pid in family(int(child))]


def cpu_seconds(root):
    ticks = 0
    for pid in family(root):
        fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_mb(root, key):
    """VmRSS or VmHWM of a process and its children."""
    lines = [line for pid in family(root) for line in open(f"/proc/{pid}/status")]
    return sum(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def foreign_share(processes):
    """A function that says which share of the CPUs others than we have used since now."""
    def ticks():
        busy = [int(field) for field in open("/proc/stat").readline().split()[1:9]]
        ours = sum(os.times()[:4]) + sum(cpu_seconds(process.pid) for process in processes.started)
        return sum(busy), sum(busy) - busy[3] - busy[4], ours * os.sysconf("SC_CLK_TCK")
    before = ticks()
    def share():
        total, busy, ours = (after - earlier for after, earlier in zip(ticks(), before))
        return max(0, busy - ours) / max(total, 1)
    return share


def milliseconds(text):
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000, "m": 60_000}[unit]


def measure(address, root, options):
    """One turn: requests/s, CPU us/request, p99 ms, MB/s, peak MB."""
    for pid in family(root):
        open(f"/proc/{pid}/clear_refs", "w").write("5")
    extra = ["-H", "Connection: close"] if options.fresh else []
    if options.upload_bytes:
        extra += ["-s", str(options.script)]
    before = cpu_seconds(root)
    out = subprocess.run(["taskset", "-c", "1", "wrk", "-t1", f"-c{options.connections}", f"-d{options.seconds}s",
                          "--latency", *extra, f"http://{address}{PATH}"], capture_output=True, text=True).stdout
    used = cpu_seconds(root) - before
    if "99%" not in out or "\n  0 requests" in out:
        sys.exit(f"{address}: nothing was answered\n{out}")
    failed = re.findall(r"Non-2xx.*|Socket errors.*", out)
    if failed:
        print(f"{address}: {failed}", file=sys.stderr)
    done, took = re.search(r"(\d+) requests in ([\d.]+)s", out).groups()
    done, took, carried = int(done), float(took), options.body_bytes + options.upload_bytes
    p99 = milliseconds(re.search(r"^ +99% +(\S+)", out, re.M).group(1))
    return {"requests/s": done / took, "CPU us/request": used / max(done, 1) * 1e6, "p99 ms": p99,
            "MB/s": done * carried / took / 1e6, "peak MB": memory_mb(root, "VmHWM")}


def idle(address, root, options):
    """Resident size before and while clients are idle; each has had an answer."""
    before = memory_mb(root, "VmRSS")
    clients = []
    host, port = address.split(":")
    for _ in range(options.idle):
        client = socket.create_connection((host, int(port)), DEADLINE_S)
        client.sendall(f"GET {PATH} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
        answer = client.recv(4096)
        if not answer.startswith(b"HTTP/1.1 200"):
            sys.exit(f"{address}: {answer[:60]!r} after {len(clients)} clients")
        clients.append(client)
    # A server that refuses to keep them would look small.
    alive = [client for client in clients if not closed(client)]
    size = memory_mb(root, "VmRSS")
    for client in clients:
        client.close()
    return {"before MB": before, "idle MB": size, "kept": len(alive)}


def closed(client):
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False


def report(rows, options):
    columns = list(rows["balancer"][0])
    columns = [name for name in columns if name != "MB/s" or options.body_bytes + options.upload_bytes > 10_000]
    print("| proxy | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
    for name, turns in rows.items():
        cells = [f"{statistics.median(turn[column] for turn in turns):.1f}" for column in columns]
        print(f"| {name} | " + " | ".join(cells) + " |")
    for name, turns in rows.items():
        if name != "balancer":
            pairs = list(zip(rows["balancer"], turns))
            ratios = [statistics.median(ours[c] / max(other[c], 1e-9) for ours, other in pairs) for c in columns]
            cells = [f"{ratio:.2f}" for ratio in ratios]
            print(f"| balancer / {name} | " + " | ".join(cells) + " |")


def versions():
    def first_line(*command):
        done = subprocess.run(command, capture_output=True, text=True)
        return (done.stdout + done.stderr).splitlines()[0].split(" - ")[0]
    model = re.search(r"model name\s*: (.*)", open("/proc/cpuinfo").read()).group(1)
    commit = first_line("git", "-C", str(ROOT), "describe", "--always", "--dirty")
    return (f"{os.cpu_count()} x {model}, Linux {platform.release()}, commit {commit}, "
            f"{first_line('nginx', '-v')}, {first_line('haproxy', '-v')}")


def start_backends(processes, folder, options):
    if options.upload_bytes:
        addresses = [free_address() for _ in range(WORKERS)]
        processes.start(1, [sys.executable, __file__, "--take-uploads", *addresses], addresses)
        return addresses
    if options.body_bytes or options.backends:
        config, addresses = file_backends(folder, options.backends or WORKERS, options.body_bytes or 58)
        (folder / "files.conf").write_text(config)
        processes.start(1, ["nginx", "-c", str(folder / "files.conf")], addresses)
        return addresses
    addresses = []
    for n in range(WORKERS):
        addresses.append(free_address())
        processes.start(1, [str(PROGRAMS / "worker"), "--listen", addresses[n], "--cluster", "cluster1",
                            "--instance-id", f"i-{n}"], addresses[n:])
    return addresses


def run(options, folder, processes):
    backends = start_backends(processes, folder, options)
    proxies = {}
    for name in options.proxies.split(","):
        config, command = PROXIES[name]
        listen = free_address()
        path = folder / name
        path.write_text(config(folder, listen, backends, max(options.idle, options.connections)))
        proxies[name] = (listen, processes.start(0, [*command, str(path)], [listen]))
    turn, rounds = (idle, 1) if options.idle else (measure, options.rounds)
    rows = {name: [] for name in proxies}
    if not options.idle:
        for address, root in proxies.values():
            measure(address, root, argparse.Namespace(**{**vars(options), "seconds": 1}))
    dropped = 0
    while len(rows["balancer"]) < rounds and dropped < REPEATS_PER_ROUND * rounds:
        order = list(proxies)
        shift = (len(rows["balancer"]) + dropped) % len(order)
        share = foreign_share(processes)
        taken = {name: turn(*proxies[name], options) for name in order[shift:] + order[:shift]}
        used = 0 if options.idle else share()  # Memory does not depend on it.
        dropped += used > FOREIGN_SHARE_MAX
        for name, values in taken.items():
            if used <= FOREIGN_SHARE_MAX:
                rows[name].append(values)
            print(f"{used:.0%} foreign", name, {key: round(value, 2) for key, value in values.items()},
                  file=sys.stderr)
    print(f"{len(rows['balancer'])} rounds counted, {dropped} not, since others used more than "
          f"{FOREIGN_SHARE_MAX:.0%} of the CPUs", file=sys.stderr)
    if not rows["balancer"]:
        sys.exit("the machine was never quiet: nothing to report")
    return rows


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--connections", type=int, default=64)
    parse.add_argument("--seconds", type=int, default=3)
    parse.add_argument("--rounds", type=int, default=5)
    parse.add_argument("--fresh", action="store_true")
    parse.add_argument("--body-bytes", type=int, default=0)
    parse.add_argument("--upload-bytes", type=int, default=0)
    parse.add_argument("--backends", type=int, default=0)
    parse.add_argument("--idle", type=int, default=0)
    parse.add_argument("--take-uploads", nargs="+", help=argparse.SUPPRESS)
    parse.add_argument("--proxies", default=",".join(PROXIES))
    options = parse.parse_args()
    if options.take_uploads:
        return take_uploads(options.take_uploads)

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < options.idle + DESCRIPTORS_OTHER:
        sys.exit(f"--idle {options.idle} needs {options.idle + DESCRIPTORS_OTHER} descriptors, there are {hard}: "
                 "raise `ulimit -Hn`, or take fewer")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    processes = Processes()
    with tempfile.TemporaryDirectory(prefix="proxycost") as name:
        folder = pathlib.Path(name)
        folder.chmod(0o755)
        options.script = folder / "upload.lua"
        options.script.write_text(f'wrk.method = "PUT"\nwrk.body = string.rep("x", {options.upload_bytes})\n')
        try:
            rows = run(options, folder, processes)
        finally:
            processes.end()
    print(versions() + f"\n\n`python3 benches/proxy_cost.py {' '.join(sys.argv[1:])}`\n")
    report(rows, options)


if __name__ == "__main__":
    main()
