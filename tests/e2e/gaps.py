"""gaps.py - what comes between: an absence, a copy in the middle of a copy, a disk that is full."""
import math
import os
import re
import socket
import sqlite3
import time

from bad_input import ANNOUNCED
from common import SLOWER, Link, Skip, need, read_n, run, scenario, sql, until

MB = 1 << 20


# -- the application of these scenarios: c.n counts its commits, t holds what makes it large --

def connect(db):
    """In autocommit: every statement is a commit."""
    return sqlite3.connect(db, isolation_level=None, timeout=10 * SLOWER)


def create(stage, name="app.db", rows=0, n=0):
    """A new database of about `rows` pages and the application that has it open."""
    app = connect(stage.path(name))
    app.execute("PRAGMA journal_mode=WAL")
    app.execute("CREATE TABLE c(n)")
    app.execute("CREATE TABLE t(i INTEGER PRIMARY KEY, x)")
    app.execute("INSERT INTO c VALUES(?)", (n,))
    app.execute("BEGIN")
    app.executemany("INSERT INTO t VALUES(?,?)", ((i, stage.rng.randbytes(3000)) for i in range(rows)))
    app.execute("COMMIT")
    return stage.path(name), app


def commit(app, times=1):
    for _ in range(times):
        app.execute("UPDATE c SET n=n+1")


def close_last(db, app):
    """The application ends and nobody else is there: the WAL goes."""
    app.close()
    need(not os.path.exists(db + "-wal"), "the test itself is wrong: the WAL is still there")


def rows(db):
    """What a reader of a copy finds: (c.n, rows of t)."""
    c = sqlite3.connect(f"file:{db}?mode=ro", uri=True, timeout=5)
    try:
        return c.execute("SELECT n, (SELECT count(*) FROM t) FROM c").fetchone()
    finally:
        c.close()


# -- the stage of these scenarios --

def small_disk(stage, name, mb):
    """A file system of its own that is soon full."""
    where = stage.subdir(name)
    if os.geteuid() or run(["mount", "-t", "tmpfs", "-o", f"size={mb}m", "walwire-e2e", where],
                           check=False).returncode:
        raise Skip("a tmpfs cannot be mounted here")
    stage.mounts.append(where)
    return where


def fill(disk):
    """Take all that is left of it; the file to remove to have it back."""
    path = os.path.join(disk, "fill")
    with open(path, "wb", buffering=0) as f:
        try:
            while True:
                f.write(b"\0" * 4096)
        except OSError:
            return path


class Valve(Link):
    """A relay that lets `limit` bytes pass from the source and holds what follows."""
    PIECE = 32768

    def __init__(self, stage, to_port, limit=math.inf):
        self.limit, self.passed = limit, 0
        super().__init__(stage, to_port)

    def held(self):
        return self.passed >= self.limit

    def before(self, a, b, downwards):
        if not downwards:
            return
        # What is held should not fit into sockets.
        a.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        b.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        while self.held() and not self.down:
            time.sleep(0.005)

    def passing(self, data, downwards):
        if downwards:
            self.passed += len(data)
        return data


# -- absences --

@scenario(60)
def wal_gone(stage):
    """The primary attached to a database without a WAL and is away, by kill -9 and by SIGTERM, while
    the application commits and ends: these commits are not skipped."""
    db, app = create(stage)
    close_last(db, app)
    p = stage.primary(db).wait_attached(db)
    r = stage.replica(p).wait_streaming(db)
    for leave in (p.kill9, p.stop, p.kill9):
        leave()
        app, n = connect(db), read_n(db)
        commit(app, stage.rng.randrange(1, 4))
        close_last(db, app)
        p.start().wait_attached(db)
        stage.converge(db, [p, r], timeout=15)
        need(read_n(r.path(db)) == read_n(db) > n, f"{rows(r.path(db))}, the primary has {rows(db)}")
    app = connect(db)
    commit(app)
    stage.converge(db, [p, r], timeout=15)
    app.close()
    stage.finish(db, [p, r])


@scenario(60)
def replaced(stage):
    """Another database takes the file's place, with no WAL before or after, while the primary is
    attached: it is copied anew."""
    db, app = create(stage)
    close_last(db, app)
    new, app = create(stage, "new.db", n=1000)
    close_last(new, app)
    p = stage.primary(db).wait_attached(db)
    r = stage.replica(p).wait_streaming(db)
    need(read_n(r.path(db)) == 0, "the test itself is wrong: what the replica has is not the old file's")
    seeds = p.counter(db, "seeds")
    os.unlink(db + "-wal")
    os.unlink(db + "-shm")
    os.rename(new, db)
    until(lambda: f"the new file's content on the replica; {r.explain(db)}, it has {rows(r.path(db))}",
          lambda: read_n(r.path(db)) == 1000, 15)
    p.wait_attached(db)
    r.wait_streaming(db)
    need(p.counter(db, "seeds") == seeds + 1, f"{p.counter(db, 'seeds')} full copies, {seeds} before")
    app = connect(db)
    commit(app)
    stage.converge(db, [p, r], timeout=15)
    app.close()
    stage.finish(db, [p, r])


