"""common.py - the stage every scenario plays on.

A Stage owns a temporary directory and every process started in it, and takes all of it away at the
end: by pid, whatever happened. Nothing waits without a limit. Programs are found in $BUILD (build):
the same scenarios run against a build with sanitizers. Python's standard library only."""
import ctypes
import json
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(ROOT, os.environ.get("BUILD", "build"))
WALWIRE = os.path.join(BUILD, "walwire")
TOOLS = os.path.join(BUILD, "tests", "tools")
WRITER_PY = os.path.join(ROOT, "tests", "tools", "writer.py")
SANITIZED = "address" in BUILD or "thread" in BUILD
SLOWER = 4 if SANITIZED else 1  # every limit is multiplied by this
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]

SCENARIOS = {}


class Fail(Exception):
    """What was promised did not happen."""


class Skip(Exception):
    """This machine lacks something; the reason is said."""


def scenario(limit):
    """Register a scenario that may last `limit` seconds."""
    def register(f):
        SCENARIOS[f.__name__] = (f, limit * SLOWER)
        return f
    return register


def need(condition, why):
    if not condition:
        raise Fail(why)


def until(what, condition, timeout=20, every=0.02):
    """Poll until condition() is true and return what it gave; Fail names what did not happen."""
    end = time.monotonic() + timeout * SLOWER
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Fail(f"not within {timeout * SLOWER} s: {what() if callable(what) else what}")
        time.sleep(every)


def links(pid):
    """The BPF links that a process holds: where its programs are attached."""
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fdinfo"):
        try:
            with open(f"/proc/{pid}/fdinfo/{fd}") as f:
                found |= set(re.findall(r"^link_id:\s*(\d+)", f.read(), re.M))
        except FileNotFoundError:
            continue
    return found


def env_number(name, default):
    return type(default)(os.environ.get(name) or default)


def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def tail(path, lines=8):
    try:
        with open(path, errors="replace") as f:
            return "".join("    | " + line for line in f.readlines()[-lines:])
    except OSError:
        return ""


class Proc:
    """One process: its output goes to files, `restart` begins it anew with the same arguments."""

    def __init__(self, stage, name, argv, stdin=None, env=None):
        self.stage, self.name, self.argv, self.stdin, self.env = stage, name, argv, stdin, env
        self.out, self.err = stage.path(name + ".out"), stage.path(name + ".err")
        self.popen = None
        self.expected_down = False
        self.start()

    def start(self):
        self.expected_down = False
        with open(self.out, "ab") as out, open(self.err, "ab") as err:
            self.popen = subprocess.Popen(self.argv, stdin=self.stdin or subprocess.DEVNULL, stdout=out,
                                          stderr=err, cwd=self.stage.dir, preexec_fn=die_with_parent,
                                          env={**os.environ, **(self.env or {})})
        return self

    @property
    def pid(self):
        return self.popen.pid

    def alive(self):
        return self.popen.poll() is None

    def wait(self, timeout):
        try:
            return self.popen.wait(timeout * SLOWER)
        except subprocess.TimeoutExpired:
            raise Fail(f"{self.name} still runs after {timeout * SLOWER} s") from None

    def finish(self, timeout=60):
        """Wait for its own end, which must be a good one; the JSON it printed last."""
        code = self.wait(timeout)
        need(code == 0, f"{self.name} ended with {code}: {self.stderr().strip()[-400:]}")
        return self.result()

    def stop(self, timeout=20):
        """SIGTERM; it must end with exit code 0."""
        need(self.alive(), f"{self.name} ended early with {self.popen.poll()}: {self.stderr()[-400:]}")
        self.expected_down = True
        self.popen.send_signal(signal.SIGTERM)
        code = self.wait(timeout)
        if code == -signal.SIGTERM and not isinstance(self, Node):
            return {}  # a tool just started, that had no time to ask for the signal
        need(code == 0, f"{self.name} ended with {code} at SIGTERM: {self.stderr().strip()[-400:]}")
        return self.result()

    def kill9(self):
        need(self.alive(), f"{self.name} ended early with {self.popen.poll()}: {self.stderr()[-400:]}")
        self.expected_down = True
        self.popen.kill()
        self.popen.wait()

    def signal(self, sig):
        self.popen.send_signal(sig)

    def result(self):
        with open(self.out, errors="replace") as f:
            lines = f.read().strip().splitlines()
        try:
            return json.loads(lines[-1])
        except (IndexError, ValueError):
            return {}

    def stderr(self):
        with open(self.err, errors="replace") as f:
            return f.read()

    def memory(self):
        """/proc/PID/status in bytes: VmHWM, RssAnon, RssFile, RssShmem."""
        with open(f"/proc/{self.pid}/status") as f:
            return {m[1]: int(m[2]) * 1024 for m in re.finditer(r"(\w+):\s+(\d+) kB", f.read())}


