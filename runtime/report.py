"""`report.html`: a run on one page. The method, its curves, where the data fell on ω and υ, coefficients by token."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from math import isfinite
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from grolang.language.checker import check
from grolang.language.diagnostics import GroError
from grolang.language.ir import MethodIR
from grolang.runtime.curves import COLOURS, Frame, bins
from grolang.runtime.pages import charts, moved, number, page, section, table, tile
from grolang.runtime.parquet import FOLDER, parts, read, read_completions
from grolang.runtime.record import Record, write_text

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
    except Exception as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        say(f"note: no report was made ({cause[:200]}); `grolang report {output}` tries again")


def report(record: Record) -> str:
    """The page."""
    body = _head(record) + _method(record) + _curves(record) + _functions(record) + _tokens(record)
    return page(f"{record.name} · {record.method_name}", body + _before_and_after(record) + _repeat(record))


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


COMPONENTS = {
    "reward": "R",
    "baseline": "B",
    "advantage": "A",
    "upsilon": "υ(a)",
    "measure": "measure",
    "anchor": "ε*",
    "alpha": "α",
    "omega": "ω(z)",
    "credit": "credit",
    "penalty": "penalty",
}
"""The parts of a row of the paper's Table 1, and its letters for them."""


def _method(record: Record) -> str:
    """The estimator, what this method puts in for each of its parts, and the file."""
    formula = "<pre>ĝ = aggregate  credit · ω(α·(measure − ε*)) · υ(A) · ∇ log π(y_t | …)  −  ∇ penalty</pre>"
    try:
        checked = check(record.method)
        rows = _parts(checked.unwrap(), {name: source.text for name, source in checked.sources.items()})
    except GroError:  # written for another version of the language
        rows = []
    text = f"<details><summary>the file</summary><pre>{escape(record.method.text)}</pre></details>"
    return section("Method", formula, table(("", "part", "in this method"), rows, (2,)), text)


def _parts(method: MethodIR, texts: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Each part that is not left at its default, as its file says it; the aggregation; the parameters."""
    rows = []
    for name, letter in COMPONENTS.items():
        found = method.definitions.get(name) or method.functions.get(name)
        if found is not None and found.given:
            span = found.body.span
            rows.append((letter, name, " ".join(texts[span.file][span.start : span.end].split())))
    steps = (
        f"{step.function} over {step.axis}" + (f" / {step.divisor}" if step.divisor is not None else "")
        for step in method.aggregate
    )
    rows.append(("Σ", "aggregate", ", ".join(steps)))
    return rows


def _curves(record: Record) -> str:
    names = dict.fromkeys(name for line in record.metrics[-1:] for name in (*FIRST, *line) if name in line)
    skipped = ("step", "epoch", "seconds", "num_tokens")
    trained = {
        name: {name: [(line["step"], line[name]) for line in record.metrics if name in line]}
        for name in names
        if name not in skipped
    }
    first = {name: curves for name, curves in trained.items() if name in FIRST or name.startswith("completions/mean")}
    rest = {name: curves for name, curves in trained.items() if name not in first}
    held = {
        name: {name: [(line["step"], line[name]) for line in record.evaluations if name in line]}
        for name in (record.evaluations[0] if record.evaluations else {})
        if name != "step"
    }
    rows = [
        (name, *(number(line.get(name)) for line in record.evaluations[:: max(1, len(record.evaluations) - 1)]))
        for name in held
    ]
    after = ["before", "after"][: len(rows[0]) - 1] if rows else []
    more = f"<details><summary>{len(rest)} more</summary>{charts(rest)}</details>" if rest else ""
    return section(
        "Held out", table(["", *after], rows), charts(held) if len(record.evaluations) > 2 else ""
    ) + section("Steps", charts(first), more)


def _functions(record: Record) -> str:
    """ω over z and υ over the advantage: the values of this run's tokens, and how many fell where."""
    drawn = []
    for title, across, up in (
        ("ω(z) at this run's tokens", "zs", "omegas"),
        ("υ(advantage)", "advantages", "upsilons"),
    ):
        pairs = _pairs(record, across, up)
        if pairs:
            drawn.append(f"<figure>{_scatter(title, pairs)}</figure>")
    note = "<p class='soft'>Points are tokens of the samples that were kept, bars how many fell there.</p>"
    return section("Where the data fell", note, f'<div class="charts">{"".join(drawn)}</div>') if drawn else ""


def _pairs(record: Record, *columns: str) -> list[tuple[float, float]]:
    """Two numbers of each token, from files spread over the run."""
    every = parts(record.path / FOLDER)
    found: list[tuple[float, float]] = []
    for part in every[:: max(1, len(every) // PARTS)]:
        xs, ys = (column.to_pylist() for column in read(part, columns).columns)
        found += [pair for x, y in zip(xs, ys) if x is not None and y is not None for pair in zip(x, y)]
    return [(x, y) for x, y in found if isfinite(x) and isfinite(y)]  # a row that could not matter was not run


def _scatter(title: str, pairs: Sequence[tuple[float, float]]) -> str:
    xs = sorted(x for x, _ in pairs)
    low, high = xs[len(xs) // 200], xs[-1 - len(xs) // 200]  # a few far out would leave no room for the others
    inside = sorted({(x, y) for x, y in pairs if low <= x <= high})
    frame = Frame(title, (low, high), (min(0.0, *(y for _, y in inside)), max(0.0, *(y for _, y in inside))))
    shares = bins(xs, low, high, 40) if high > low else [1.0]
    step = (frame.x[1] - frame.x[0]) / len(shares)
    for at, share in enumerate(shares):
        frame.bar(frame.x[0] + at * step, frame.x[0] + (at + 1) * step, 0.92 * share / max(shares), COLOURS[5])
    for x, y in inside[:: max(1, len(inside) // POINTS)]:
        frame.dot(x, y, COLOURS[0])
    return frame.svg()


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
        (name, str(info[name])) for name in ("folder", "device", "processes", "threads") if name in info
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
