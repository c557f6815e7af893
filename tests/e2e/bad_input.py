"""bad_input.py - whatever is wrong is said in one line with its remedy, and stops nothing that runs."""
import os
import random
import re
import shutil
import socket
import sqlite3
import subprocess
import time

from common import (NOBODY, SANITIZED, SLOWER, TOOLS, WALWIRE, Fail, Skip, need, read_n, run, scenario, sql,
                    until)

CHECKS = []


def check(f):
    CHECKS.append(f)
    return f


class Scene:
    """A primary, a replica and an application that run through all checks and must not notice them."""

    def __init__(self, stage):
        self.stage = stage
        self.db = stage.create("good/app.db")
        self.p = stage.primary(self.db).wait_attached(self.db)
        self.r = stage.replica(self.p).wait_streaming(self.db)
        self.count = 0

    def name(self, word):
        self.count += 1
        return f"{word}-{self.count}"

    def argv(self, verb, *words, state=None):
        state = state or self.stage.subdir(self.name("state"))
        return [WALWIRE, verb, *map(str, words), "--state-dir", state]

    def listen(self):
        return ["--listen", f"127.0.0.1:{self.stage.port()}"]

    def still_runs(self):
        """The good ones pass a commit on within seconds."""
        sql(self.db, "BEGIN IMMEDIATE; UPDATE c SET n=n+1, sum=sum+n+1; INSERT INTO log SELECT n,'','' FROM c;"
                     " COMMIT")
        n = read_n(self.db)
        for node in (self.p, self.r):
            need(node.alive(), f"{node.name}, which had nothing to do with it, ended: {node.stderr()[-300:]}")
        until("the running replica still follows", lambda: (read_n(self.r.path(self.db)) or 0) >= n, 10)


ANNOUNCED = r"walwire: (attached to '|primary at |replica of |no eBPF )"


def clear_line(text, *words, announced=ANNOUNCED):
    """Exactly one line that is no mere announcement, ours, with what can be done, naming the thing."""
    lines = [x for x in text.splitlines() if x and not re.match(announced, x)]
    need(len(lines) == 1, f"{len(lines)} lines instead of one: {text[:600]!r}")
    line = lines[0]
    need(line.startswith("walwire: "), f"does not begin with 'walwire: ': {line!r}")
    need(re.search(r"; \S.*\S|must be|needs", line), f"no remedy in {line!r}")
    for w in words:
        need(re.search(w, line), f"{w!r} is not in {line!r}")
    return line


def refused(argv, *words, codes=(1,), timeout=15, **options):
    """It ends by itself, with such an exit code and one clear line."""
    try:
        r = subprocess.run(argv, capture_output=True, text=True, timeout=timeout * SLOWER,
                           stdin=subprocess.DEVNULL, **options)
    except subprocess.TimeoutExpired as e:
        raise Fail(f"does not end; it said {(e.stderr or b'').decode()[:300]!r}") from None
    need(r.returncode in codes, f"exit {r.returncode}, not {codes}: {r.stderr[:300]!r}")
    need(r.stdout == "", f"a result on stdout: {r.stdout[:200]!r}")
    return clear_line(r.stderr, *words)


# -- words on the command line --

@check
def usage(s):
    """A wrong word is named, exit code 2."""
    for argv, word in (([WALWIRE], ""), ([WALWIRE, "primry"], "primry"), ([WALWIRE, "primary"], ""),
                       ([WALWIRE, "replica", "127.0.0.1:1"], ""),
                       ([WALWIRE, "primary", s.db, "--lissten", "127.0.0.1:1"], "--lissten"),
                       ([WALWIRE, "primary", s.db, "--ring-bytes", "64Q"], "64Q"),
                       ([WALWIRE, "primary", s.db, "--ring-bytes", "-1"], "-1|ring-bytes"),
                       ([WALWIRE, "primary", s.db, "--ring-bytes"], "ring-bytes"),
                       ([WALWIRE, "primary", s.db, "--idle", "lazy"], "lazy"),
                       ([WALWIRE, "primary", s.db, "--tap", "beer"], "beer"),
                       ([WALWIRE, "wait", "--txid", "many"], "many"),
                       ([WALWIRE, "wait", "--level", "loved"], "loved"),
                       ([WALWIRE, "status", "--jason"], "--jason")):
        refused(argv, word, codes=(2,))
    for verb in ("primary", "replica", "status", "wait", "tail"):
        r = run([WALWIRE, verb, "--help"])
        need("usage: walwire " + verb in r.stdout and not r.stderr, f"{verb} --help: {r.stdout[:100]!r}")


