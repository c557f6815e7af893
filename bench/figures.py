"""figures.py - the benchmarks of walwire itself; each is a function of (lab, report).

Where two things are compared they take turns within one run, and the order rotates from round to
round, so that whatever drifts (other guests, caches, temperature) favours neither. A ratio is the
median of the rounds' ratios. Targets are for two cores with primary and one replica attached.
"""

import contextlib
import os
import shutil
import socket
import sqlite3
import subprocess
import time

from harness import (WARMUP_S, Failed, ask, cpu_seconds, median, pair, run_json, wait_until, write)
from report import number

ALONE = {"primary": False, "replica": False}
PRIMARY = {"primary": True, "replica": False}
REPLICA = {"primary": True, "replica": True}
APART = {**REPLICA, "apart": True}  # the replica's disk is not the application's
SPIN = {**PRIMARY, "idle": "spin"}
SPIN_REPLICA = {**REPLICA, "idle": "spin"}
US, MS, MB = 1e3, 1e6, 1e6


def scaled(value, unit):
    return None if value is None else value / unit


def one_run(lab, report, nodes, writers=1, **options):
    """One application run beside `nodes`; its result, with what was lost and what walwire used."""
    with pair(lab, **nodes) as p:
        before = {n.role: n.cpu() for n in p.nodes}
        wakeups = p.primary.counter("tap_wakeups") if p.primary else None
        follow = {"follow": p.copy if p.replica else p.db} if options.pop("follow", None) else {}
        got = write(lab, p.db, writers, **options, **follow)
        report.setup["sqlite"] = got["sqlite"]
        if p.primary:
            got["lost"] = p.lost(got["commits_all"])
            report.add_lost(got["lost"])
            after = p.primary.counter("tap_wakeups")
            got["tap_wakeups"] = None if None in (wakeups, after) else after - wakeups
            report.setup["hook"] = p.primary.hook()
        for n in p.nodes:
            got[n.role + "_cpu_us"] = (n.cpu() - before[n.role]) * 1e6 / got["commits_all"]
    return got


def rounds(lab, report, contestants, **options):
    """Each of `contestants`, {label: nodes}, once per round; {label: [result of each round]}."""
    labels, results = list(contestants), {label: [] for label in contestants}
    for i in range(lab.options.pairs):
        turn = i % len(labels)
        for label in labels[turn:] + labels[:turn]:
            got = one_run(lab, report, contestants[label], **options)
            results[label].append(got)
            report.runs.append({"setup": label, "round": i, **options, **got})
            lab.progress(report.name, f"{label} {options.get('sync', '')} {number(got['rate'])}/s")
    return results


def ratios(results, label, key, base="alone"):
    return [a[key] / b[key] for a, b in zip(results[label], results[base])]


def peak(results, key):
    return max(r[key] for r in results)


def cost_row(results, label, name):
    """A line of a cost table."""
    runs, ratio = results[label], ratios(results, label, "rate")
    mid = {key: median([r.get(key) for r in runs]) for key in
           ("rate", "commit_p50_ns", "commit_p99_ns", "commit_max_ns", "cpu_us_per_commit",
            "primary_cpu_us", "replica_cpu_us")}
    return [name, number(mid["rate"]), number(median(ratio)),
            f"{number(min(ratio))} … {number(max(ratio))}",
            number(mid["commit_p50_ns"] / US), number(mid["commit_p99_ns"] / US),
            number(mid["commit_max_ns"] / US), number(peak(runs, "commit_max_ns") / US),
            number(peak(runs, "wal_bytes_peak") / MB), number(mid["cpu_us_per_commit"]),
            number(mid["primary_cpu_us"]) if mid["primary_cpu_us"] else "",
            number(mid["replica_cpu_us"]) if mid["replica_cpu_us"] else ""]


COST_HEAD = ["", "commits/s", "ratio", "min … max", "p50 µs", "p99 µs", "longest, median",
             "longest of all", "WAL peak MB", "CPU µs/commit", "primary's", "replica's"]


def describe(lab, report, seconds, sync="NORMAL"):
    report.setup["synchronous"] = sync
    report.setup["runs"] = (f"{lab.options.pairs} rounds, taking turns, {seconds:g} s each after "
                            f"{WARMUP_S:g} s of warm-up that is dropped")


def with_apart(lab, contestants):
    """And a replica whose bytes do not go to the disk that the application waits for."""
    return {**contestants, "primary + replica in memory": APART} if lab.apart else contestants


