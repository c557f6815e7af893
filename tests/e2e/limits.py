"""limits.py - large transactions, long snapshots, full disks."""
import os
import resource
import shutil
import subprocess
import time

from common import (SANITIZED, Skip, env_number, links, need, read_n, run, scenario, until)

RSS_MAX = 64 << 20


@scenario(600)
def big_txn(stage):
    """One transaction of 2 GB passes through rings of 64 MB in bounded memory."""
    db = stage.create()
    stage.keeper(db)
    mb, free_mb = env_number("WALWIRE_BIG_MB", 2048), shutil.disk_usage(stage.dir).free >> 20
    if mb > free_mb // 6:
        mb = free_mb // 6
        stage.note(f"only {mb} MB: the disk has {free_mb} MB free")
    ring = ["--ring-bytes", "64M"]
    p = stage.primary(db, args=ring).wait_attached(db)
    r = stage.replica(p, args=ring, listen=False).wait_streaming(db)
    start = time.monotonic()
    w = stage.writer(db, "giant", commits=1, modes="big=1", big_mb=mb, max_mb=1 << 30)
    anon = {p: 0, r: 0}

    def sample():
        for node in anon:
            need(node.alive(), f"{node.name} ended with {node.popen.poll()}")
            anon[node] = max(anon[node], node.memory()["RssAnon"])
    while w.alive():
        sample()
        time.sleep(0.1)
    w.finish()
    written = time.monotonic()
    until("the giant transaction on the replica", lambda: sample() or read_n(r.path(db)) == 1, 400, every=0.1)
    stage.note(f"{mb} MB: committed after {written - start:.1f} s, readable on the replica "
               f"{time.monotonic() - written:.1f} s later")
    for node in (p, r):
        m = node.memory()
        private = m["VmHWM"] - m["RssShmem"] - m["RssFile"]
        stage.note(f"{node.name} RSS peak {m['VmHWM'] >> 20} MB, of it private {anon[node] >> 20}")
        if not SANITIZED:
            need(anon[node] < RSS_MAX and private < RSS_MAX,
                 f"{node.name} used {anon[node] >> 20} MB (peak less shared: {private >> 20} MB)")
    stage.writer(db, "after", commits=50).finish()
    stage.finish(db, [p, r], timeout=200)


@scenario(300)
def snapshot(stage):
    """A reader on the replica holds a snapshot for a minute: it does not move, while other readers see
    new states all the time."""
    hold = env_number("WALWIRE_HOLD", 60)
    db = stage.create()
    p = stage.primary(db).wait_attached(db)
    r = stage.replica(p).wait_streaming(db)
    w = stage.writer(db, "w", rate=400, seconds=hold + 4, modes="small=100,medium=5,ddl=1,incvacuum=1")
    holder = stage.reader(r.path(db), "holder", hold=hold, seconds=hold + 2, every_us=20000)
    other = stage.reader(r.path(db), "other", integrity_every=10)
    worst = 0.0
    while holder.alive():
        n, since = read_n(db), time.monotonic()
        until(f"n={n} on the replica", lambda: (read_n(r.path(db)) or 0) >= n, 10, every=0.005)
        worst = max(worst, time.monotonic() - since)
        time.sleep(0.5)
    held = holder.finish()
    wal = os.path.getsize(r.path(db) + "-wal")
    need(held["holds"] >= 1 and held["held_moved"] > 0, f"no snapshot was held: {held}")
    w.finish()
    stage.converge(db, [p, r])
    seen = other.stop()
    need(seen["states"] > hold, f"the other reader saw {seen['states']} states only")
    need(worst < 2, f"while a snapshot was held the replica fell {worst:.1f} s behind")
    stage.note(f"held {hold} s over {held['held_moved']} commits, others saw {seen['states']} states, "
               f"behind {worst * 1000:.0f} ms at most, replica's WAL {wal >> 20} MB")
    stage.finish(db, [p, r], keep=False)