class Node(Proc):
    """A walwire daemon with its state directory."""

    def __init__(self, stage, name, argv, state_dir, port=None, data_dir=None, prefix=(), env=None):
        self.state_dir, self.port, self.dir = state_dir, port, data_dir
        super().__init__(stage, name, [*prefix, *argv, "--state-dir", state_dir], env=env)

    @property
    def addr(self):
        return f"127.0.0.1:{self.port}"

    def path(self, db):
        """A replica's copy of a database."""
        return os.path.join(self.dir, os.path.basename(db))

    def status(self):
        """status --json, or None while nobody answers."""
        try:
            r = subprocess.run([WALWIRE, "status", "--json", "--state-dir", self.state_dir],
                               capture_output=True, text=True, timeout=10 * SLOWER)
        except subprocess.TimeoutExpired:
            return None
        if r.returncode != 0:
            return None
        try:
            return json.loads(r.stdout)
        except ValueError:
            raise Fail(f"status --json of {self.name} is not JSON: {r.stdout[:200]!r}") from None

    def db(self, name):
        """This database's part of the status, or {}."""
        status = self.status() or {"databases": []}
        for d in status["databases"]:
            if d["name"] == os.path.basename(name):
                return d
        return {}

    def counter(self, db, name):
        return self.db(db).get("counters", {}).get(name)

    def wait_attached(self, *dbs, timeout=20):
        for db in dbs:
            until(lambda: f"{self.name} attached to {os.path.basename(db)}: {self.explain(db)}",
                  lambda: self.state(db) == "attached", timeout)
        return self

    def wait_streaming(self, *dbs, timeout=30):
        for db in dbs:
            until(lambda: f"{self.name} streaming {os.path.basename(db)}: {self.explain(db)}",
                  lambda: self.state(db) == "streaming", timeout)
        return self

    def state(self, db):
        need(self.alive(), f"{self.name} ended with {self.popen.poll()}: {self.stderr().strip()[-400:]}")
        return self.db(db).get("state")

    def explain(self, db):
        d = self.db(db)
        code = self.popen.poll()
        end = "" if code is None else f"process ended with {code}"
        return f"state {d.get('state')} {d.get('detail', '')} {end}".strip()