def app_cost(lab, report):
    seconds = lab.seconds(3)
    describe(lab, report, seconds, "NORMAL, FULL, OFF")
    rows, everyday = [], {"alone": ALONE, "primary": PRIMARY, "primary + replica": REPLICA}
    for sync in ("NORMAL", "FULL", "OFF"):
        judged = sync == "NORMAL"
        contestants = with_apart(lab, everyday) if judged else everyday
        r = rounds(lab, report, contestants, sync=sync, seconds=seconds)
        rows += [cost_row(r, label, f"{sync}, {label}") for label in contestants]
        for label in list(contestants)[1:]:
            least = 0.95 if label == "primary" else 0.90
            name, ratio = f"{sync}, {label}", ratios(r, label, "rate")
            report.figure(f"{name}: throughput, attached : alone", median(ratio),
                          target=(">=", least) if judged else None, spread=ratio)
            if not judged:
                continue
            report.figure(f"{name}: WAL peak", peak(r[label], "wal_bytes_peak") / MB, "MB",
                          target=("<=", 6), spread=[x["wal_bytes_peak"] / MB for x in r[label]])
            report.figure(f"{name}: longest commit of all rounds, attached : alone",
                          peak(r[label], "commit_max_ns") / peak(r["alone"], "commit_max_ns"),
                          target=("<=", 2), spread=ratios(r, label, "commit_max_ns"))
    report.table(COST_HEAD, rows)


def app_cost_writers(lab, report, writers):
    seconds = lab.seconds(3)
    describe(lab, report, seconds)
    contestants = {"alone": ALONE, "primary": PRIMARY, "primary + replica": REPLICA}
    r = rounds(lab, report, contestants, writers=writers, seconds=seconds)
    report.table(COST_HEAD, [cost_row(r, label, label) for label in contestants])
    for label in list(contestants)[1:]:
        ratio = ratios(r, label, "rate")
        report.figure(f"{label}: throughput, attached : alone", median(ratio), target=(">=", 0.90),
                      spread=ratio)
        report.figure(f"{label}: WAL peak of all rounds, attached : alone",
                      peak(r[label], "wal_bytes_peak") / peak(r["alone"], "wal_bytes_peak"),
                      target=("<=", 2), spread=ratios(r, label, "wal_bytes_peak"))


def writers2(lab, report):
    app_cost_writers(lab, report, 2)


def writers4(lab, report):
    app_cost_writers(lab, report, 4)


def delay_run(lab, report, nodes, seconds):
    with pair(lab, **nodes) as p:
        argv = [lab.program("delay"), p.db, p.copy, "--seconds", seconds, "--rate", 1000]
        argv += ["--pin", lab.options.cpus[0]] if lab.options.cpus[0] is not None else []
        bytes_before = p.primary.counter("bytes")
        got = run_json(lab, argv)
        report.setup["sqlite"] = got["sqlite"]
        bytes_after = p.primary.counter("bytes")
        got["lost"] = max(got["lost"], p.lost(got["rows"]))
        report.add_lost(got["lost"])
        if bytes_after is not None and bytes_before is not None:
            got["bytes_per_commit"] = round((bytes_after - bytes_before) / got["rows"])
        report.setup["hook"] = p.primary.hook()
    return got


def delay(lab, report):
    seconds = lab.seconds(30)
    report.setup["synchronous"] = "NORMAL"
    report.setup["runs"] = f"1,000 commits/s for {seconds:g} s after {WARMUP_S:g} s dropped"
    adaptive = delay_run(lab, report, REPLICA, seconds)
    spin = delay_run(lab, report, SPIN_REPLICA, min(seconds, 10))
    size = adaptive.get("bytes_per_commit") or 4184
    argv = [lab.program("delay"), "--tcp", size, "--seconds", min(seconds, 10)]
    for option, cpu in (("--pin", lab.options.cpus[0]), ("--peer-pin", lab.options.cpus[1])):
        argv += [option, cpu] if cpu is not None else []
    tcp = run_json(lab, argv)
    report.runs += [{"setup": "adaptive", **adaptive}, {"setup": "spin", **spin},
                    {"setup": "tcp", **tcp}]
    shares = ("p50", "p90", "p99", "p999", "max")
    rows = [[name] + [number(scaled(got[f"{key}_{s}_ns"], US)) for s in shares]
            for name, got, key in (
                ("COMMIT returned → readable, adaptive", adaptive, "delay"),
                ("COMMIT returned → readable, spin", spin, "delay"),
                ("  one look at the replica (resolution)", adaptive, "poll"),
                ("  COMMIT itself, adaptive", adaptive, "commit"),
                (f"bare TCP, {size} bytes and 1 back, blocking", tcp, "blocking"),
                (f"bare TCP, {size} bytes and 1 back, spinning", tcp, "spinning"))]
    report.table(["µs", "p50", "p90", "p99", "p99.9", "longest"], rows)
    report.figure("delay p50", scaled(adaptive["delay_p50_ns"], US), "µs", ("<=", 150))
    report.figure("delay p99", scaled(adaptive["delay_p99_ns"], US), "µs", ("<=", 1000))