@scenario(120)
def churn(stage):
    """Ten thousand opens and closes on each side while the application writes."""
    db = stage.create()
    p = stage.primary(db).wait_attached(db)
    r = stage.replica(p).wait_streaming(db)
    w = stage.writer(db, "w", modes="small=100,medium=10,checkpoint=1")
    reader = stage.reader(r.path(db), "reader")
    runs = [stage.tool("churn-primary", "fdchurn", db),
            stage.tool("churn-replica", "fdchurn", r.path(db), "--ro"),
            stage.tool("churn-replica-rw", "fdchurn", r.path(db), "--count", "5000")]
    done = [x.finish(100) for x in runs]
    need(all(d["busy"] == 0 for d in done), f"opening found the database busy: {done}")
    w.stop()
    stage.converge(db, [p, r])
    reader.stop()
    need(p.db(db).get("state") == "attached", f"the primary is {p.explain(db)}")
    stage.note(", ".join(f"{d['opens']} opens in {d['seconds']:.1f} s" for d in done))
    stage.finish(db, [p, r], keep=False)


@scenario(120)
def disk_full(stage):
    """A replica's disk is full: one clear line; the application, the primary and another replica go
    on; with space again it catches up."""
    small = stage.subdir("small")
    if os.geteuid() or run(["mount", "-t", "tmpfs", "-o", "size=16m", "walwire-e2e", small],
                           check=False).returncode:
        raise Skip("a tmpfs cannot be mounted here")
    stage.mounts.append(small)
    os.makedirs(small + "/data")
    db = stage.create()
    stage.keeper(db)
    p = stage.primary(db).wait_attached(db)
    a = stage.replica(p, "roomy").wait_streaming(db)
    b = stage.replica(p, "narrow", data_dir=small + "/data", listen=False).wait_streaming(db)
    w = stage.writer(db, "w", rate=100, modes="medium=20,big=1", max_mb=60)

    def told():
        return [line for line in b.stderr().splitlines() if "No space" in line]
    until(lambda: f"a line about the full disk; it said {b.stderr()!r}", told, 40)
    b.expected_down = True
    time.sleep(2)
    need(len(told()) == 1, f"the full disk was named {len(told())} times: {told()[:3]}")
    need(told()[0].startswith("walwire: ") and ";" in told()[0], f"not clear: {told()[0]}")
    code = b.popen.poll()
    need(code is None or code == 1, f"the replica with the full disk ended with {code}")
    w.stop()
    stage.converge(db, [p, a])
    subprocess.run(["mount", "-o", "remount,size=1g", small], check=True)
    if code is None:
        b.expected_down = False
    else:
        b.start()
    stage.finish(db, [p, a, b])


@scenario(120)
def no_descriptors(stage):
    """The primary has no descriptor left: neither its programs nor a new replica can come in. It says so
    once, naps, and every commit arrives; with descriptors again both come."""
    db = stage.create()
    stage.keeper(db)
    p = stage.primary(db).wait_attached(db)
    a = stage.replica(p, "a").wait_streaming(db)
    tapped = bool(links(p.pid))
    w = stage.writer(db, "dense", modes="small=1", sync="OFF")
    if tapped:
        until("the programs are taken out", lambda: not links(p.pid), timeout=30)
    used = {int(fd) for fd in os.listdir(f"/proc/{p.pid}/fd")}
    before = resource.prlimit(p.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(p.pid, resource.RLIMIT_NOFILE, (min(set(range(len(used) + 1)) - used), before[1]))
    w.stop()
    if tapped:
        until("a line about eBPF", lambda: "no eBPF any more" in p.stderr(), timeout=30)
    b = stage.replica(p, "b")
    stage.writer(db, "rare", commits=40, rate=20, modes="small=1").finish()
    until("the last commit", lambda: read_n(a.path(db)) == read_n(db), timeout=30)
    need(not os.path.exists(b.path(db)), "the test itself is wrong: there were descriptors left")
    need(p.stderr().count("no eBPF any more") == tapped, f"it said {p.stderr()!r}")
    resource.prlimit(p.pid, resource.RLIMIT_NOFILE, before)
    b.wait_streaming(db)
    if tapped:
        until("the programs are back", lambda: links(p.pid), timeout=30)
        wakeups = p.counter(db, "tap_wakeups")
        time.sleep(1)
        stage.writer(db, "last", commits=1).finish()
        until("a wakeup", lambda: p.counter(db, "tap_wakeups") > wakeups)
    stage.finish(db, [p, a, b])
