"""`report.html`: a run on one page. The method, its curves, where the data fell on ω and υ, coefficients by token."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from html import escape
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from grolang import explain
from grolang.explain import Page, curves, fonts, html
from grolang.explain.curves import Curve, Plot
from grolang.language.diagnostics import GroError, cause
from grolang.runtime.curves import COLOURS, Frame, bins
from grolang.runtime.pages import charts, moved, number, page, section, table, tile
from grolang.runtime.parquet import FOLDER, parts, read, read_completions
from grolang.runtime.record import Record, curve, write_text

FORMULAS = ".formula { overflow-x: auto; overflow-y: hidden; padding: .3rem 0; } .formula math { margin: 0; }\n"
FIRST = ("reward", "rewards/accuracies", "rewards/margins", "loss", "kl", "entropy", "grad_norm", "learning_rate")
PARTS = 12  # files of samples that the histograms are taken from, spread over the run
POINTS = 600  # of a scatter
SHOWN, TOKENS = 3, 400  # completions of either sign that are shown by token, and how many tokens of one
PAIRS = 8  # held-out prompts shown before and after


def write_report(output: Path) -> Path:
    """Make `report.html` of a run's folder anew from what stands there."""
    path = output / "report.html"
    write_text(path, report(Record(output)))
    return path


def leave_report(output: Path, say: Callable[[str], None]) -> None:
    """The same at the end of a run, which a page that cannot be made does not spoil."""
    try:
        say(f"the report is in {write_report(output)}")
    except Exception as error:  # a report must not spoil the run that it is of
        say(f"note: no report was made ({cause(error, 200)}); `grolang report {output}` tries again")


def report(record: Record) -> str:
    """The page."""
    method = _explained(record)
    body = _head(record) + _method(record, method) + _curves(record) + _functions(record, method) + _tokens(record)
    body += _before_and_after(record) + _repeat(record)
    return page(f"{record.name} · {record.method_name}", body, FORMULAS + fonts.style())


def _head(record: Record) -> str:
    title = next((line for line in record.method.text.splitlines() if line.startswith("method ")), "")
    said = title.partition('"')[2].rstrip('"') or record.method_name
    tiles = [tile("status", record.status), tile("steps", f"{record.steps} of {record.planned}")]
    if record.key and record.evaluations:
        first, last = (record.evaluations[at][record.key] for at in (0, -1))
        mark = moved(record.key, first, last)
        tiles.append(tile(f"{record.key}, held out", f"{number(first)} → {number(last)}", mark))
        if record.best and len(record.evaluations) > 2:
            tiles.append(tile(f"best, at step {record.best.step}", number(record.best.value)))
    seconds = sum(line.get("seconds", 0.0) for line in record.metrics)
    if seconds:
        tokens = record.metrics[-1].get("num_tokens", 0)
        tiles.append(tile("tokens a second", f"{tokens / seconds:,.0f}"))
    error = record.info.get("error")
    return (
        f"<h1>{escape(record.name)}</h1><p class='sub'>{escape(said)} · {escape(record.began)} UTC</p>"
        f"<div class='tiles'>{''.join(tiles)}</div>" + (f"<pre>{escape(str(error))}</pre>" if error else "")
    )


def _explained(record: Record) -> Page | None:
    """The method with the run's parameters, explained; None where its file is of another version of the language."""
    params = {name.removeprefix("set."): value for name, value in record.settings.items() if name.startswith("set.")}
    try:
        return explain.page(record.method, **params)
    except GroError:
        return None


def _method(record: Record, method: Page | None) -> str:
    """The estimator with every part filled in, the row of Table 1, and the file."""
    text = f"<details><summary>the file</summary><pre>{escape(record.method.text)}</pre></details>"
    return (_estimator(method) if method else "") + section("Method", text)


def _estimator(method: Page) -> str:
    try:
        return "".join(html.fragment(method.section(name)) for name in ("estimator", "row"))
    except GroError:  # the package that sets formulas is not there
        lines = "\n".join(one.text for one in (method.estimator.gradient, *method.estimator.where))
        said = "<p class='soft'>Set as formulas with <code>pip install 'grolang[explain]'</code>.</p>"
        return section("Estimator", f"<pre>{escape(lines)}</pre>", said)


