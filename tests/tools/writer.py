#!/usr/bin/python3
"""writer.py - the same application as writer.c in another language, with the newest SQLite.

usage: writer.py DB [--seed N] [--seconds S] [--commits N] [--modes LIST] [--name NAME]
       writer.py DB --read [--seconds S]      a reader of the newest SQLite: n never goes back

Works beside other writers on a database that `writer --create` made. Needs apsw (tests/tools/pydeps).
LIST: small medium big rollback savepoint vacuum ddl checkpoint pragma reopen, or all; -WORD removes.
One JSON line at the end; SIGTERM ends it in good order."""
import argparse
import json
import os
import random
import signal
import sys
import time
import zlib

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, os.environ.get("BUILD", "build"), "pydeps"))
import apsw  # noqa: E402

MODES = {"small": 500, "medium": 100, "big": 3, "rollback": 2, "savepoint": 6, "vacuum": 1,
         "ddl": 8, "checkpoint": 12, "pragma": 8, "reopen": 6}
LOG_MAX, LOG_KEEP = 2000, 1000  # as in state.h
MAX_BYTES = 8 << 20
stopping = False


class Busy(Exception):
    """Somebody else has the database; start over."""


class Writer:
    def __init__(self, path, seed, name):
        self.path, self.name = path, name
        self.rng = random.Random(seed)
        self.n = 0
        self.counts = {"commits": 0, "busy": 0}
        self.open()

    def open(self):
        self.db = apsw.Connection(self.path, flags=apsw.SQLITE_OPEN_READWRITE)
        self.waiting_since = 0.0
        self.db.set_busy_handler(self.on_busy)

    def on_busy(self, times):
        if times == 0:
            self.waiting_since = time.monotonic()
        if stopping or time.monotonic() - self.waiting_since > 10:
            return False
        time.sleep(self.rng.uniform(20e-6, 1e-3))
        return True

    def run(self, sql, values=()):
        try:
            return list(self.db.execute(sql, values))
        except (apsw.BusyError, apsw.LockedError, apsw.ProtocolError) as e:
            raise Busy from e

    def value(self, sql):
        return self.run(sql)[0][0]

    def bump(self, kind):
        n, lo, size = self.run("UPDATE c SET n=n+1, sum=sum+n+1 RETURNING n, lo, bytes")[0]
        self.run("INSERT INTO log SELECT n, ?, ? FROM c", (self.name, kind))
        if n < self.n:
            sys.exit(f"writer {self.name}: the counter went backwards")
        if n - lo > LOG_MAX:
            self.run(f"DELETE FROM log WHERE n<{n - LOG_KEEP}; UPDATE c SET lo={n - LOG_KEEP}")
        if size > MAX_BYTES:
            self.run("DELETE FROM blobs WHERE id IN (SELECT id FROM blobs ORDER BY id"
                     " LIMIT (SELECT count(*)/2 FROM blobs))")
        return n

    def add_blobs(self, count, size_max):
        for _ in range(count):
            data = self.rng.randbytes(1 + self.rng.randrange(size_max))
            self.run("INSERT INTO blobs(ck, data) VALUES(?, ?)", (zlib.crc32(data), data))

    def transfer(self, times):
        for _ in range(times):
            a, b, amount = self.rng.randint(1, 100), self.rng.randint(1, 100), self.rng.randrange(50)
            self.run(f"UPDATE accounts SET balance=balance-{amount} WHERE id={a};"
                     f"UPDATE accounts SET balance=balance+{amount} WHERE id={b}")

    # -- what each counted transaction does before it counts --

    def small(self):
        self.transfer(self.rng.randrange(4) == 0)

    def medium(self):
        self.add_blobs(self.rng.randint(1, 40), 3000)
        self.transfer(self.rng.randint(1, 10))
        at = self.value("SELECT coalesce(min(id),0) FROM blobs") + self.rng.randrange(400)
        self.run(f"DELETE FROM blobs WHERE id BETWEEN {at} AND {at + 9}")

    def big(self):
        self.run("PRAGMA cache_size=10")
        self.add_blobs(self.rng.randint(20, 40), 200 * 1024)

    def rollback(self):
        self.big()

    def savepoint(self):
        self.transfer(2)
        self.run("SAVEPOINT a")
        self.big()
        self.run("SAVEPOINT b")
        self.add_blobs(3, 50000)
        self.run(self.rng.choice(("ROLLBACK TO b", "ROLLBACK TO a; RELEASE a")))
        self.add_blobs(2, 2000)

    def ddl(self):
        k = self.value("SELECT n+1 FROM c")
        if self.value("SELECT count(*) FROM ddl") > 6:
            name = self.value("SELECT name FROM ddl ORDER BY random() LIMIT 1")
            self.run(f"DROP {'TABLE' if name[0] == 'd' else 'INDEX'} {name};"
                     f"DELETE FROM ddl WHERE name='{name}'")
        elif self.rng.randrange(2):
            self.run(f"CREATE INDEX i_{k} ON blobs(ck); INSERT INTO ddl VALUES('i_{k}', -1)")
        else:
            rows = self.rng.randrange(300)
            self.run(f"CREATE TABLE d_{k}(a INTEGER, b INTEGER);"
                     f"INSERT INTO ddl VALUES('d_{k}', {rows});"
                     "WITH RECURSIVE k(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM k WHERE i<300)"
                     f"INSERT INTO d_{k} SELECT i, i FROM k WHERE i<={rows}")

    def transaction(self, mode):
        self.run("BEGIN IMMEDIATE")
        getattr(self, mode)()
        if mode == "rollback":
            self.run("ROLLBACK")
        else:
            n = self.bump(mode)
            self.run("COMMIT")
            self.n = n
            self.counts["commits"] += 1
        self.run("PRAGMA cache_size=2000")

    # -- what is no counted transaction --

    def vacuum(self):
        if self.rng.randrange(3) == 0:
            self.run(f"PRAGMA auto_vacuum={self.rng.randrange(3)}")
        self.run("VACUUM")

    def checkpoint(self):
        kind = self.rng.choice((apsw.SQLITE_CHECKPOINT_PASSIVE, apsw.SQLITE_CHECKPOINT_FULL,
                                apsw.SQLITE_CHECKPOINT_RESTART, apsw.SQLITE_CHECKPOINT_TRUNCATE))
        self.db.set_busy_timeout(self.rng.randrange(300))
        try:
            self.db.wal_checkpoint(mode=kind)
        except (apsw.BusyError, apsw.LockedError):
            pass
        self.db.set_busy_handler(self.on_busy)

    def pragma(self):
        self.run("PRAGMA " + self.rng.choice((
            "wal_autocheckpoint=0", "wal_autocheckpoint=1", "wal_autocheckpoint=1000",
            "synchronous=OFF", "synchronous=NORMAL", "synchronous=FULL",
            "journal_size_limit=-1", "journal_size_limit=0", "mmap_size=4194304")))

    def reopen(self):
        self.db.close()
        self.open()

    def act(self, mode):
        try:
            if mode in ("vacuum", "checkpoint", "pragma", "reopen"):
                getattr(self, mode)()
            else:
                self.transaction(mode)
            self.counts[mode] = self.counts.get(mode, 0) + 1
        except Busy:
            self.counts["busy"] += 1
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")