class Stage:
    def __init__(self, name, seed):
        self.name, self.seed = name, seed
        self.rng = random.Random(f"{seed}/{name}")
        self.dir = tempfile.mkdtemp(prefix=f"walwire-{name}-")
        os.chmod(self.dir, 0o755)
        self.procs, self.ports, self.mounts, self.notes = [], set(), [], []

    # -- places --

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    def subdir(self, *parts):
        os.makedirs(self.path(*parts), exist_ok=True)
        return self.path(*parts)

    def port(self):
        """A free loopback port, below the range that outgoing connections are given ports from."""
        while True:
            port = self.rng.randrange(20000, 30000)
            with socket.socket() as s:
                try:
                    s.bind(("127.0.0.1", port))
                except OSError:
                    continue
            if port not in self.ports:
                self.ports.add(port)
                return port

    def number(self):
        """A seed for somebody else, from ours."""
        return self.rng.randrange(1, 1 << 31)

    def note(self, text):
        self.notes.append(text)

    # -- processes --

    def add(self, proc):
        self.procs.append(proc)
        return proc

    def spawn(self, name, argv, **options):
        return self.add(Proc(self, name, [str(a) for a in argv], **options))

    def primary(self, *dbs, name="primary", args=(), port=None, prefix=(), program=WALWIRE, env=None):
        port = port or self.port()
        return self.add(Node(self, name, [program, "primary", *dbs, "--listen", f"127.0.0.1:{port}",
                                          *map(str, args)], self.subdir(name + ".state"), port,
                             prefix=prefix, env=env))

    def replica(self, source, name="replica", args=(), data_dir=None, listen=True, port=None,
                prefix=(), program=WALWIRE, env=None):
        """source is a Node or HOST:PORT."""
        data_dir = data_dir or self.subdir(name)
        port = port or (self.port() if listen else None)
        more = ["--listen", f"127.0.0.1:{port}"] if listen else []
        return self.add(Node(self, name, [program, "replica", getattr(source, "addr", source), data_dir,
                                          *more, *map(str, args)], self.subdir(name + ".state"), port,
                             data_dir, prefix=prefix, env=env))

    def tool(self, name, program, *args):
        return self.spawn(name, [os.path.join(TOOLS, program), *args])

    def create(self, name="app.db", **options):
        """A new database as tests/tools/state.h has it; its path."""
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        run([os.path.join(TOOLS, "writer"), path, "--create", *dashed(options)])
        return path

    def writer(self, db, name="w", **options):
        options.setdefault("seed", self.number())
        return self.tool(name, "writer", db, "--name", name, *dashed(options))

    def writer_py(self, db, name="py", **options):
        options.setdefault("seed", self.number())
        return self.spawn(name, ["/usr/bin/python3", WRITER_PY, db, "--name", name, *dashed(options)])

    def reader(self, db, name, **options):
        options.setdefault("seed", self.number())
        return self.tool(name, "reader", db, "--name", name, *dashed(options))

    def keeper(self, db, name="keeper", sql="SELECT 1 FROM sqlite_schema LIMIT 1;"):
        """A stock connection that has read once and stays open, doing nothing: the application is
        still there, so nobody's close is the last and no opening is a recovery."""
        k = self.spawn(name, ["sqlite3", db], stdin=subprocess.PIPE)
        ready = self.path(name + ".ready")
        k.popen.stdin.write(f".timeout 10000\n.bail on\n{sql}\n.shell touch '{ready}'\n".encode())
        k.popen.stdin.flush()
        until(f"{name} has {db} open", lambda: os.path.exists(ready) or not k.alive())
        need(k.alive(), f"{name}: {k.stderr()}")
        return k

    def stutter(self, nodes, writers, seconds):
        """While the writers work, nodes are stopped for moments: what happens then has to wait for
        them somewhere safe. At most `seconds`."""
        end = time.monotonic() + seconds * SLOWER
        while any(w.alive() for w in writers) and time.monotonic() < end:
            node = self.rng.choice(nodes)
            need(node.alive(), f"{node.name} ended with {node.popen.poll()}: {node.stderr()[-400:]}")
            node.signal(signal.SIGSTOP)
            time.sleep(self.rng.choice((0.01, 0.1, 0.4)))
            node.signal(signal.SIGCONT)
            time.sleep(self.rng.uniform(0, 0.3))

    # -- the end of a scenario --

    def converge(self, db, nodes, timeout=60):
        """All nodes have the same position, the same as the database's n, twice in a row."""
        last, seen = [None], [None]

        def equal():
            for node in nodes:
                need(node.alive(), f"{node.name} ended with {node.popen.poll()}: "
                                   f"{node.stderr().strip()[-400:]}")
            d = [node.db(db) for node in nodes]
            positions = {(x.get("txid"), x.get("chain")) for x in d}
            ns = [read_n(db)] + [read_n(node.path(db)) for node in nodes if node.dir]
            applied = [x.get("applied") for x, node in zip(d, nodes) if node.dir]
            seen[0] = f"positions {[(x.get('txid'), x.get('chain')) for x in d]} applied {applied} n {ns}"
            now = (positions, tuple(ns))
            good = len(positions) == 1 and None not in positions.copy().pop() and len(set(ns)) == 1 \
                and all(a == d[0].get("txid") for a in applied)
            again = good and last[0] == now
            last[0] = now if good else None
            return again
        until(lambda: f"all nodes at the same position ({seen[0]})", equal, timeout, every=0.15)
        return nodes[0].db(db)["txid"]

    def finish(self, dbs, nodes, timeout=60, keep=True):
        """Everything that was committed has arrived: same position, then, with all daemons ended in
        good order, the same bytes. `nodes`: the primary first, sources before those they feed."""
        dbs = [dbs] if isinstance(dbs, str) else dbs
        for db in dbs:
            self.converge(db, nodes, timeout)
        # SQLite 3.40 can write a WAL it cannot recover (WAL_PROTOCOL 6.3): somebody keeps it open.
        keepers = [self.keeper(db, f"keeper-{os.path.basename(db)}") for db in dbs] if keep else []
        for node in reversed(nodes):
            node.stop()
        for db in dbs:
            identical([db] + [n.path(db) for n in nodes if n.dir])
        for k in keepers:
            k.popen.kill()
            k.popen.wait()

    def complaints(self):
        """What a daemon's stderr must never hold, and daemons that ended unasked."""
        for p in self.procs:
            if not isinstance(p, Node):
                continue
            for line in p.stderr().splitlines():
                if re.search(r"Sanitizer|runtime error:|[Aa]ssertion", line):
                    return f"{p.name}: {line}"
            code = p.popen.poll()
            if code is not None and not p.expected_down:
                return f"{p.name} ended unasked with {code}"
        return None

    def tails(self):
        text = ""
        for p in self.procs:
            lines = tail(p.err)
            if lines and (isinstance(p, Node) or p.popen.poll()):
                text += f"    {p.name} said:\n{lines}"
        return text

    def close(self):
        for p in self.procs:
            if p.popen and p.popen.poll() is None:
                p.popen.send_signal(signal.SIGCONT)
                p.popen.kill()
        for p in self.procs:
            if p.popen:
                p.popen.wait()
        for m in self.mounts:
            subprocess.run(["umount", "-l", m], stderr=subprocess.DEVNULL)
        if os.environ.get("WALWIRE_KEEP"):
            print(f"  kept: {self.dir}")
        else:
            shutil.rmtree(self.dir, ignore_errors=True)


