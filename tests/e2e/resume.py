"""resume.py - after a restart or a broken link, go on where it stopped; copy anew only if needed."""
import os
import signal
import time

from common import Link, need, read_n, scenario, sql, until, wal_salts

APP = {"modes": "small=50,medium=5", "autocheckpoint": 0}


def leave(node, how):
    if how == "SIGTERM":
        node.stop()
    else:
        node.kill9()


def check_seeds(p, db, before, expect_new, what):
    """The primary's count of full copies. A restarted primary may count from 0 or go on counting;
    `before` is made larger than any number of new ones, so the two cannot be confused."""
    seeds = p.counter(db, "seeds")
    fresh = seeds in (0, before)
    need(fresh != expect_new, f"{what}: {seeds} full copies, {before} before: "
                              + ("expected a new one" if expect_new else "it was copied again"))
    return seeds


def throwaway_seeds(stage, p, db, tag):
    """Three full copies for replicas that leave at once."""
    for i in range(3):
        stage.replica(p, f"guest-{tag}-{i}", listen=False).wait_streaming(db).stop()


@scenario(240)
def resume(stage):
    """Primary and replica are ended by SIGTERM and by kill -9 while the application works: the replica
    goes on without a full copy when the WAL was not restarted, every commit on its own; when it was
    restarted the replica is copied anew."""
    db = stage.create()
    stage.keeper(db)
    stage.writer(db, "first", commits=300, **APP).finish()
    p = stage.primary(db).wait_attached(db)
    r = stage.replica(p).wait_streaming(db)
    for how in ("SIGTERM", "SIGKILL"):
        throwaway_seeds(stage, p, db, how)
        txid, n, seeds = stage.converge(db, [p, r]), read_n(db), p.counter(db, "seeds")
        salts = wal_salts(db)
        leave(p, how)
        stage.writer(db, f"away-{how}", commits=100, **APP).finish()
        need(wal_salts(db) == salts, "the test itself is wrong: the WAL restarted")
        p.start()
        end_txid = stage.converge(db, [p, r])
        check_seeds(p, db, seeds, False, f"primary after {how}")
        need(end_txid - txid == read_n(db) - n,
             f"primary after {how}: {read_n(db) - n} commits, txid moved by {end_txid - txid}")

        txid, n, seeds = end_txid, read_n(db), p.counter(db, "seeds")
        leave(r, how)
        stage.writer(db, f"replica-away-{how}", commits=100, **APP).finish()
        r.start()
        end_txid = stage.converge(db, [p, r])
        need(p.counter(db, "seeds") == seeds, f"replica after {how}: it was copied again")
        need(end_txid - txid == read_n(db) - n,
             f"replica after {how}: {read_n(db) - n} commits, txid moved by {end_txid - txid}")
    for how in ("SIGTERM", "SIGKILL"):
        throwaway_seeds(stage, p, db, how + "-again")
        seeds, salts = p.counter(db, "seeds"), wal_salts(db)
        leave(p, how)
        sql(db, "PRAGMA wal_checkpoint(TRUNCATE)")
        stage.writer(db, f"restarted-{how}", commits=100, **APP).finish()
        need(wal_salts(db) != salts, "the test itself is wrong: the WAL did not restart")
        p.start()
        stage.converge(db, [p, r])
        check_seeds(p, db, seeds, True, f"primary after {how} and a restart of the WAL")
    stage.finish(db, [p, r])


@scenario(120)
def link(stage):
    """The link is cut, held, and flips a bit: the replica goes on from its position without a full
    copy; damaged bytes are counted and never applied."""
    db = stage.create()
    stage.keeper(db)
    p = stage.primary(db).wait_attached(db)
    relay = Link(stage, p.port)
    r = stage.replica(relay.addr).wait_streaming(db)
    watcher = stage.reader(r.path(db), "watcher")
    stage.writer(db, "w0", commits=200, **APP).finish()
    stage.converge(db, [p, r])
    seeds = p.counter(db, "seeds")
    for i in range(3):
        w = stage.writer(db, f"cut{i}", seconds=2, rate=200, **APP)
        time.sleep(0.5)
        relay.cut()
        time.sleep(0.8)
        relay.mend()
        w.finish()
        stage.converge(db, [p, r])
    need(p.counter(db, "seeds") == seeds, "a cut link led to a full copy")
    need(relay.connections >= 4, "the test itself is wrong: the link was not used")
    flips = 0
    for i in range(8):
        relay.flip_downwards = i % 4 != 3
        relay.flip_after = stage.rng.randrange(200000 if relay.flip_downwards else 2000)
        stage.writer(db, f"flip{i}", seconds=1, **APP).finish()
        flips += relay.flip_after is None
        relay.flip_after = None
        stage.converge(db, [p, r])
    found = sum(node.counter(db, c) or 0 for node in (p, r) for c in ("bad_batches", "bad_messages"))
    need(flips >= 4 and found == flips, f"{flips} flipped bits, {found} found")
    stage.note(f"{flips} flipped bits found, {p.counter(db, 'seeds') - seeds} full copies after them")
    watcher.stop()
    stage.finish(db, [p, r])