def parse_modes(text):
    weight = {}
    for word in text.split(","):
        minus, word = word.startswith("-"), word.lstrip("-")
        word, _, number = word.partition("=")
        for mode in MODES if word == "all" else [word]:
            weight[mode] = 0 if minus else int(number or MODES[mode])
    return weight


def read(path, seconds):
    """Every state has an exact counter, a sum and a total that agree; integrity at the end."""
    db = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    db.set_busy_timeout(5000)
    until, last, reads = time.monotonic() + seconds, -1, 0
    while time.monotonic() < until and not stopping:
        n, total, lo, money, rows = db.execute(
            "SELECT n, sum, lo, (SELECT sum(balance) FROM accounts), (SELECT count(*) FROM log)"
            " FROM c").fetchone()
        if n < last or total != n * (n + 1) // 2 or money != 100000 or rows != n - lo + 1:
            sys.exit(f"reader.py: violation: after n={last}: {n} {total} {lo} {money} {rows}")
        last, reads = n, reads + 1
        time.sleep(0.001)
    if db.execute("PRAGMA integrity_check(3)").fetchone()[0] != "ok":
        sys.exit(f"reader.py: violation: integrity_check fails at n={last}")
    print(json.dumps({"sqlite": apsw.sqlite_lib_version(), "reads": reads, "n": last}))


def main():
    global stopping
    p = argparse.ArgumentParser()
    p.add_argument("db")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--seconds", type=float, default=1e9)
    p.add_argument("--commits", type=int, default=1 << 62)
    p.add_argument("--modes", default="all")
    p.add_argument("--name", default="py")
    p.add_argument("--read", action="store_true")
    args = p.parse_args()

    def on_signal(*_):
        global stopping
        stopping = True
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    if args.read:
        return read(args.db, args.seconds)
    w = Writer(args.db, args.seed, args.name)
    weight = parse_modes(args.modes)
    start = time.monotonic()
    while not stopping and time.monotonic() - start < args.seconds and \
            w.counts["commits"] < args.commits:
        w.act(w.rng.choices(list(weight), list(weight.values()))[0])
    w.db.close()
    print(json.dumps({"name": w.name, "sqlite": apsw.sqlite_lib_version(), "n": w.n,
                      "seconds": round(time.monotonic() - start, 3), **w.counts}))


if __name__ == "__main__":
    main()