# -- small helpers --

def dashed(options):
    """{'page_size': 512, 'rw': True} -> ['--page-size', '512', '--rw']"""
    args = []
    for key, value in options.items():
        args.append("--" + key.replace("_", "-"))
        if value is not True:
            args.append(str(value))
    return args


def run(argv, timeout=60, check=True, **options):
    try:
        r = subprocess.run(argv, capture_output=True, text=True, timeout=timeout * SLOWER,
                           stdin=None if "input" in options else subprocess.DEVNULL, **options)
    except subprocess.TimeoutExpired:
        raise Fail(f"{' '.join(argv[:3])}: still runs after {timeout * SLOWER} s") from None
    if check and r.returncode:
        raise Fail(f"{' '.join(argv[:3])}: exit {r.returncode}: {r.stderr.strip()[-400:]}")
    return r


def sql(db, text, check=True, timeout=60):
    """What the stock sqlite3 program prints for it."""
    return run(["sqlite3", "-cmd", ".timeout 10000", db, text], timeout, check).stdout.strip()


def read_n(db):
    """c.n as a stock connection sees it; None while there is nothing to see."""
    if not os.path.exists(db):
        return None
    try:
        c = sqlite3.connect(f"file:{db}?mode=ro", uri=True, timeout=5)
        try:
            return c.execute("SELECT n FROM c").fetchone()[0]
        finally:
            c.close()
    except sqlite3.Error:
        return None


def identical(paths):
    """Checkpoint each copy, then they are equal byte for byte, and sound."""
    for p in paths:
        done = sql(p, "PRAGMA wal_checkpoint(TRUNCATE)")
        need(done.startswith("0|"), f"{p}: final checkpoint says {done}")
    for p in paths[1:]:
        pages = differing_pages(paths[0], p)
        need(not pages, f"{p} differs from the primary: {pages}")
    for p in paths[-1:]:
        found = sql(p, "PRAGMA integrity_check(3)", timeout=300)
        need(found == "ok", f"{p}: integrity_check: {found}")


def differing_pages(a, b):
    """'' when the files are equal, else the sizes and the first pages that differ."""
    sizes = os.path.getsize(a), os.path.getsize(b)
    if sizes[0] != sizes[1]:
        return f"{sizes[0]} bytes and {sizes[1]}"
    with open(a, "rb") as f, open(b, "rb") as g:
        page = int.from_bytes(f.read(18)[16:], "big")
        page = 65536 if page == 1 else max(page, 512)
        f.seek(0)
        pages, at = [], 0
        while len(pages) < 6:
            x, y = f.read(1 << 20), g.read(1 << 20)
            if not x:
                break
            if x != y:
                pages += [at // page + 1 + i for i in range(len(x) // page)
                          if x[i * page:(i + 1) * page] != y[i * page:(i + 1) * page]]
            at += len(x)
    return f"pages {pages[:6]} of {page} bytes" if pages else ""


