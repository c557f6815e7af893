"""following.py - the ordinary life: a replica follows, whatever the application does."""
import os
import re
import signal
import time

from common import (Fail, Skip, env_number, identical, links, need, read_n, run, scenario, sql, until)

TAIL_LINE = re.compile(r"^(\S+) txid=(\d+) chain=([0-9a-f]{16}) frames=(\d+|\?) db_pages=(\d+)( |$)")


@scenario(60)
def basic(stage):
    """A stock sqlite3 program writes; a replica and a replica of that replica hold the same rows,
    refuse local writes, and are the same bytes in the end."""
    db = stage.path("app.db")
    sql(db, "PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT);"
            "WITH RECURSIVE k(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM k WHERE i<5000)"
            " INSERT INTO t SELECT i, hex(randomblob(20)) FROM k;")
    app = stage.keeper(db)
    p = stage.primary(db).wait_attached(db)
    a = stage.replica(p, "a")
    b = stage.replica(a, "b")
    a.wait_streaming(db)
    b.wait_streaming(db)
    for i in range(300):
        app.popen.stdin.write(
            f"INSERT INTO t(v) VALUES(hex(randomblob({i})));"
            f"UPDATE t SET v='changed' WHERE id={i * 7 % 5000};\n"
            f"BEGIN; DELETE FROM t WHERE id={i * 13 % 5000}; INSERT INTO t(v) VALUES('two'); COMMIT;\n"
            .encode())
        app.popen.stdin.flush()
    app.popen.stdin.write(b"CREATE INDEX t_v ON t(v); CREATE TABLE last(x);\n")
    app.popen.stdin.flush()
    for node in (a, b):
        until(f"the last table on {node.name}",
              lambda: sql(node.path(db), "SELECT count(*) FROM sqlite_schema WHERE name='last'") == "1")
        need(sql(node.path(db), ".sha3sum") == sql(db, ".sha3sum"), f"{node.name}: rows differ")
        locked = run(["sqlite3", node.path(db), "INSERT INTO t(v) VALUES('mine')"], check=False)
        need(locked.returncode and "locked" in locked.stderr,
             f"{node.name}: a local write was let through: {locked.stderr}")
    r = run([p.argv[0], "wait", "--db", "app.db", "--timeout", "10", "--state-dir", p.state_dir], check=False)
    need(r.returncode == 0, f"wait on the primary: exit {r.returncode}: {r.stderr}")
    txid = p.db(db)["txid"]
    r = run([p.argv[0], "wait", "--db", "app.db", "--txid", str(txid), "--level", "applied", "--timeout",
             "10", "--state-dir", b.state_dir], check=False)
    need(r.returncode == 0, f"wait on the second replica: exit {r.returncode}: {r.stderr}")
    r = run([p.argv[0], "wait", "--db", "app.db", "--txid", str(txid + 5), "--level", "applied",
             "--timeout", "0.3", "--state-dir", b.state_dir], check=False)
    need(r.returncode == 1, f"wait for what is not there yet: exit {r.returncode}")
    app.popen.stdin.close()
    app.finish()
    for node in (b, a, p):
        node.stop()
    identical([db, a.path(db), b.path(db)])


@scenario(60)
def early(stage):
    """Replicas started before their sources have anything follow within seconds of its appearance."""
    db, port = stage.path("app.db"), stage.port()
    a = stage.replica(f"127.0.0.1:{port}", "a")
    b = stage.replica(a, "b")
    time.sleep(0.5)
    p = stage.primary(db, port=port)
    time.sleep(0.5)
    stage.create()
    p.wait_attached(db, timeout=4)
    a.wait_streaming(db, timeout=4)
    b.wait_streaming(db, timeout=4)
    stage.writer(db, commits=50).finish()
    stage.finish(db, [p, a, b], keep=False)