@scenario(60)
def second_exclusive(stage):
    """A second database appears, locked exclusively: one line says so, the first goes on; opened anew
    without that lock the second is attached and copied, too."""
    db, app = create(stage)
    other = stage.path("other.db")
    p = stage.primary(db, other).wait_attached(db)
    r = stage.replica(p).wait_streaming(db)
    hog = connect(other)
    hog.execute("PRAGMA locking_mode=EXCLUSIVE")
    hog.execute("PRAGMA journal_mode=WAL")
    hog.execute("CREATE TABLE c(n)")
    until("a line about the lock", lambda: "exclusive mode" in p.stderr(), 15)
    for _ in range(3):
        commit(app, 10)
        stage.converge(db, [p, r])
        time.sleep(1)
    lines = [line for line in p.stderr().splitlines() if "other.db" in line and "exclusive mode" in line]
    need(len(lines) == 1 and "locking_mode=NORMAL" in lines[0], f"it said {p.stderr()!r}")
    need(p.db(other).get("state") == "waiting", f"the second is {p.explain(other)}")
    hog.close()
    hog = connect(other)
    hog.execute("INSERT INTO c VALUES(7)")
    p.wait_attached(other)
    until("the second database on the replica",
          lambda: os.path.exists(r.path(other)) and sql(r.path(other), "SELECT n FROM c") == "7", 20)
    hog.close()
    app.close()
    stage.finish(db, [p, r], keep=False)


@scenario(60)
def path_returns(stage):
    """The database's name vanishes and comes back: the replica goes on where it was, without a full
    copy and without one batch that it has to refuse."""
    db, app = create(stage)
    app.execute("PRAGMA wal_autocheckpoint=0")  # captured again from the WAL's beginning: many batches
    p = stage.primary(db).wait_attached(db)
    r = stage.replica(p).wait_streaming(db)
    for i in range(100):
        app.execute("INSERT INTO t VALUES(?,?)", (i, stage.rng.randbytes(20000)))
    stage.converge(db, [p, r])
    need(os.path.getsize(db + "-wal") > 2 * MB, "the test itself is wrong: the WAL would be one batch")
    seeds = p.counter(db, "seeds")
    os.rename(db, db + ".away")
    until(lambda: f"the primary notices; {p.explain(db)}", lambda: p.db(db).get("state") == "waiting")
    os.rename(db + ".away", db)
    p.wait_attached(db)

    def refused():
        return r.counter(db, "bad_batches")
    until(lambda: f"the replica goes on; {r.explain(db)}",
          lambda: refused() or r.db(db).get("state") == "streaming")
    need(refused() == 0, f"the replica was sent {refused()} batches that do not follow; {r.explain(db)}")
    commit(app)
    txid = stage.converge(db, [p, r], timeout=15)
    need(refused() == 0, f"the replica was sent {refused()} batches that do not follow")
    need(p.counter(db, "seeds") == seeds, "the replica was copied again")
    need(txid == r.db(db)["applied"] == 101, f"101 commits, txid {txid}")
    app.close()
    stage.finish(db, [p, r])


# -- copies of copies --

def restart_wal(db, app, p, *statements):
    """The primary is killed, and before it is back the WAL goes and another one begins: what it goes
    on with is a new history. The application, come back."""
    p.kill9()
    for statement in statements:
        app.execute(statement)
    commit(app)
    close_last(db, app)
    app = connect(db)
    commit(app)
    return app


@scenario(90)
def copy_in_copy(stage):
    """A leaf is being copied from a middle replica when that is copied anew itself: all end equal."""
    db, app = create(stage, rows=6000)
    p = stage.primary(db).wait_attached(db)
    to_middle = Valve(stage, p.port)
    m = stage.replica(to_middle.addr, "middle").wait_streaming(db)
    commit(app)
    stage.converge(db, [p, m])
    app = restart_wal(db, app, p, "UPDATE t SET x=zeroblob(3000) WHERE i=8")
    to_leaf = Valve(stage, m.port, limit=4 * MB)
    leaf = stage.replica(to_leaf.addr, "leaf", listen=False)
    until(lambda: f"the leaf's copy is under way; {leaf.explain(db)}", to_leaf.held)
    to_middle.limit = to_middle.passed + 4 * MB
    p.start()
    until(lambda: f"the middle's copy is under way; {m.explain(db)}",
          lambda: to_middle.held() and m.db(db).get("state") == "seeding")
    need(leaf.db(db).get("state") == "seeding", f"the test itself is wrong: the leaf is {leaf.explain(db)}")
    to_leaf.limit = math.inf
    to_middle.limit = math.inf
    m.wait_streaming(db)
    leaf.wait_streaming(db)
    need(rows(leaf.path(db)) == rows(db), f"the leaf has {rows(leaf.path(db))}, the primary {rows(db)}")
    commit(app)
    stage.converge(db, [p, m, leaf], timeout=20)
    need(leaf.counter(db, "bad_batches") == 0, "the leaf was sent what does not follow")
    app.close()
    stage.finish(db, [p, m, leaf])


