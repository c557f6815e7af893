"""harness.py - a place to measure in: temporary directories, child processes, nodes, the machine.

Everything that a benchmark starts belongs to one Lab, which ends it by its process id and removes
its files however the benchmark ends. Nothing here knows what is measured.
"""

import contextlib
import ctypes
import json
import os
import platform
import re
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WARMUP_S = 0.5  # of every run; its commits are checked for loss but not measured
APART = "/dev/shm"  # memory: a place that is not the disk that the application waits for
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


class Failed(Exception):
    """The benchmark could not be carried out."""


class Skipped(Exception):
    """Something that it needs is not there."""


def die_with_parent():
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Lab:
    """Options, one temporary directory and the child processes of a whole `bench/run`."""

    def __init__(self, options):
        self.options = options
        self.build = os.path.join(ROOT, options.build)
        self.walwire = options.walwire or os.path.join(self.build, "walwire")
        self.cache = os.path.join(self.build, "bench")
        self.children = []
        if options.dir:
            os.makedirs(options.dir, exist_ok=True)
        self.dir = tempfile.mkdtemp(prefix="walwire-bench-", dir=options.dir)
        self.apart = None
        if os.access(APART, os.W_OK) and os.stat(APART).st_dev != os.stat(self.dir).st_dev:
            self.apart = tempfile.mkdtemp(prefix="walwire-bench-", dir=APART)

    def program(self, name):
        path = os.path.join(self.build, "bench", name)
        if not os.access(path, os.X_OK):
            raise Failed(f"{os.path.relpath(path, ROOT)} is missing; run: make bench")
        return path

    def spawn(self, argv, **more):
        child = subprocess.Popen([str(a) for a in argv], preexec_fn=die_with_parent, **more)
        self.children.append(child)
        return child

    def end(self, child, patience_s=10):
        """SIGTERM, then SIGKILL. Returns whether SIGTERM was enough."""
        clean = True
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(patience_s)
            except subprocess.TimeoutExpired:
                clean = False
                child.kill()
                child.wait()
        self.children.remove(child)
        return clean

    @contextlib.contextmanager
    def folder(self):
        path = tempfile.mkdtemp(dir=self.dir)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def close(self):
        for child in list(self.children):
            self.end(child, patience_s=3)
        for path in filter(None, (self.dir, self.apart)):
            shutil.rmtree(path, ignore_errors=True)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_until(true, seconds, what, step_s=0.005):
    """Poll; returns what `true()` returned."""
    deadline = time.monotonic() + seconds
    while True:
        got = true()
        if got:
            return got
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {seconds} s")
        time.sleep(step_s)


# ---- databases, always through stock SQLite ------------------------------------------------------

def create_database(path, page_size):
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA page_size = {page_size}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
        db.commit()


def ask(path, sql):
    """One number from a read-only connection; None when it cannot be had now."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as db:
            return db.execute(sql).fetchone()[0]
    except sqlite3.Error:
        return None


# ---- processes -----------------------------------------------------------------------------------

def cpu_seconds(pid):
    """User and system time of all threads of a process, ended ones included, to the nanosecond:
    the process's own CPU clock, as clock_getcpuclockid() numbers it."""
    return time.clock_gettime((~pid << 3) | 2)