@scenario(90)
def tap_rests(stage):
    """While commits are dense the tap's programs are out of the application's way; they come back
    when it pauses, stay while nothing happens, and still wake: every commit arrives."""
    db, script = stage.path("app.db"), stage.path("dense.sql")
    sql(db, "PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT);")
    with open(script, "w") as f:
        f.write("PRAGMA synchronous=OFF;\n" + "INSERT INTO t(v) VALUES('dense');\n" * 150000)
    p = stage.primary(db).wait_attached(db)
    a = stage.replica(p, "a").wait_streaming(db)
    if not links(p.pid):
        raise Skip("no BPF here")
    with open(script) as f:
        app = stage.spawn("app", ["sqlite3", db], stdin=f)
        until("the programs are taken out", lambda: not links(p.pid), timeout=30)
        app.finish()
    until("the programs are back", lambda: links(p.pid), timeout=30)
    stayed = links(p.pid)
    for _ in range(15):
        time.sleep(0.2)
        need(links(p.pid) == stayed, "the programs were moved while nothing happened")
    before = p.counter(db, "tap_wakeups")
    sql(db, "INSERT INTO t(v) VALUES('last')")
    until("a wakeup", lambda: p.counter(db, "tap_wakeups") > before)
    until("the last row", lambda: sql(a.path(db), "SELECT count(*) FROM t") == "150001", timeout=30)
    for node in (a, p):
        node.stop()
    identical([db, a.path(db)])


def read_tail(tail):
    """{txid: (chain, frames, db_pages)} in a tail's output; each line whole, each txid the next."""
    seen, last = {}, None
    with open(tail.out) as f:
        for line in f.read().splitlines():
            if re.match(r"\S+ seed (begins|ends) ", line):
                continue
            m = TAIL_LINE.match(line)
            need(m, f"{tail.name} prints {line!r}")
            txid = int(m[2])
            need(last is None or txid == last + 1,
                 f"{tail.name}: txid {txid} follows {last}; it said {tail.stderr()!r}")
            seen[txid], last = (m[3], m[4], m[5]), txid
    return seen


@scenario(90)
def counter(stage):
    """Every commit of several writers is one line of tail on every node, none skipped, none extra,
    the same chain everywhere, although the primary is stopped for moments."""
    db = stage.create()
    stage.keeper(db)
    ring = ["--ring-bytes", "512M"]  # a tail that is lapped would miss commits, and say so
    p = stage.primary(db, args=ring).wait_attached(db)
    a = stage.replica(p, "a", args=ring)
    b = stage.replica(a, "b", args=ring)
    nodes = [p, a, b]
    for node in nodes[1:]:
        node.wait_streaming(db)
    tails = [stage.spawn(f"tail-{n.name}", [n.argv[0], "tail", "--db", "app.db", "--state-dir", n.state_dir])
             for n in nodes]

    def all_see():
        sql(db, "BEGIN IMMEDIATE; UPDATE c SET n=n+1, sum=sum+n+1; INSERT INTO log SELECT n,'probe','' FROM c;"
                " COMMIT")
        time.sleep(0.1)
        return all(os.path.getsize(t.out) for t in tails)
    until("tail prints on every node", all_see, every=0.1)
    txid, n = stage.converge(db, nodes), read_n(db)
    modes = "all,-vacuum,-psow"  # what is left commits exactly when it counts
    writers = [stage.writer(db, f"w{i}", seconds=8, modes=modes) for i in range(2)]
    stage.stutter([p], writers, 8)
    commits = sum(w.finish()["commits"] for w in writers)
    end_txid, end_n = stage.converge(db, nodes), read_n(db)
    need(end_n - n == commits, f"the counter moved by {end_n - n}, the writers say {commits}")
    need(end_txid - txid == commits, f"{commits} commits, but txid moved by {end_txid - txid}")
    last = p.db(db)
    seen = [None] * 3

    def complete():
        time.sleep(0.1)  # lines are whole again
        for i, t in enumerate(tails):
            seen[i] = read_tail(t)
        return all(end_txid in s for s in seen)
    until("tail has printed the last commit everywhere", complete)
    for node, s in zip(nodes[1:], seen[1:]):
        wrong = [x for x in s if x in seen[0] and s[x] != seen[0][x] and "?" not in s[x] + seen[0][x]]
        need(not wrong, f"tail on {node.name} differs from the primary's at txid {wrong[:3]}")
        need(all(x in s for x in range(txid, end_txid + 1)), f"tail on {node.name} began too late")
    need(int(seen[0][end_txid][0], 16) == int(last["chain"], 16), "tail's last chain is not status's")
    for t in tails:
        t.expected_down = True
        t.signal(signal.SIGTERM)
        need(t.wait(10) == 0, f"{t.name} ends with {t.popen.returncode} at SIGTERM")
    stage.note(f"{commits} commits")
    stage.finish(db, nodes)


