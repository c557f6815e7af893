"""report.py - what a benchmark found, for people and as JSON. One Report per benchmark."""

import operator

REACHED, MISSED, UNKNOWN = "reached", "missed", "unknown"
TARGETS = {"<=": operator.le, ">=": operator.ge}
SIGNS = {"<=": "≤", ">=": "≥"}


def number(value, unit=""):
    """`value` with the digits that mean something; an unknown value says so."""
    if value is None:
        return "unknown"
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 or not size else 4
    return f"{value:,.{digits}f}" + (f" {unit}" if unit else "")


class Report:
    def __init__(self, name, what):
        self.name, self.what = name, what
        self.setup = {}       # what was the same for all runs: synchronous, hook, seconds, rounds
        self.tables = []      # (head, rows) of text, for people
        self.figures = []
        self.runs = []        # every run, raw
        self.lost = None      # commits, of all runs; None until one was checked
        self.skipped = self.failed = None
        self.took_s = None

    def figure(self, what, value, unit="", target=None, spread=None):
        """`target` is like ("<=", 150); `spread` the single values that `value` stands for."""
        verdict = None
        if target:
            verdict = UNKNOWN
            if value is not None:
                verdict = REACHED if TARGETS[target[0]](value, target[1]) else MISSED
        spread = [v for v in spread or [] if v is not None]
        self.figures.append({"what": what, "value": value, "unit": unit, "target": target,
                             "min": min(spread, default=None), "max": max(spread, default=None),
                             "verdict": verdict})

    def table(self, head, rows):
        self.tables.append((head, [[str(c) for c in row] for row in rows]))

    def add_lost(self, commits):
        self.lost = (self.lost or 0) + commits

    def json(self):
        keys = ("name", "what", "setup", "figures", "runs", "lost", "skipped", "failed", "took_s")
        return {key: getattr(self, key) for key in keys}

    def text(self):
        lines = [f"{self.name}: {self.what}"]
        lines += [f"  {key}: {value}" for key, value in self.setup.items()]
        if self.skipped or self.failed:
            return "\n".join(lines + [f"  SKIPPED: {self.skipped}" if self.skipped else
                                      f"  FAILED: {self.failed}"])
        for head, rows in self.tables:
            lines += [""] + columns([head] + rows)
        if self.figures:
            rows = [["figure", "measured", "min … max", "target", ""]]
            for f in self.figures:
                spread = "" if f["min"] is None else f"{number(f['min'])} … {number(f['max'])}"
                target = f"{SIGNS[f['target'][0]]} {f['target'][1]}" if f["target"] else ""
                rows.append([f["what"], number(f["value"], f["unit"]), spread, target,
                             f["verdict"] or ""])
            lines += [""] + columns(rows)
        lines += [f"  commits lost: {'not checked' if self.lost is None else self.lost}",
                  f"  took {self.took_s:.0f} s"]
        return "\n".join(lines)


def columns(rows):
    """The first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  " + "  ".join([row[0].ljust(widths[0])] +
                             [c.rjust(w) for c, w in zip(row[1:], widths[1:])]).rstrip()
            for row in rows]