def felt(lab, report):
    seconds = lab.seconds(3)
    describe(lab, report, seconds)
    contestants = {"alone": ALONE, "spin": SPIN, "adaptive": PRIMARY,
                   "spin + replica": SPIN_REPLICA, "adaptive + replica": REPLICA}
    rows = []
    for rate in (50, 1000):
        r = rounds(lab, report, contestants, rate=rate, seconds=seconds)
        for label in contestants:
            ratio = ratios(r, label, "commit_p50_ns")
            rows.append([f"{rate}/s, {label}"] + [number(median([x[k] for x in r[label]]) / US)
                        for k in ("commit_p50_ns", "commit_p90_ns", "commit_p99_ns")]
                        + [number(median(ratio)), f"{number(min(ratio))} … {number(max(ratio))}"])
            limit = 1.15 if "spin" in label else 1.3 if rate == 1000 else None
            if label != "alone":
                report.figure(f"{label}, {rate}/s: COMMIT p50, attached : alone", median(ratio),
                              target=("<=", limit) if limit else None, spread=ratio)
    report.table(["", "p50 µs", "p90 µs", "p99 µs", "p50 ratio", "min … max"], rows)
    bursts(lab, report)


def bursts(lab, report):
    """100 commits in a row every half second: how often is the application made to pay?"""
    seconds, rows = lab.seconds(3), []
    r = {label: one_run(lab, report, nodes, rate=2, burst=100, seconds=max(seconds, 3))
         for label, nodes in (("alone", ALONE), ("adaptive", PRIMARY),
                              ("adaptive + replica", REPLICA))}
    for label, got in r.items():
        report.runs.append({"setup": "bursts, " + label, **got})
        wakeups = got.get("tap_wakeups")
        each = None if wakeups is None else wakeups * 100 / got["commits_all"]
        rows.append([f"bursts, {label}", number(got["first_p50_ns"] / US),
                     number(got["commit_p50_ns"] / US), number(each) if label != "alone" else ""])
        if label != "alone":
            report.figure(f"{label}: wakeups a burst of 100 commits after quiet", each,
                          target=("<=", 1.1))
    report.table(["", "first of a burst, p50 µs", "all, p50 µs", "wakeups a burst"], rows)


def keepup(lab, report):
    seconds, times, rows = lab.seconds(10), min(lab.options.pairs, 3), []
    report.setup["synchronous"] = "NORMAL"
    report.setup["runs"] = (f"{times} of {seconds:g} s, unlimited; the application then polls "
                            "the replica's file itself")
    alone = one_run(lab, report, ALONE, seconds=seconds, follow=True)
    runs = [one_run(lab, report, REPLICA, seconds=seconds, follow=True) for _ in range(times)]
    for label, got in [("alone, its own file", alone)] + [("attached", r) for r in runs]:
        report.runs.append({"setup": label, **got})
        rows.append([label, number(got["rate"]), number(scaled(got["keepup_ns"], MS)),
                     number(got["behind"]), number(got["wal_bytes_peak"] / MB)])
    report.table(["", "commits/s", "ms to the last row", "rows missing at first look",
                  "WAL peak MB"], rows)
    late = [scaled(r["keepup_ns"], MS) for r in runs]
    report.figure("last COMMIT → last row readable on the replica, longest run",
                  None if None in late else max(late), "ms", ("<=", 100), spread=late)


def cpu(lab, report):
    seconds = lab.seconds(10)
    report.setup["synchronous"] = "NORMAL"
    report.setup["runs"] = f"one of {seconds:g} s each; user + system time of all threads"
    rows = []
    for label, nodes in (("alone", ALONE), ("primary", PRIMARY), ("primary + replica", REPLICA)):
        got = one_run(lab, report, nodes, seconds=seconds)
        report.runs.append({"setup": label, **got})
        rows.append([label, number(got["rate"]), number(got["cpu_us_per_commit"])]
                    + [number(got[k]) if k in got else "" for k in ("primary_cpu_us",
                                                                    "replica_cpu_us")])
        if label != "alone":
            report.figure(f"{label}: primary's CPU a commit", got["primary_cpu_us"], "µs",
                          ("<=", 8))
    report.table(["µs of CPU a commit", "commits/s", "application", "primary", "replica"], rows)


def idle(lab, report):
    seconds = lab.seconds(10)
    report.setup["runs"] = (f"{seconds:g} s with nothing written, after 2 s of quiet; "
                            "an application has the database open")
    with pair(lab, **REPLICA) as p, contextlib.closing(sqlite3.connect(p.db)) as db:
        db.execute("INSERT INTO t(v) VALUES(1)")
        db.commit()
        report.add_lost(p.lost(1))
        report.setup["hook"] = p.primary.hook()
        nothing = lab.spawn(["sleep", "infinity"])
        pids = {"primary": p.primary.pid, "replica": p.replica.pid,
                "a process that sleeps": nothing.pid}
        time.sleep(2)
        before, begin = {k: cpu_seconds(pid) for k, pid in pids.items()}, time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - begin
        used = {k: (cpu_seconds(pid) - before[k]) * 100 / took for k, pid in pids.items()}
        lab.end(nothing)
    report.runs.append({"seconds": took, **used})
    report.table(["", "% of a core"], [[k, number(v)] for k, v in used.items()])
    report.figure("primary, nothing written", used["primary"], "% of a core", ("<=", 0.1))