@scenario(120)
def matrix(stage):
    """Page sizes 512, 4096, 65536; synchronous OFF, NORMAL, FULL; wal_autocheckpoint 0, 1, 1000: each
    with each, nine databases to a primary."""
    total = 0
    for page_size in (512, 4096, 65536):
        where = stage.subdir(str(page_size))
        dbs = {}
        for sync in ("OFF", "NORMAL", "FULL"):
            for autocheckpoint in (0, 1, 1000):
                name = f"{page_size}/{sync}-{autocheckpoint}.db"
                path = stage.create(name, page_size=page_size, auto_vacuum=stage.rng.randrange(3))
                dbs[path] = {"sync": sync, "autocheckpoint": autocheckpoint}
        ring = ["--ring-bytes", "8M"]
        p = stage.primary(*dbs, name=f"primary-{page_size}", args=ring).wait_attached(*dbs)
        r = stage.replica(p, f"replica-{page_size}", args=ring, listen=False,
                          data_dir=stage.subdir(where, "replica")).wait_streaming(*dbs)
        paths = list(dbs)
        stage.rng.shuffle(paths)
        for k in range(0, 9, 3):
            writers = [stage.writer(db, f"w-{page_size}-{k}-{i}", seconds=env_number("WALWIRE_MATRIX_S", 1.0),
                                    modes="small=100,medium=30,big=3,rollback=2,ddl=5,incvacuum=3,"
                                          "checkpoint=2", big_mb=2, **dbs[db])
                       for i, db in enumerate(paths[k:k + 3])]
            total += sum(w.finish()["commits"] for w in writers)
        try:
            stage.finish(paths, [p, r], keep=False)
        except Fail as e:
            raise Fail(f"page size {page_size}: {e}") from None
    stage.note(f"27 databases, {total} commits")


@scenario(120)
def app_restart(stage):
    """The application ends and comes back: before walwire attaches its WAL vanishes, while attached it
    stays; nothing is lost either way, and leaving WAL mode is refused while attached."""
    db = stage.create()
    stage.writer(db, "before", commits=200, modes="small=50,medium=5").finish()
    need(not os.path.exists(db + "-wal"), "the last close left a WAL although nobody was attached")
    idle = stage.create("idle.db")
    p = stage.primary(db, idle).wait_attached(db, idle)
    r = stage.replica(p, "replica").wait_streaming(db, idle)
    txid, n = stage.converge(db, [p, r]), read_n(db)
    for i in range(4):
        w = stage.writer(db, f"again{i}", commits=10000 if i == 2 else 250, modes="small=50,medium=5,big=1")
        if i == 2:
            time.sleep(0.5)
            w.kill9()
        else:
            w.finish()
        need(os.path.exists(db + "-wal"), "the WAL vanished although walwire is attached")
        end_txid, end_n = stage.converge(db, [p, r]), read_n(db)
        need(end_n > n and end_txid - txid == end_n - n,
             f"round {i}: {end_n - n} commits, but txid moved by {end_txid - txid}")
        txid, n = end_txid, end_n
        mode = sql(db, "PRAGMA busy_timeout=100; PRAGMA journal_mode=DELETE;", check=False).splitlines()[-1]
        need(mode != "delete" and sql(db, "PRAGMA journal_mode") == "wal",
             f"the application left WAL mode while walwire was attached ({mode})")
    stage.writer(idle, "late", commits=100).finish()
    stage.finish([db, idle], [p, r], keep=False)