class Node:
    """A walwire daemon under test."""

    def __init__(self, lab, role, argv, folder, idle="adaptive", cpu=None, name=""):
        name = name or role
        self.lab, self.role = lab, role
        self.state_dir = os.path.join(folder, name + "-state")
        self.log = os.path.join(folder, name + ".log")
        os.makedirs(self.state_dir, exist_ok=True)
        argv = [lab.walwire, role, *argv, "--state-dir", self.state_dir, "--idle", idle]
        argv += ["--cpu", cpu] if cpu is not None else []
        if not os.access(lab.walwire, os.X_OK):
            raise Failed(f"{os.path.relpath(lab.walwire, ROOT)} is missing; run: make")
        with open(self.log, "ab") as log:
            self.started = time.monotonic()
            self.child = lab.spawn(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @property
    def pid(self):
        return self.child.pid

    def cpu(self):
        return cpu_seconds(self.pid)

    def ask(self, *words):
        argv = [self.lab.walwire, *words, "--state-dir", self.state_dir]
        return subprocess.run(argv, capture_output=True, text=True, timeout=120)

    def status(self):
        """The whole status, or None while the daemon does not answer."""
        if self.child.poll() is not None:
            raise Failed(f"{self.role} ended with {self.child.returncode}: {self.last_words()}")
        got = self.ask("status", "--json")
        try:
            return json.loads(got.stdout) if got.returncode == 0 else None
        except json.JSONDecodeError:
            raise Failed(f"status --json is not JSON: {got.stdout[:200]!r}") from None

    def database(self):
        """What it says of its one database, as soon as it says anything."""
        try:
            status = wait_until(lambda: (self.status() or {}).get("databases"), 10,
                                f"{self.role}'s status")
        except Failed as e:
            raise Failed(f"{e}; it said: {self.last_words()}") from None
        return status[0]

    def counter(self, name):
        return self.database().get("counters", {}).get(name)

    def hook(self):
        return (self.status() or {}).get("tap", "unknown")

    def wait_state(self, state, seconds=30):
        try:
            wait_until(lambda: self.database()["state"] == state, seconds,
                       f"{self.role} '{state}'")
        except Failed as e:
            raise Failed(f"{e}; it said: {self.last_words()}") from None

    def last_words(self):
        with open(self.log, errors="replace") as f:
            return " | ".join(f.read().strip().splitlines()[-5:]) or "nothing"

    def stop(self):
        if not self.lab.end(self.child):
            raise Failed(f"{self.role} did not end on SIGTERM; it said: {self.last_words()}")


class Pair:
    """One database in a fresh folder with, if wanted, a primary and a replica attached to it."""

    def __init__(self, lab, folder):
        self.lab, self.folder, self.nodes = lab, folder, []
        self.db = os.path.join(folder, "app.db")
        self.copy = os.path.join(folder, "replica", "app.db")
        self.primary = self.replica = self.txid = None

    def open(self, primary=True, replica=True, idle="adaptive", apart=False):
        self.idle = idle
        if apart:
            self.copy = os.path.join(self.lab.apart, os.path.basename(self.folder), "app.db")
        create_database(self.db, self.lab.options.page_size)
        if primary:
            self.start_primary()
        if replica:
            self.start_replica()
            self.replica.wait_state("streaming")
            wait_until(lambda: ask(self.copy, "SELECT count(*) FROM t") is not None, 10,
                       "database readable on the replica")
        self.txid = self.primary.database()["txid"] if primary else None

    def start_primary(self):
        self.address = f"127.0.0.1:{free_port()}"
        self.primary = Node(self.lab, "primary", [self.db, "--listen", self.address], self.folder,
                            self.idle, self.lab.options.cpus[1])
        self.nodes.append(self.primary)
        self.primary.wait_state("attached")

    def start_replica(self):
        os.makedirs(os.path.dirname(self.copy), exist_ok=True)
        self.replica = Node(self.lab, "replica", [self.address, os.path.dirname(self.copy)],
                            self.folder, "adaptive", self.lab.options.cpus[2])
        self.nodes.append(self.replica)

    def lost(self, commits, patience_s=30):
        """Of `commits` made since the start, those that were not captured or not applied."""
        def captured():
            return self.primary.database()["txid"] - self.txid
        deadline = time.monotonic() + 2
        while captured() < commits and time.monotonic() < deadline:
            time.sleep(0.01)
        lost = abs(commits - captured())
        if self.replica:
            self.primary.ask("wait", "--timeout", str(patience_s))
            count = "SELECT count(*) FROM t"
            lost = max(lost, abs(ask(self.db, count) - (ask(self.copy, count) or 0)))
        return lost

    def close(self):
        while self.nodes:
            self.nodes.pop().stop()

    def abandon(self):
        while self.nodes:
            self.lab.end(self.nodes.pop().child, patience_s=3)
        shutil.rmtree(os.path.dirname(self.copy), ignore_errors=True)


@contextlib.contextmanager
def pair(lab, **how):
    with lab.folder() as folder:
        p = Pair(lab, folder)
        try:
            p.open(**how)
            yield p
            p.close()
        finally:
            p.abandon()


# ---- applications --------------------------------------------------------------------------------

def write(lab, db, writers=1, **options):
    """Run bench/writer `writers` times at once on `db`; all start together. Returns the sum."""
    argv = [lab.program("writer"), db, "--wait", "yes", "--warmup", WARMUP_S]
    for name, value in options.items():
        argv += ["--" + name.replace("_", "-"), value]
    pin = lab.options.cpus[0]
    if writers == 1 and pin is not None:
        argv += ["--pin", pin]
    crew = [lab.spawn(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                      text=True) for _ in range(writers)]
    for child in crew:
        if child.stdout.readline() != "ready\n":
            raise Failed(f"writer: {child.stderr.read().strip()}")
    for child in crew:
        child.stdin.write("\n")
        child.stdin.flush()
    results = []
    for child in crew:
        out, err = child.communicate()
        lab.children.remove(child)
        if child.returncode:
            raise Failed(f"writer: {err.strip()}")
        results.append(json.loads(out))
    total = dict(results[0])
    for key in ("commits", "commits_all", "rate"):
        total[key] = sum(r[key] for r in results)
    for key in ("commit_max_ns", "wal_bytes_peak"):
        total[key] = max(r[key] for r in results)
    return total


def run_json(lab, argv):
    child = lab.spawn(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = child.communicate()
    lab.children.remove(child)
    if child.returncode:
        raise Failed(err.strip())
    return json.loads(out)


# ---- the machine ---------------------------------------------------------------------------------

def read(path):
    try:
        with open(path) as f:
            return f.read()
    except OSError:
        return ""


def filesystem_of(path):
    """Type of the file system that holds `path`, from the longest mount point above it."""
    path, best, kind = os.path.realpath(path), "", "unknown"
    for line in read("/proc/self/mountinfo").splitlines():
        fields, _, tail = line.partition(" - ")
        mount = fields.split()[4]
        if (path + "/").startswith(mount.rstrip("/") + "/") and len(mount) >= len(best):
            best, kind = mount, tail.split()[0]
    return kind


def core_times():
    """(idle, stolen by the host, all) of all cores since boot, in ticks."""
    # user nice system idle iowait irq softirq steal; guest time is in user already
    t = [int(n) for n in read("/proc/stat").splitlines()[0].split()[1:9]]
    return t[3] + t[4], t[7], sum(t)


def others_busy(seconds=0.5):
    """Share of all cores that others use while nothing of ours runs, stolen time included: a
    benchmark on a machine that is not quiet says so."""
    before = core_times()
    time.sleep(seconds)
    after = core_times()
    return 1 - (after[0] - before[0]) / max(after[2] - before[2], 1)


def stolen_since(before):
    """Share of the time that the cores wanted to work, but the host let others: a virtual machine
    that is stopped for milliseconds shows it in every tail."""
    after = core_times()
    busy = after[2] - before[2] - (after[0] - before[0])
    return (after[1] - before[1]) / max(busy, 1)


def machine(lab):
    cpuinfo = read("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpuinfo)
    memory = re.search(r"MemTotal:\s*(\d+)", read("/proc/meminfo"))
    uname = platform.uname()
    return {
        "cpu": model.group(1) if model else uname.machine,
        "virtual": " hypervisor" in cpuinfo,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(int(memory.group(1)) * 1024 / 1e9) if memory else None,
        "kernel": f"{uname.system} {uname.release} {uname.machine}",
        "filesystem": filesystem_of(lab.dir),
        "page_size": lab.options.page_size,
        "pinned": dict(zip(("writer", "primary", "replica"), lab.options.cpus)),
    }


def median(values):
    values = [v for v in values if v is not None]
    return statistics.median(values) if values else None