@check
def addresses(s):
    """Not an address, one that does not resolve, one off this host, one in use."""
    data = s.stage.subdir("addresses")
    for bad in ("nonsense", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0x10", "127.0.0.1:99999", ":::::"):
        refused(s.argv("replica", bad, data), re.escape(bad), codes=(1, 2))
        refused(s.argv("primary", s.stage.path("none.db"), "--listen", bad), re.escape(bad), codes=(1, 2))
    refused(s.argv("replica", "no-such-host.invalid:7077", data), "no-such-host.invalid", timeout=40)
    refused(s.argv("primary", s.stage.path("none.db"), "--listen", "no-such-host.invalid:7077"),
            "no-such-host.invalid", timeout=40)
    refused(s.argv("primary", s.stage.path("none.db"), "--listen", f"0.0.0.0:{s.stage.port()}"), "--insecure",
            codes=(1, 2))
    refused(s.argv("replica", s.p.addr, data, "--listen", f"0.0.0.0:{s.stage.port()}"), "--insecure",
            codes=(1, 2))
    refused(s.argv("replica", "192.0.2.1:7077", data), "--insecure", codes=(1, 2))
    other = s.stage.create("in-use/other.db")
    refused(s.argv("primary", other, "--listen", s.p.addr), "listen")
    refused(s.argv("replica", s.p.addr, data, "--listen", s.p.addr), "listen")


@check
def nobody_there(s):
    """status, wait and tail without a daemon."""
    for verb in ("status", "wait", "tail"):
        refused(s.argv(verb))
    refused(s.argv("status", state=s.stage.path("no-such-directory")))
    for verb in ("wait", "tail"):
        refused(s.argv(verb, "--db", "unknown.db", state=s.p.state_dir), "unknown.db")


# -- databases --

@check
def not_a_database(s):
    """Text, a truncated header, a directory, a device, a name that is too long."""
    text = s.stage.path("text.db")
    with open(text, "w") as f:
        f.write("these are no pages\n" * 500)
    short = s.stage.path("short.db")
    with open(short, "wb") as f:
        f.write(b"SQLite format 3\0" + b"\0" * 10)
    for path in (text, short, s.stage.dir, "/dev/null"):
        refused(s.argv("primary", path, *s.listen()), re.escape(os.path.basename(path)), codes=(1, 2))
    refused(s.argv("primary", s.stage.path("x" * 300), *s.listen()), codes=(1, 2))
    with open(text) as f:
        need(f.read() == "these are no pages\n" * 500, "the file that is no database was changed")


@check
def rollback_journal(s):
    """A database in rollback-journal mode, also with a hot journal beside it that is not ours to use."""
    db = s.stage.path("delete.db")
    sql(db, "CREATE TABLE t(x); INSERT INTO t VALUES(1)")
    refused(s.argv("primary", db, *s.listen()), "delete.db", "journal_mode=WAL")
    app = sqlite3.connect(db, isolation_level=None)
    app.execute("BEGIN IMMEDIATE")
    app.execute("INSERT INTO t VALUES(2)")
    refused(s.argv("primary", db, *s.listen()), "delete.db", "journal_mode=WAL")
    app.execute("COMMIT")
    app.close()
    need(sql(db, "SELECT count(*) FROM t") == "2", "the application's transaction was lost")


@check
def exclusive_mode(s):
    """An application that keeps its database in exclusive locking mode goes on; walwire says so."""
    db = s.stage.create("exclusive.db")
    app = s.stage.keeper(db, s.name("exclusive"),
                         "PRAGMA locking_mode=EXCLUSIVE; UPDATE accounts SET balance=balance;")
    refused(s.argv("primary", db, *s.listen()), "exclusive.db", "locking_mode")
    app.popen.stdin.write(b"UPDATE accounts SET balance=balance+1 WHERE id=1;\n")
    app.popen.stdin.close()
    app.finish()
    need(sql(db, "SELECT balance FROM accounts WHERE id=1") == "1001", "the application was disturbed")


@check
def missing_file(s):
    """A database that does not exist yet is waited for, in one line; it is attached when it appears,
    and every commit from then on arrives."""
    db = s.stage.path("later", "later.db")
    os.makedirs(os.path.dirname(db))
    p = s.stage.primary(db, name=s.name("waiting"))
    until(lambda: f"a line about the missing file; said {p.stderr()!r}", lambda: "later.db" in p.stderr())
    until("state waiting", lambda: p.db(db).get("state") == "waiting")
    r = s.stage.replica(p, s.name("early"), listen=False)
    time.sleep(1.5)
    clear_line(p.stderr(), "later.db", "waiting")
    need(p.alive() and r.alive(), "somebody gave up waiting")
    s.stage.create("later/later.db")
    p.wait_attached(db)
    s.stage.writer(db, s.name("w"), commits=100).finish()
    until(lambda: f"the replica has it; {r.explain(db)}", lambda: read_n(r.path(db)) == 100, 30)
    s.stage.finish(db, [p, r], keep=False)


@check
def one_bad_among_good(s):
    """A bad database beside a good one: it is named, and the exit is not a success."""
    good, bad = s.stage.create("pair/good.db"), s.stage.path("pair/bad.db")
    with open(bad, "w") as f:
        f.write("no pages\n" * 1000)
    refused(s.argv("primary", good, bad, *s.listen()), "bad.db")
    os.makedirs(s.stage.path("pair/2"))
    twin = s.stage.create("pair/2/good.db")
    refused(s.argv("primary", good, twin, *s.listen()), "good.db", codes=(1, 2))
    refused(s.argv("primary", good, good, *s.listen()), "good.db", codes=(1, 2))


@check
def two_primaries(s):
    """A second primary for a database that has one, with its own state or with the same."""
    refused(s.argv("primary", s.db, *s.listen()), "app.db")
    refused(s.argv("primary", s.db, *s.listen(), state=s.p.state_dir))
    other = s.stage.create("two/other.db")
    refused(s.argv("primary", other, *s.listen(), state=s.p.state_dir))


# -- places --

def as_nobody(s, name):
    """A copy of the program that nobody can run, and a directory of its own."""
    if os.geteuid() or not shutil.which("setpriv"):
        raise Skip("not root, or no setpriv")
    where = s.stage.subdir(name)
    program = s.stage.path(name, "walwire")
    shutil.copy(WALWIRE, program)
    os.chmod(program, 0o755)
    return where, program


@check
def unreadable_places(s):
    """As nobody: an unreadable database, an unwritable state directory, an unwritable replica
    directory; as root: a file where a directory should be."""
    where, program = as_nobody(s, "places")
    mine = s.stage.subdir("places", "mine")
    os.chown(mine, 65534, 65534)
    secret = s.stage.create("places/secret.db")
    os.chmod(secret, 0o600)
    refused([*NOBODY, program, "primary", secret, *s.listen(), "--state-dir", mine], "secret.db")
    refused([*NOBODY, program, "primary", s.db, *s.listen(), "--state-dir", where + "/no"], "places/no")
    refused([*NOBODY, program, "replica", s.p.addr, where + "/copies", "--state-dir", mine], "places/copies")
    file = s.stage.path("places", "file")
    with open(file, "w"):
        pass
    refused(s.argv("replica", s.p.addr, file), "places/file")
    refused(s.argv("replica", s.p.addr, s.stage.subdir("places", "data"), state=file), "places/file")
    refused(s.argv("primary", secret, *s.listen(), state=file), "places/file")


@check
def too_little_memory(s):
    """A ring larger than the machine's memory, and one too small to be useful."""
    with open("/proc/meminfo") as f:
        total_gb = int(f.readline().split()[1]) >> 20
    other = s.stage.create("memory/other.db")
    for size in (f"{4 * total_gb + 16}G", "1000000G", "0", "5000000"):
        refused(s.argv("primary", other, *s.listen(), "--ring-bytes", size), "ring", codes=(1, 2))
        refused(s.argv("replica", s.p.addr, s.stage.subdir("memory", "data"), "--ring-bytes", size), "ring",
                codes=(1, 2))
    refused(s.argv("primary", other, *s.listen(), "--ring-bytes", "1"), "ring", codes=(1, 2))
    if not SANITIZED:
        refused(["prlimit", f"--as={256 << 20}",
                 *s.argv("primary", other, *s.listen(), "--ring-bytes", "256M")], "ring|memory")


@check
def no_bpf(s):
    """Without the right to load BPF programs it naps, says so in one line, and follows all the same."""
    where, program = as_nobody(s, "nobpf")
    db = s.stage.create("nobpf/db/app.db")
    for root, dirs, files in os.walk(where):
        for x in [root] + [os.path.join(root, f) for f in files]:
            os.chown(x, 65534, 65534)
    state = s.stage.subdir("nobpf.state")
    os.chown(state, 65534, 65534)
    p = s.stage.primary(db, name="nobpf", program=program,
                        prefix=["prlimit", f"--memlock={8 << 20}", *NOBODY])
    p.wait_attached(db)
    r = s.stage.replica(p, s.name("of-nobody"), listen=False).wait_streaming(db)
    w = s.stage.spawn(s.name("w"), [*NOBODY, os.path.join(s_tool(s, "writer"), "writer"), db, "--seconds", "2",
                                    "--modes", "small=50,medium=5,checkpoint=1"])
    w.finish()
    clear_line(p.stderr(), "BPF", "nap", announced=ANNOUNCED.replace("|no eBPF ", ""))
    need("none" in (p.status() or {}).get("tap", ""), f"status says tap {p.status().get('tap')!r}")
    s.stage.finish(db, [p, r], keep=False)


def s_tool(s, name):
    where = s.stage.subdir("tools")
    shutil.copy(os.path.join(TOOLS, name), where)
    os.chmod(os.path.join(where, name), 0o755)
    return where


# -- replica directories --

def content(path):
    with open(path, "rb") as f:
        return f.read()


@check
def foreign_files(s):
    """A replica directory with another database under that name, or with something else: refused,
    and not a byte of it changed."""
    foreign = s.stage.subdir("foreign-db")
    sql(foreign + "/app.db", "PRAGMA journal_mode=WAL; CREATE TABLE mine(x); INSERT INTO mine VALUES('dear')")
    text = s.stage.subdir("foreign-text")
    with open(text + "/app.db", "w") as f:
        f.write("letters\n" * 2000)
    for where in (foreign, text):
        before = content(where + "/app.db")
        refused(s.argv("replica", s.p.addr, where), "app.db")
        need(content(where + "/app.db") == before, "the foreign file was changed")
    need(sql(foreign + "/app.db", "SELECT x FROM mine") == "dear", "the foreign database lost its row")


@check
def written_to(s):
    """A replica's file that somebody wrote to while the replica was down is not overwritten unasked."""
    r = s.stage.replica(s.p, s.name("written"), listen=False).wait_streaming(s.db)
    s.stage.converge(s.db, [s.p, r])
    r.stop()
    sql(r.path(s.db), "CREATE TABLE notes(x); INSERT INTO notes VALUES('local')")
    refused(r.argv, "app.db")
    need(sql(r.path(s.db), "SELECT x FROM notes") == "local", "what somebody wrote was lost")


@check
def shared_directory(s):
    """Two replicas for one directory: the second is refused, with its own state or with the same."""
    refused(s.argv("replica", s.p.addr, s.r.dir))
    refused(s.argv("replica", s.p.addr, s.stage.subdir("elsewhere"), state=s.r.state_dir))


@check
def own_directory(s):
    """A replica beside the primary's own database would write over it: refused."""
    before = read_n(s.db)
    refused(s.argv("replica", s.p.addr, os.path.dirname(s.db)), "app.db")
    need(read_n(s.db) >= before, "the primary's database was changed")


# -- peers --

def recorded_hello(s):
    """What a replica says first, taken down by a listener that says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10 * SLOWER)
        r = s.stage.replica(f"127.0.0.1:{listener.getsockname()[1]}", s.name("talks"), listen=False)
        try:
            peer, _ = listener.accept()
            peer.settimeout(2 * SLOWER)
            data = peer.recv(4096)
            peer.close()
        except socket.timeout:
            data = b""
        r.expected_down = True
        r.popen.kill()
        r.popen.wait()
    need(data, "a replica says nothing to its source within seconds")
    return data


def say(port, data, wait=0.05):
    """Connect, say it, hang up."""
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as c:
            c.sendall(data)
            c.settimeout(wait)
            c.recv(4096)
    except OSError:
        pass


@check
def garbage_at_the_port(s):
    """Other protocols, noise, truncated, oversized, doubled and damaged first messages at the port of a
    primary and of a replica: dropped and counted."""
    rng = random.Random(s.stage.number())
    hello = recorded_hello(s)
    for node in (s.p, s.r):
        lines = len(node.stderr().splitlines())
        bad = node.counter(s.db, "bad_messages")
        words = [b"", b"\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01" + b"\0" * 200,
                 b"\0" * 4096, b"\xff" * 4096, rng.randbytes(100000), hello * 3, hello + b"\xff" * 70000,
                 hello + rng.randbytes(640)]
        words += [hello[:k] for k in range(1, len(hello), max(1, len(hello) // 40))]
        for _ in range(60):
            i = rng.randrange(len(hello))
            words.append(hello[:i] + bytes([hello[i] ^ 1 << rng.randrange(8)]) + hello[i + 1:])
        for k in range(8, 24):  # lengths, versions and kinds, whatever they are
            words.append(hello[:k] + b"\xff\xff\xff\xff" + hello[k + 4:])
        for word in words:
            say(node.port, word)
        need(node.alive(), f"{node.name} ended: {node.stderr()[-300:]}")
        now = node.counter(s.db, "bad_messages")
        status = node.status()
        need(status, f"{node.name} no longer answers")
        if bad is not None and now is not None:
            s.stage.note(f"{node.name}: {len(words)} bad messages sent, {now - bad} counted, "
                         f"{len(node.stderr().splitlines()) - lines} lines")
        need(len(node.stderr().splitlines()) - lines <= 30, f"{node.name} floods its log")


@check
def half_open(s):
    """Peers that connect and say nothing, or half of it, keep no one else out."""
    hello = recorded_hello(s)
    held = []
    for i in range(40):
        c = socket.create_connection(("127.0.0.1", s.p.port), 5)
        c.sendall(hello[:i * len(hello) // 40])
        held.append(c)
    r = s.stage.replica(s.p, s.name("late"), listen=False).wait_streaming(s.db, timeout=15)
    r.stop()
    for c in held:
        c.close()


@check
def garbage_source(s):
    """A replica whose source is not walwire says so once and applies nothing."""
    import threading
    for what in (b"HTTP/1.1 400 Bad Request\r\n\r\n" * 20, b"\0" * 4096, os.urandom(4096)):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            def serve():
                while True:
                    try:
                        c, _ = listener.accept()
                        c.sendall(what)
                        time.sleep(0.05)
                        c.close()
                    except OSError:
                        return
            threading.Thread(target=serve, daemon=True).start()
            data = s.stage.subdir(s.name("from-garbage"))
            r = s.stage.replica(f"127.0.0.1:{listener.getsockname()[1]}", s.name("misled"), listen=False,
                                data_dir=data)
            r.expected_down = True
            until(lambda: f"a line about a source that is not walwire; it said {r.stderr()!r}",
                  lambda: "walwire: " in r.stderr(), 10)
            time.sleep(2)
            clear_line(r.stderr(), "127.0.0.1")
            need(r.popen.poll() in (None, 1), f"ended with {r.popen.poll()}")
            need(not os.path.exists(data + "/app.db"), "a file came of garbage")
            if r.alive():
                r.stop()
            listener.shutdown(socket.SHUT_RDWR)


@check
def nobody_listens(s):
    """A source that is not there yet is waited for, in one line; when it comes it is followed."""
    db = s.stage.create("absent/absent.db")
    port = s.stage.port()
    r = s.stage.replica(f"127.0.0.1:{port}", s.name("patient"), listen=False)
    time.sleep(2.5)
    need(r.alive(), f"a replica gives up when its source is away: {r.stderr()!r}")
    clear_line(r.stderr(), str(port))
    p = s.stage.primary(db, name=s.name("comes"), port=port)
    r.wait_streaming(db)
    r.stop()
    p.stop()


@scenario(600)
def bad_input(stage):
    """Everything that can be wrong about words, files, places and peers, one after the other, beside a
    primary and a replica that must not notice."""
    s = Scene(stage)
    failures, only = [], os.environ.get("WALWIRE_CHECK")
    for f in CHECKS:
        if only and f.__name__ not in only.split(","):
            continue
        try:
            f(s)
            s.still_runs()
        except Skip as e:
            stage.note(f"{f.__name__} skipped: {e}")
        except (Fail, OSError, sqlite3.Error) as e:
            failures.append(f"{f.__name__}: {e}")
    need(not failures, f"{len(failures)} of {len(CHECKS)} checks:\n      " + "\n      ".join(failures))
    need(not s.p.stderr().count("\n") > 40, "the primary's log grew without measure")
    stage.note(f"{len(CHECKS)} checks")
    stage.finish(s.db, [s.p, s.r], keep=False)
