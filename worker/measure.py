#!/usr/bin/env python3
"""Measures an emulating worker: capacity, service time at low load, idle cost. Standard library only.

    cargo build --release -p worker && python3 worker/measure.py [PATH-OF-WORKER]

Prints Markdown, and exits 1 when a capacity is off by more than 5 % or a service time (median and p99) by more than
0.3 ms, or 2 when the machine is so busy that a bare sleep is as late as that. It takes about half a minute. The client
shares the machine with the worker: run it on an idle one with two cores or more.
"""

import os
import platform
import selectors
import socket
import struct
import subprocess
import sys
import time

WORK_MS = 1.0
SLOTS = {"t2.micro": 1, "t2.large": 2}
CONNECTIONS = (4, 64, 500)
WARM_UP_S = 0.5
MEASURED_S = 3.0
LATENCY_REQUESTS = 1000
LATENCY_PAUSE_S = 0.003  # between two requests, so that each finds an idle slot
IDLE_S = 5.0
CAPACITY_OFF_MAX = 0.05
SERVICE_OFF_MAX_MS = 0.3
TIMEOUT_S = 10.0
REQUEST = b"GET /cluster1 HTTP/1.1\r\nhost: worker\r\n\r\n"


class Worker:
    """A worker process on a free port of 127.0.0.1; ends with the `with` block."""

    def __init__(self, program, kind):
        self.command = [program, "--listen", "127.0.0.1:0", "--cluster", "cluster1", "--instance-id", "i-1"]
        self.command += ["--work", f"{WORK_MS}ms", "--emulate", kind]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if not line.startswith("listening on "):
            sys.exit(f"the worker did not start; try: {' '.join(self.command)}")
        host, port = line.split()[2].rstrip(":").rsplit(":", 1)
        self.address = (host, int(port))
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(TIMEOUT_S)

    def connect(self):
        connection = socket.create_connection(self.address, TIMEOUT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def status(self, key, thread=None):
        task = f"/task/{thread}" if thread else ""
        with open(f"/proc/{self.process.pid}{task}/status") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))

    def wake_ups(self):
        threads = os.listdir(f"/proc/{self.process.pid}/task")
        return sum(self.status("voluntary_ctxt_switches", thread) for thread in threads)

    def cpu_s(self):
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask(connection):
    """Sends one request and reads its answer, which is small and comes in one piece."""
    connection.sendall(REQUEST)
    check(connection.recv(65536))


def check(answer):
    if not answer.startswith(b"HTTP/1.1 200 "):
        sys.exit(f"unexpected answer: {answer[:200]!r}")


def capacity(worker, connections):
    """Requests per second of a closed loop, and the worker's CPU time per request in us."""
    sockets = [worker.connect() for _ in range(connections)]
    selector = selectors.EpollSelector()
    for connection in sockets:
        selector.register(connection, selectors.EVENT_READ)
        connection.sendall(REQUEST)
    serve_until(selector, time.perf_counter() + WARM_UP_S)
    start, cpu = time.perf_counter(), worker.cpu_s()
    served = serve_until(selector, start + MEASURED_S)
    took, cpu = time.perf_counter() - start, worker.cpu_s() - cpu
    for connection in sockets:
        connection.close()
    return served / took, cpu / served * 1e6


def serve_until(selector, end):
    served = 0
    while time.perf_counter() < end:
        ready = selector.select(TIMEOUT_S)
        if not ready:
            sys.exit(f"no answer within {TIMEOUT_S} s")
        for key, _ in ready:
            check(key.fileobj.recv(65536))
            key.fileobj.send(REQUEST)
            served += 1
    return served


def service_and_sleep_times_ms(worker):
    """Times of single requests, each of which finds the worker idle, and of bare sleeps as long as the work in between:
    what this machine's timers and its other programs add by themselves."""
    services, sleeps = [], []
    with worker.connect() as connection:
        # A deadline in the kernel: Python's own would cost another system call for each answer.
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(TIMEOUT_S), 0))
        for _ in range(LATENCY_REQUESTS):
            services.append(timed_ms(lambda: ask(connection)))
            sleeps.append(timed_ms(lambda: time.sleep(WORK_MS / 1e3)))
    return services, sleeps


def timed_ms(action):
    time.sleep(LATENCY_PAUSE_S)
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1e3


def median_and_p99(times):
    times = sorted(times)
    return times[len(times) // 2], times[len(times) * 99 // 100]


def measure_type(program, kind):
    """Prints the table's rows for one type and gives what is wrong with its figures."""
    expected = SLOTS[kind] * 1000 / WORK_MS
    wrong = set()
    with Worker(program, kind) as worker:
        services, sleeps = service_and_sleep_times_ms(worker)
    for what, times in ("low load, 1", services), ("a bare sleep beside it", sleeps):
        median, p99 = median_and_p99(times)
        print(f"| {kind} | {what} | | {median:.3f} | {p99:.3f} | |", flush=True)
        if p99 - WORK_MS > SERVICE_OFF_MAX_MS:
            wrong.add(what)
    for connections in CONNECTIONS:
        with Worker(program, kind) as worker:
            rate, cpu_us = capacity(worker, connections)
        off = rate / expected - 1
        if abs(off) > CAPACITY_OFF_MAX:
            wrong.add("capacity")
        print(f"| {kind} | closed, {connections} | {rate:.0f} ({off:+.1%}) | | | {cpu_us:.0f} |", flush=True)
    return wrong


def measure_idle(program):
    with Worker(program, "t2.large") as worker:
        with worker.connect() as connection:
            ask(connection)
        time.sleep(0.2)
        before = worker.wake_ups()
        time.sleep(IDLE_S)
        rate = (worker.wake_ups() - before) / IDLE_S
        rss_mb = worker.status("VmRSS") / 1024
    print(f"\nIdle: {rss_mb:.1f} MB resident, {rate:.1f} wake-ups/s; program {os.path.getsize(program) / 1e6:.1f} MB.")


def machine():
    with open("/proc/cpuinfo") as lines:
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "?")
    return f"{os.cpu_count()} x {model}, Linux {platform.release()}, load {os.getloadavg()[0]:.1f}"


def main():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    program = sys.argv[1] if len(sys.argv) > 1 else os.path.join(root, "target", "release", "worker")
    if not os.path.exists(program):
        sys.exit(f"no {program}; build it with: cargo build --release -p worker")
    print(f"Emulated work of {WORK_MS} ms; {machine()}.\n")
    print("| type | load, connections | req/s | median ms | p99 ms | worker CPU us/request |")
    print("|---|---|---|---|---|---|")
    wrong = set().union(*[measure_type(program, kind) for kind in SLOTS])
    measure_idle(program)
    if "a bare sleep beside it" in wrong:
        print(f"\nNot valid: bare sleeps are late by more than {SERVICE_OFF_MAX_MS} ms; repeat it on an idle machine.")
        sys.exit(2)
    if wrong:
        print(f"\nOut of bounds: {', '.join(sorted(wrong))}.")
        sys.exit(1)


if __name__ == "__main__":
    main()