@scenario(90)
def copy_cut(stage):
    """The database shrank while the primary was away, and the middle replica's new copy is cut short:
    a leaf gets what the middle shows, whole, and later what the primary has."""
    db, app = create(stage, rows=6000)
    p = stage.primary(db).wait_attached(db)
    to_middle = Valve(stage, p.port)
    m = stage.replica(to_middle.addr, "middle").wait_streaming(db)
    commit(app)
    before = stage.converge(db, [p, m])
    was, received = rows(m.path(db)), m.counter(db, "commits")
    app = restart_wal(db, app, p, "DELETE FROM t WHERE i>=4500", "VACUUM")
    begun = to_middle.passed
    to_middle.limit = begun + MB
    p.start().wait_attached(db)
    until(lambda: f"the middle's copy is under way; {m.explain(db)}",
          lambda: to_middle.held() and m.db(db).get("state") == "seeding")
    while m.counter(db, "commits") == received:  # parts of the copy pass until a commit is between them
        need(to_middle.passed - begun < 16 * MB,
             "the test itself is wrong: no commit came between the copy's parts")
        commit(app)
        to_middle.limit += MB
        until("the middle has another part", to_middle.held)
    need(m.db(db).get("state") == "seeding", f"the test itself is wrong: the middle is {m.explain(db)}")
    p.kill9()
    to_middle.cut()
    until(lambda: f"the middle notices; {m.explain(db)}",
          lambda: m.db(db).get("state") == "connecting" and m.db(db).get("applied") == before)
    need(rows(m.path(db)) == was, f"half a copy shows: {rows(m.path(db))}, there was {was}")

    leaf = stage.replica(m, "leaf", listen=False)
    until(lambda: f"the leaf streaming; {leaf.explain(db)}",
          lambda: leaf.db(db).get("state") == "streaming" and leaf.db(db).get("applied") == before)
    need(leaf.counter(db, "bad_batches") == 0, "the leaf was sent what does not follow")
    need(rows(leaf.path(db)) == was, f"the leaf has {rows(leaf.path(db))}, the middle {was}")
    for pragma in ("page_count", "integrity_check(3)"):
        on = [sql(node.path(db), f"PRAGMA {pragma}") for node in (m, leaf)]
        need(on[0] == on[1], f"{pragma}: {on[1]} on the leaf, {on[0]} on the middle")
    need(on[1] == "ok", f"integrity_check: {on[1]}")

    to_middle.limit = math.inf
    to_middle.mend()
    p.start()
    stage.converge(db, [p, m, leaf], timeout=30)
    app.close()
    stage.finish(db, [p, m, leaf])


@scenario(90)
def leaf_ahead(stage):
    """The middle replica's disk was full and its leaf is ahead of it: with the primary dead the middle
    does not roll the leaf back; with the primary there again all go on, and nothing is copied."""
    disk = small_disk(stage, "small", 16)
    db, app = create(stage)
    p = stage.primary(db).wait_attached(db)
    m = stage.replica(p, "middle", data_dir=stage.subdir("small", "data")).wait_streaming(db)
    leaf = stage.replica(m, "leaf", listen=False).wait_streaming(db)
    commit(app, 10)
    stage.converge(db, [p, m, leaf])
    filled = fill(disk)
    for _ in range(100):
        commit(app)
        time.sleep(0.001)  # each a batch of its own
    until(lambda: f"the leaf has all; {leaf.explain(db)}", lambda: leaf.db(db).get("applied") == 110)
    behind = m.db(db)["applied"]
    need(behind < 110, f"the test itself is wrong: the middle applied {behind} commits on a full disk")
    p.kill9()
    m.kill9()
    os.unlink(filled)
    m.start()
    until(lambda: f"the middle shows what it has; {m.explain(db)}",
          lambda: m.db(db).get("applied") is not None)
    tries = leaf.counter(db, "reconnects")
    # Either it is taken in, or it has been sent away some times since the middle is there.
    until(lambda: f"the leaf asks the middle; {leaf.explain(db)}",
          lambda: leaf.counter(db, "reconnects") >= tries + 3 or leaf.db(db).get("state") != "connecting")
    now = leaf.db(db)
    need(now["applied"] == 110 and rows(leaf.path(db))[0] == 110,
         f"the leaf is {now['state']} at {now['applied']} and shows {rows(leaf.path(db))}, it had 110")
    need(now["state"] == "connecting" and m.counter(db, "seeds") == 0,
         f"the leaf is {now['state']}; {m.counter(db, 'seeds')} copies of a middle that is at {behind}")
    p.start()
    commit(app)
    txid = stage.converge(db, [p, m, leaf], timeout=20)
    need(txid == 111, f"111 commits, txid {txid}")
    seeds = [node.counter(db, "seeds") for node in (p, m)]
    need(seeds == [0, 0], f"full copies after all were there again: {seeds}")
    app.close()
    stage.finish(db, [p, m, leaf])