def wal_salts(db):
    """The eight bytes that name this life of the WAL; None without one."""
    try:
        with open(db + "-wal", "rb") as f:
            return f.read(24)[16:24] or None
    except OSError:
        return None


def apsw_missing():
    """'' when the Python writer can run, else the reason why not."""
    r = run([os.path.join(ROOT, "tests", "tools", "pydeps")], timeout=150, check=False)
    return "" if r.returncode == 0 else r.stdout.strip() or "pydeps failed"


def slow_disk(us):
    """The environment of a daemon whose disk takes its time to sync; sanitizers bear no preloading."""
    if SANITIZED:
        return {}
    return {"LD_PRELOAD": os.path.join(TOOLS, "slowsync.so"), "SLOWSYNC_US": str(us)}


class Link:
    """A TCP relay between two nodes that can be cut, held, slowed down, or made to flip a bit."""
    PIECE = 65536

    def __init__(self, stage, to_port):
        import threading
        self.to_port, self.port = to_port, stage.port()
        self.down, self.connections = False, 0
        self.flip_after, self.flip_downwards = None, True  # bytes until a bit flips, and which way
        self.bytes_per_s = None
        self.sockets = []
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self.accept, daemon=True).start()

    @property
    def addr(self):
        return f"127.0.0.1:{self.port}"

    def accept(self):
        import threading
        while True:
            near, _ = self.listener.accept()
            if self.down:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self.to_port), 5)
            except OSError:
                near.close()
                continue
            self.connections += 1
            self.sockets += [near, far]
            for a, b, downwards in ((near, far, False), (far, near, True)):
                threading.Thread(target=self.relay, args=(a, b, downwards), daemon=True).start()

    def before(self, a, b, downwards):
        """Called before each piece is taken from a, to go to b."""

    def passing(self, data, downwards):
        """What goes on instead of `data`."""
        if downwards == self.flip_downwards and self.flip_after is not None:
            self.flip_after -= len(data)
            if self.flip_after < 0:
                i = random.randrange(len(data))
                data = data[:i] + bytes([data[i] ^ 1 << random.randrange(8)]) + data[i + 1:]
                self.flip_after = None
        return data

    def relay(self, a, b, downwards):
        try:
            while True:
                self.before(a, b, downwards)
                data = a.recv(self.PIECE)
                if not data:
                    break
                if self.bytes_per_s:
                    time.sleep(len(data) / self.bytes_per_s)
                b.sendall(self.passing(data, downwards))
        except OSError:
            pass
        for s in (a, b):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def cut(self):
        """Break every connection and refuse new ones until mend()."""
        self.down = True
        sockets, self.sockets = self.sockets, []
        for s in sockets:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            s.close()

    def mend(self):
        self.down = False


def play(names, seed):
    """Run scenarios one after the other; how many failed."""
    counts = {"ok": 0, "skip": 0, "FAIL": 0}

    def on_alarm(*_):
        raise Fail("took longer than its limit")
    signal.signal(signal.SIGALRM, on_alarm)
    for name in names:
        f, limit = SCENARIOS[name]
        stage = Stage(name, seed)
        start = time.monotonic()
        word, why = "ok", ""
        signal.alarm(int(limit))
        try:
            f(stage)
            complaint = stage.complaints()
            if complaint:
                word, why = "FAIL", complaint
        except Skip as e:
            word, why = "skip", str(e)
        except (Fail, OSError, subprocess.SubprocessError, sqlite3.Error) as e:
            word, why = "FAIL", f"{e}" if isinstance(e, Fail) else f"{type(e).__name__}: {e}"
        finally:
            signal.alarm(0)
            text = stage.tails() if word == "FAIL" else ""
            stage.close()
        counts[word] += 1
        took = f"{time.monotonic() - start:.1f} s"
        notes = "; ".join([took] + stage.notes)
        print(f"{word} {name}" + (f": {why}" if why else "") + f" ({notes})")
        if word == "FAIL":
            print(f"{text}    to repeat: WALWIRE_SEED={seed} tests/e2e/run {name}")
        sys.stdout.flush()
    print(f"e2e: {counts['ok']} ok, {counts['skip']} skipped, {counts['FAIL']} failed")
    return counts["FAIL"]