def _curves(record: Record) -> str:
    names = dict.fromkeys(name for line in record.metrics[-1:] for name in (*FIRST, *line) if name in line)
    skipped = ("step", "epoch", "seconds", "num_tokens")
    trained = {name: {name: curve(record.metrics, name)} for name in names if name not in skipped}
    first = {name: line for name, line in trained.items() if name in FIRST or name.startswith("completions/mean")}
    rest = {name: line for name, line in trained.items() if name not in first}
    measured = record.evaluations[0] if record.evaluations else {}
    held = {name: {name: curve(record.evaluations, name)} for name in measured if name != "step"}
    rows = [
        (name, *(number(line.get(name)) for line in record.evaluations[:: max(1, len(record.evaluations) - 1)]))
        for name in held
    ]
    after = ["before", "after"][: len(rows[0]) - 1] if rows else []
    more = f"<details><summary>{len(rest)} more</summary>{charts(rest)}</details>" if rest else ""
    return section(
        "Held out", table(["", *after], rows), charts(held) if len(record.evaluations) > 2 else ""
    ) + section("Steps", charts(first), more)


def _functions(record: Record, method: Page | None) -> str:
    """ω over z and υ over the advantage: the functions, the values of this run's tokens, and how many fell where."""
    rows = (
        ("ω(z)", "zs", "omegas", curves.omega),
        ("υ(advantage)", "advantages", "upsilons", curves.upsilon),
    )
    drawn = []
    for title, across, up, function in rows:
        if pairs := _pairs(record, across, up):
            drawn.append(f"<figure>{_scatter(title, pairs, function(method.ir) if method else None)}</figure>")
    note = (
        "<p class='soft'>Points are tokens of the samples that were kept, bars how many fell there, lines the function"
    )
    note += " where it is one of z or of the advantage alone (dashed: for a negative one).</p>"
    return section("Where the data fell", note, f'<div class="charts">{"".join(drawn)}</div>') if drawn else ""