# -- full disks --

@scenario(60)
def never_applied(stage):
    """A commit that did not fit on the replica's disk was noted and never applied: it is not taken for
    applied after a kill, a reader that removed the replica's WAL, and a restart."""
    disk = small_disk(stage, "small", 24)
    db, app = create(stage)
    p = stage.primary(db).wait_attached(db)
    r = stage.replica(p, data_dir=stage.subdir("small", "data")).wait_streaming(db)
    commit(app, 5)
    stage.converge(db, [p, r])
    filled = fill(disk)
    app.execute("BEGIN")
    commit(app)
    app.executemany("INSERT INTO t VALUES(?,?)", ((i, stage.rng.randbytes(3500)) for i in range(20)))
    app.execute("COMMIT")
    until(lambda: f"the replica's disk is full; {r.explain(db)}",
          lambda: "No space" in r.db(db).get("detail", ""))
    need(r.db(db)["applied"] == 5, f"the test itself is wrong: applied {r.db(db)['applied']} on a full disk")
    r.kill9()
    p.kill9()
    os.unlink(filled)

    def comes_back(what):
        r.start()
        until(lambda: f"{what}: the replica says what it has; {r.explain(db)}",
              lambda: r.db(db).get("applied") is not None)
        need(r.db(db)["applied"] == 5, f"{what}: applied {r.db(db)['applied']}, it has 5 commits")
        need(rows(r.path(db)) == (5, 0), f"{what}: the replica shows {rows(r.path(db))}")
    comes_back("after the kill")
    r.stop()
    need(sql(r.path(db), "SELECT n, (SELECT count(*) FROM t) FROM c") == "5|0", "the replica's rows differ")
    need(not os.path.exists(r.path(db) + "-wal"), "the test itself is wrong: the reader left the WAL")
    comes_back("after the WAL was removed")
    p.start()
    r.wait_streaming(db)
    commit(app)
    txid = stage.converge(db, [p, r], timeout=15)
    need(txid == 7, f"7 commits, txid {txid}")
    need(rows(r.path(db)) == rows(db) == (7, 20), f"the replica has {rows(r.path(db))}, the primary {rows(db)}")
    app.close()
    stage.finish(db, [p, r])


def ends_clearly(node, said=0):
    """By itself, with exit code 1 and one line about the full disk after what it had said before. How
    much it has said now."""
    node.expected_down = True
    code, now = node.wait(15), node.stderr()
    need(code == 1, f"{node.name} on a full disk ended with {code}: {now[said:]!r}")
    lines = [line for line in now[said:].splitlines() if line and not re.match(ANNOUNCED, line)]
    need(len(lines) == 1, f"{node.name}: {len(lines)} lines instead of one: {lines}")
    need(lines[0].startswith("walwire: ") and node.state_dir in lines[0] and "No space left" in lines[0],
         f"{node.name}: not clear: {lines[0]!r}")
    return len(now)


@scenario(60)
def state_full(stage):
    """The disk of the state directory is full: primary and replica end with one clear line and never by
    a signal; with space again the primary is followed."""
    db, app = create(stage)
    filled = fill(small_disk(stage, "primary.state", 2))
    p = stage.primary(db)
    ends_clearly(p)
    os.unlink(filled)
    p.start().wait_attached(db)

    disk = small_disk(stage, "replica.state", 2)
    filled = fill(disk)
    r = stage.replica(p, listen=False)
    said = ends_clearly(r)
    os.unlink(filled)
    with open(os.path.join(disk, "app.db.positions"), "wb") as f:
        f.write(bytes(262144))  # this one has its space: the next file has none
    filled = fill(disk)
    ends_clearly(r.start(), said)
    roomy = stage.replica(p, "roomy", listen=False).wait_streaming(db)
    commit(app)
    app.close()
    stage.finish(db, [p, roomy])
