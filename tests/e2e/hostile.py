"""hostile.py - several writers doing everything at once, and kill -9 for all."""
import os
import time

from common import SLOWER, apsw_missing, env_number, need, read_n, scenario, slow_disk, until


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


@scenario(240)
def seed(stage):
    """A large database is copied to a replica and on to a second one while writers change it all over;
    both daemons are killed and stopped in the middle of it."""
    db = stage.create(page_size=stage.rng.choice((512, 4096, 4096)), auto_vacuum=stage.rng.randrange(3))
    stage.keeper(db)
    stage.writer(db, "fill", commits=1, modes="big=1", big_mb=200, max_mb=1 << 20).finish()
    size = os.path.getsize(db)
    p = stage.primary(db).wait_attached(db)
    writers = [stage.writer(db, f"w{i}", max_mb=400, modes="all=5,small=500,medium=200,vacuum=0")
               for i in range(2)]
    a = stage.replica(p, "a")
    b = stage.replica(a, "b")
    readers = [stage.reader(x.path(db), f"on-{x.name}", integrity_every=0) for x in (a, b)]
    for victim in (a, p, a, p, b, a):
        time.sleep(stage.rng.uniform(0.05, 0.6) * SLOWER)
        if stage.rng.random() < 0.3:
            stage.stutter([a, p, b], writers, 0.5)
        victim.kill9()
        victim.start()
    began = time.monotonic()
    a.wait_streaming(db, timeout=60)
    b.wait_streaming(db, timeout=60)
    took = time.monotonic() - began
    time.sleep(2)
    for w in writers:
        w.stop(60)
    stage.converge(db, [p, a, b])
    for r in readers:
        need(r.stop()["states"] > 0, f"{r.name} saw nothing")
    stage.note(f"{size >> 20} MB, both there {took:.1f} s after the last kill, n={read_n(db)}")
    stage.finish(db, [p, a, b])


@scenario(300)
def kill_storm(stage):
    """Three replicas under readers, one of them killed every 50 ms; then the primary every 200 ms, while
    writers make the WAL begin anew all the time. Two replicas have slow disks."""
    db = stage.create()
    ring = ["--ring-bytes", "8M"]
    p = stage.primary(db, args=ring).wait_attached(db)
    replicas = [stage.replica(p, f"r{i}", listen=False, args=ring, env=slow_disk((3000, 20000, 0)[i]))
                .wait_streaming(db) for i in range(3)]
    readers = [stage.reader(db, "on-primary", every_us=20000)] + \
              [stage.reader(r.path(db), f"on-{r.name}", every_us=20000, integrity_every=0) for r in replicas]
    writers = [stage.writer(db, f"w{i}", modes="small=200,medium=20,big=1,rollback=1,checkpoint=3", big_mb=2,
                            autocheckpoint=(10, 200)[i]) for i in range(2)]

    def storm(victims, every, seconds):
        kills, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(stage.rng.uniform(0, 2 * every) * SLOWER)
            for x in readers + writers + [p] + replicas:
                need(x.alive(), f"after {kills} kills {x.name} ended by itself with {x.popen.poll()}: "
                                f"{x.stderr().strip()[-400:]}")
            victim = stage.rng.choice(victims)
            victim.kill9()
            victim.start()
            kills += 1
        return kills

    counts = [storm(replicas, 0.05, 15), storm([p], 0.2, 15)]
    for w in writers:
        w.stop(60)
    stage.converge(db, [p] + replicas)
    for r in readers:
        r.stop()
    stage.note(f"{counts[0]} kills of replicas, {counts[1]} of the primary, n={read_n(db)}")
    stage.finish(db, [p] + replicas)


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
    done, i, checked = {}, 0, 0
    while i < count:
        time.sleep(stage.rng.uniform(0.2, 1.0) * SLOWER)
        target = stage.rng.choice(writers if stage.rng.random() < 0.4 else nodes)
        targets = [target]
        if stage.rng.random() < 0.25:  # two at the same moment
            targets.append(stage.rng.choice([x for x in writers + nodes if x is not target]))
        for x in readers:
            need(x.alive(), f"after {i} kills: {x.name}: {x.stderr().strip()}")
        for x in writers + nodes:
            need(x.alive(), f"after {i} kills {x.name} ended by itself with {x.popen.poll()}: "
                            f"{x.stderr().strip()[-400:]}")
        for x in targets:
            x.kill9()
            done[x.name] = done.get(x.name, 0) + 1
        if stage.rng.random() < 0.3:
            time.sleep(stage.rng.uniform(0, 0.4))
        for x in targets:
            if x in writers:
                x.argv[x.argv.index("--seed") + 1] = str(stage.number())
            x.start()
        i += len(targets)
        if i - checked >= 20:  # no progress is a failure too, however correct it is
            n, checked = read_n(db), i
            for node in nodes[1:]:
                until(lambda: f"after {i} kills {node.name} is at n={read_n(node.path(db))}, "
                              f"the primary was at {n}; {node.explain(db)}",
                      lambda: (read_n(node.path(db)) or 0) >= (n or 0), 60)
    for w in writers:
        w.stop(60)
    stage.converge(db, nodes, timeout=90)
    seen = [r.stop() for r in readers]
    need(all(s["states"] > count / 4 for s in seen), f"too few states seen: {seen}")
    seeds = [n.counter(db, "seeds") for n in nodes]
    stage.note(f"{i} kills ({', '.join(f'{k} {v}' for k, v in sorted(done.items()))}), n={read_n(db)}, "
               f"states seen {[s['states'] for s in seen]}, full copies since the last restarts {seeds}")
    stage.finish(db, nodes)