# ---- seed ----------------------------------------------------------------------------------------

def make_seed_source(path, megabytes, page_size):
    """A database of `megabytes` (10^6) with one row a page, in WAL mode."""
    rows = megabytes * 10**6 // page_size
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(f"""
            PRAGMA page_size = {page_size}; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
            CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB);
            BEGIN;
            WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
            INSERT INTO t SELECT i, randomblob({page_size - 100}) FROM n;
            COMMIT;
            PRAGMA journal_mode = WAL;""")


def copy_by_tcp(source, target):
    """File → loopback TCP → file, sendfile() at one end and 1 MB reads at the other."""
    listener = socket.create_server(("127.0.0.1", 0))
    child = os.fork()
    if not child:
        try:
            with socket.create_connection(listener.getsockname()) as s, open(source, "rb") as f:
                s.sendfile(f)
        finally:
            os._exit(0)
    buffer = bytearray(1 << 20)
    with listener, open(target, "wb", buffering=0) as f:
        s, _ = listener.accept()
        with s:
            while n := s.recv_into(buffer):
                f.write(memoryview(buffer)[:n])
    os.waitpid(child, 0)


def timed(act, *args, **more):
    os.sync()  # what an earlier step wrote must not be written during this one
    begin = time.monotonic()
    act(*args, **more)
    return time.monotonic() - begin


def seed_once(p, rows):
    """From the replica's exec to the whole database readable there."""
    os.sync()
    p.start_replica()
    wait_until(lambda: os.path.exists(p.copy) and ask(p.copy, "SELECT max(id) FROM t") == rows,
               300, "database readable on the replica", step_s=0.002)
    took = time.monotonic() - p.replica.started
    lost = abs(rows - (ask(p.copy, "SELECT count(*) FROM t") or 0))
    p.nodes.remove(p.replica)
    p.replica.stop()
    shutil.rmtree(os.path.dirname(p.copy))
    shutil.rmtree(p.replica.state_dir)
    return took, lost


def seed(lab, report):
    megabytes, times = lab.options.seed_mb, min(lab.options.pairs, 3)
    source = os.path.join(lab.cache, f"seed-{megabytes}-{lab.options.page_size}.db")
    if not os.path.exists(source):
        lab.progress(report.name, f"making a database of {megabytes} MB, once")
        os.makedirs(lab.cache, exist_ok=True)
        make_seed_source(source + ".tmp", megabytes, lab.options.page_size)
        os.rename(source + ".tmp", source)
    report.setup["runs"] = f"{times}, taking turns; sync() before each; source in the page cache"
    took = {"cp": [], "bare TCP": [], "seed": []}
    with pair(lab, primary=False, replica=False) as p:
        shutil.copyfile(source, p.db)
        size, target = os.path.getsize(p.db), os.path.join(p.folder, "baseline")
        rows = ask(p.db, "SELECT count(*) FROM t")
        p.start_primary()
        report.setup["hook"] = p.primary.hook()
        for i in range(times):
            took["cp"].append(timed(subprocess.run, ["cp", "--reflink=never", p.db, target],
                                    check=True))
            os.unlink(target)
            took["bare TCP"].append(timed(copy_by_tcp, p.db, target))
            os.unlink(target)
            seconds, lost = seed_once(p, rows)
            took["seed"].append(seconds)
            report.add_lost(lost)
            report.runs.append({"round": i, **{k: v[-1] for k, v in took.items()}})
            lab.progress(report.name, f"{seconds:.2f} s")
    speed = {k: [size / MB / s for s in v] for k, v in took.items()}
    names = {"cp": "cp in the same directory", "bare TCP": "file → bare loopback TCP → file",
             "seed": "seed: replica's start → readable"}
    report.setup["database"] = f"{size / MB:,.0f} MB, {rows:,} rows"
    report.table(["", "s", "MB/s", "min … max"],
                 [[names[k], number(median(took[k])), number(median(v)),
                   f"{number(min(v))} … {number(max(v))}"] for k, v in speed.items()])
    report.figure("seed", median(speed["seed"]), "MB/s", (">=", 500), spread=speed["seed"])
    report.figure("seed : bare TCP copy", median([a / b for a, b in zip(speed["seed"],
                                                                         speed["bare TCP"])]))