@scenario(120)
def slow_replica(stage):
    """A stopped replica slows neither the application nor the other replica; woken, it catches up or
    is copied anew."""
    db = stage.create()
    stage.keeper(db)
    ring = ["--ring-bytes", "8M"]
    p = stage.primary(db, args=ring).wait_attached(db)
    a = stage.replica(p, "stopped", args=ring, listen=False).wait_streaming(db)
    b = stage.replica(p, "other", args=ring, listen=False).wait_streaming(db)

    def watch(name, seconds):
        """A writer's result, and the longest the other replica was behind it."""
        w, worst = stage.writer(db, name, seconds=seconds), 0.0
        while w.alive():
            n, since = read_n(db), time.monotonic()
            until(f"the other replica reaches n={n}", lambda: (read_n(b.path(db)) or 0) >= n, 5, every=0.01)
            worst = max(worst, time.monotonic() - since)
            time.sleep(0.1)
        return w.finish(), worst

    before, _ = watch("before", 5)
    stage.converge(db, [p, a, b])
    a.signal(signal.SIGSTOP)
    during, worst = watch("during", 8)
    stage.converge(db, [p, b])
    a.signal(signal.SIGCONT)
    stage.converge(db, [p, a, b])
    ratio = (during["commits"] / during["seconds"]) / (before["commits"] / before["seconds"])
    wal = p.db(db).get("wal_bytes")
    stage.note(f"commits/s {ratio:.2f} of before, longest commit {during['small_us_max'] / 1000:.0f} ms, "
               f"other replica behind {worst * 1000:.0f} ms at most, WAL {wal}")
    need(ratio > 0.5, f"the application slowed to {ratio:.2f} while one replica was stopped")
    need(during["small_us_max"] < 2_000_000, f"a commit took {during['small_us_max']} us")
    need(worst < 3, f"the other replica fell {worst:.1f} s behind")
    stage.finish(db, [p, a, b])


@scenario(120)
def slow_link(stage):
    """A replica behind a slow link takes a few megabytes a second, less than the application writes
    without a pause: it is cut loose before the application's WAL grows for ever, the other misses
    nothing, and once there is time for it it follows again."""
    db = stage.create()
    stage.keeper(db)
    ring = ["--ring-bytes", "8M"]
    p = stage.primary(db, args=ring).wait_attached(db)
    relay = Link(stage, p.port)
    a = stage.replica(relay.addr, "far", args=ring, listen=False).wait_streaming(db)
    b = stage.replica(p, "near", args=ring, listen=False).wait_streaming(db)
    relay.bytes_per_s = 6 << 20  # more than half a ring in READER_WINDOW_MS
    w = stage.writer(db, "w0", modes="small=1", sync="OFF", rate=4000)
    until("the far replica is cut loose", lambda: p.counter(db, "readers_cut"), timeout=60)
    restarts = p.counter(db, "wal_restarts")
    until("the WAL begins anew", lambda: p.counter(db, "wal_restarts") > restarts, timeout=30)
    wrote = w.stop()
    stage.converge(db, [p, b])
    need(b.counter(db, "reconnects") == 1, "the near replica was cut loose, too")
    relay.bytes_per_s = None
    stage.converge(db, [p, a, b], timeout=90)
    stage.note(f"{wrote['commits']} commits, WAL {os.path.getsize(db + '-wal') >> 20} MB, cut "
               f"{p.counter(db, 'readers_cut')} times, {p.counter(db, 'seeds')} full copies")
    stage.finish(db, [p, a, b])
