"""hostile.py - several writers doing everything at once, and kill -9 for all."""
import signal
import time

from common import SLOWER, apsw_missing, env_number, need, read_n, scenario, until


def python_writer(stage, db, name="py", **options):
    """The writer of another language, or None with a note where the registry is out of reach."""
    why = apsw_missing()
    if why:
        stage.note(f"without the Python writer: {why}")
        return None
    return stage.writer_py(db, name, **options)


@scenario(240)
def hostile(stage):
    """Writers in C and Python with two versions of SQLite mix everything an application may do, while
    readers on the primary and on two replicas judge every state they see; daemons are stopped for
    moments in between."""
    db = stage.create(page_size=stage.rng.choice((512, 4096, 4096, 65536)),
                      auto_vacuum=stage.rng.randrange(3))
    stage.keeper(db)  # with it open, SQLite 3.40's bug with savepoints stays harmless (6.3)
    p = stage.primary(db).wait_attached(db)
    a = stage.replica(p, "a")
    b = stage.replica(a, "b")
    readers = [stage.reader(db, "on-primary"), stage.reader(a.path(db), "on-a", hold=2),
               stage.reader(b.path(db), "on-b", rw=True, every_us=200)]
    seconds = env_number("WALWIRE_HOSTILE_S", 20)
    writers = [stage.writer(db, f"w{i}", seconds=seconds, modes="all") for i in range(3)]
    py = python_writer(stage, db, seconds=seconds)
    if py:
        writers.append(py)
        for node in (a, b):
            node.wait_streaming(db)
        readers.append(stage.spawn("on-a-new", ["/usr/bin/python3", py.argv[1], a.path(db), "--read"]))
    stage.stutter([p, p, a, b], writers, seconds)
    results = [w.finish(seconds + 60) for w in writers]
    stage.converge(db, [p, a, b])
    seen = [r.stop() for r in readers]
    need(all(s["n"] == read_n(db) for s in seen[:3]), f"readers ended at {[s['n'] for s in seen]}")
    need(all(s["busy"] == 0 for s in seen[1:3]), f"readers on a replica had to wait: {seen[1:3]}")
    stage.note(f"{sum(r['commits'] for r in results)} commits, SQLite "
               f"{', '.join(sorted({r['sqlite'] for r in results}))}; "
               f"states seen {[s.get('states', s['reads']) for s in seen]}")
    stage.finish(db, [p, a, b])


@scenario(3600)
def kills(stage):
    """kill -9 of writers, primary and replicas, by seed, at least 200 times, everything restarted at
    once; readers never see a wrong state, and in the end all copies are equal."""
    count = env_number("WALWIRE_KILLS", 200)
    db = stage.create()
    # Only the writer whose SQLite is sound after spill + ROLLBACK TO + crash (6.3) does savepoints.
    modes = "all,-savepoint"
    p = stage.primary(db).wait_attached(db)
    a = stage.replica(p, "a")
    b = stage.replica(a, "b")
    nodes = [p, a, b]
    writers = [stage.writer(db, f"w{i}", modes=modes) for i in range(2)]
    py = python_writer(stage, db)
    if py:
        writers.append(py)
    for node in nodes[1:]:
        node.wait_streaming(db)
    readers = [stage.reader(db, "on-primary"), stage.reader(a.path(db), "on-a", hold=3),
               stage.reader(b.path(db), "on-b", every_us=300)]
    done = {}
    for i in range(count):
        time.sleep(stage.rng.uniform(0.2, 1.0) * SLOWER)
        target = stage.rng.choice(writers if stage.rng.random() < 0.4 else nodes)
        if target in writers:
            target.argv[target.argv.index("--seed") + 1] = str(stage.number())
        for x in readers:
            need(x.alive(), f"after {i} kills: {x.name}: {x.stderr().strip()}")
        for x in writers + nodes:
            need(x.alive(), f"after {i} kills {x.name} ended by itself with {x.popen.poll()}: "
                            f"{x.stderr().strip()[-400:]}")
        target.kill9()
        done[target.name] = done.get(target.name, 0) + 1
        if stage.rng.random() < 0.3:
            time.sleep(stage.rng.uniform(0, 0.4))
        target.start()
        if i % 20 == 19:  # no progress is a failure too, however correct it is
            n = read_n(db)
            for node in nodes[1:]:
                until(lambda: f"after {i + 1} kills {node.name} is at n={read_n(node.path(db))}, "
                              f"the primary was at {n}; {node.explain(db)}",
                      lambda: (read_n(node.path(db)) or 0) >= (n or 0), 60)
    for w in writers:
        w.stop(60)
    stage.converge(db, nodes, timeout=90)
    seen = [r.stop() for r in readers]
    need(all(s["states"] > count / 4 for s in seen), f"too few states seen: {seen}")
    seeds = [n.counter(db, "seeds") for n in nodes]
    stage.note(f"{count} kills ({', '.join(f'{k} {v}' for k, v in sorted(done.items()))}), n={read_n(db)}, "
               f"states seen {[s['states'] for s in seen]}, full copies since the last restarts {seeds}")
    stage.finish(db, nodes)