def _pairs(record: Record, *columns: str) -> list[tuple[float, float]]:
    """Two numbers of each token, from files spread over the run."""
    every = parts(record.path / FOLDER)
    found: list[tuple[float, float]] = []
    for part in every[:: max(1, len(every) // PARTS)]:
        xs, ys = (column.to_pylist() for column in read(part, columns).columns)
        found += [pair for x, y in zip(xs, ys) if x is not None and y is not None for pair in zip(x, y)]
    return [(x, y) for x, y in found if isfinite(x) and isfinite(y)]  # a row that could not matter was not run


def _scatter(title: str, pairs: Sequence[tuple[float, float]], function: Plot | None) -> str:
    xs = sorted(x for x, _ in pairs)
    low, high = xs[len(xs) // 200], xs[-1 - len(xs) // 200]  # a few far out would leave no room for the others
    inside = sorted({(x, y) for x, y in pairs if low <= x <= high})
    room = (high - low) / 2  # on either side, so that it is seen where the function goes from there
    lines = [list(_within(curve, low - room, high + room)) for curve in (function.curves if function else ())]
    xs_shown = [x for line in lines for x, _ in line] + [low, high]
    ys = [y for _, y in inside] + [y for line in lines for _, y in line]
    frame = Frame(title, (min(xs_shown), max(xs_shown)), (min(0.0, *ys), max(0.0, *ys)))
    shares = bins(xs, low, high, 40) if high > low else [1.0]
    step = (high - low) / len(shares) or (frame.x[1] - frame.x[0]) / 40
    for at, share in enumerate(shares):
        frame.bar(low + at * step, low + (at + 1) * step, 0.92 * share / max(shares), COLOURS[5])
    for at, line in enumerate(lines):
        frame.line(line, COLOURS[3], dashed=at > 0)
    for x, y in inside[:: max(1, len(inside) // POINTS)]:
        frame.dot(x, y, COLOURS[0])
    return frame.svg()


def _within(curve: Curve, low: float, high: float) -> Iterator[tuple[float, float]]:
    """A curve between two places, to its nearest points outside cut short: lines between neighbours."""
    for (a, one), (b, two) in pairwise(zip(curve.x, curve.y)):
        if a < high and b > low and isfinite(one) and isfinite(two):
            for x in (max(a, low), min(b, high)):
                yield x, one + (two - one) * (x - a) / (b - a)


def _tokens(record: Record) -> str:
    """Completions of the last kept step, by token: how strongly each was pushed up (green) or down (red)."""
    every = parts(record.path / FOLDER)
    if not every:
        return section("Coefficients by token", "<p>No samples were kept.</p>")
    rows = read(every[-1]).to_pylist()
    rows = [row for row in rows if row["step"] == rows[-1]["step"]]
    ranked = sorted(rows, key=lambda row: row["coefficient/mean"])
    chosen = [row for row in ranked[::-1][:SHOWN] if row["coefficient/mean"] > 0]
    chosen += [row for row in ranked[:SHOWN] if row["coefficient/mean"] < 0] or ranked[:1] * (not chosen)
    largest = max((abs(value) for row in chosen for value in row["coefficients"]), default=0.0)
    tokenizer = _tokenizer(record.path)
    note = (
        f"<p class='soft'>Step {rows[-1]['step']}. Green tokens are made likelier, red ones less likely; "
        f"the strongest here has a coefficient of ±{number(largest)}.</p>"
    )
    return section("Coefficients by token", note, *(_heat(row, largest, tokenizer) for row in chosen))


def _tokenizer(output: Path) -> Tokenizer | None:
    for folder in ("model", "best"):
        path = output / folder / "tokenizer.json"
        if path.is_file():
            return Tokenizer.from_file(str(path))
    return None


def _heat(row: dict[str, Any], largest: float, tokenizer: Tokenizer | None) -> str:
    scores = [
        f"{name.removeprefix('score/')} {number(value)}" for name, value in row.items() if name.startswith("score/")
    ]
    label = {1.0: ["chosen"], -1.0: ["rejected"]}.get(row["label"], [])
    words = [*label, *scores, *([f"advantage {number(row['advantage'])}"] if row["advantage"] is not None else [])]
    spans = []
    for text, value in pieces(row["ids"][:TOKENS], row["coefficients"][:TOKENS], tokenizer):
        share = round(70 * abs(value) / largest) if largest else 0
        colour = f"color-mix(in srgb, {'#10b981' if value > 0 else '#ef4444'} {share}%, transparent)"
        spans.append(f'<span style="background:{colour}" title="{value:.4g}">{escape(text)}</span>')
    more = " …" if len(row["ids"]) > TOKENS else ""
    head = f"<div class='soft'>{escape(' · '.join(words))}</div>"
    return f"{head}<div class='tokens'><i>{escape(row['prompt'])}</i>{''.join(spans)}{more}</div>"


def pieces(ids: Sequence[int], values: Sequence[float], tokenizer: Tokenizer | None) -> list[tuple[str, float]]:
    """What each token adds to the text, with its value; tokens that make one character only together have the mean.

    Without a tokenizer a token is its number.
    """
    if tokenizer is None:
        return [(f"{token} ", value) for token, value in zip(ids, values)]
    found: list[tuple[str, float]] = []
    before = ""
    open_values: list[float] = []
    for at, value in enumerate(values):
        text = tokenizer.decode(list(ids[: at + 1]), skip_special_tokens=False)
        open_values.append(value)
        if text.endswith("\ufffd") and at + 1 < len(values):
            continue
        found.append((text[len(before) :], sum(open_values) / len(open_values)))
        before, open_values = text, []
    return found


def _before_and_after(record: Record) -> str:
    """Greedy completions of held-out prompts under the model before and after: those whose scores moved come first."""
    found = read_completions(record.path)
    if len(found) < 2:
        return ""
    (_, first), (step, last) = found[0], found[-1]
    greedy = [[row for row in one.to_pylist() if row["sample"] is None] for one in (first, last)]
    names = [name for name in first.column_names if name.startswith("score/")]
    pairs = sorted(zip(*greedy), key=lambda pair: -sum(abs(pair[1][name] - pair[0][name]) for name in names))
    rows = []
    for one, two in pairs[:PAIRS]:
        marks = [f"{name.removeprefix('score/')} {number(one[name])} → {number(two[name])}" for name in names]
        rows.append((one["prompt"], one["answer"] or "–", one["completion"], two["completion"], "\n".join(marks)))
    note = f"<p class='soft'>Greedy completions of held-out prompts, at step 0 and step {step}.</p>"
    return section("Before and after", note, table(("prompt", "answer", "before", "after", "scores"), rows, range(5)))


def _repeat(record: Record) -> str:
    info = record.info
    typed = f"<p>It was started with</p><pre>{escape(str(info['command']))}</pre>" if info.get("command") else ""
    again = f"<p>It runs again, from the texts in its own folder, with</p><pre>{escape(record.repeat)}</pre>"
    data = [
        (name, str(one.get("sha256", "–")), str(one.get("bytes", "–"))) for name, one in info.get("data", {}).items()
    ]
    settings = [(name, json.dumps(value, ensure_ascii=False)) for name, value in record.settings.items()]
    where: list[tuple[str, str]] = [
        (name, str(info[name])) for name in ("folder", "device", "kernels", "processes", "threads") if name in info
    ]
    versions = [(name, str(value)) for name, value in record.versions.items()]
    return section(
        "To repeat it",
        typed,
        again,
        table(("data", "SHA-256", "bytes"), data),
        "<h3>Settings</h3>",
        table(("setting", "value"), settings),
        "<h3>Versions and machine</h3>",
        table(("", ""), versions + where),
    )
