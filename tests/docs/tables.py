"""The tables of the manual, written from the tables in code. `python tests/docs/tables.py` puts them into docs/.

A table stands in a page between `<!-- table NAME -->` and `<!-- end -->`; a test compares it with what is made here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from grolang.language import library
from grolang.language.checker import check
from grolang.language.codes import CODES
from grolang.language.functions import FORMS, NAMED, OBSERVABLES, REDUCTIONS, ROWS, Function
from grolang.language.intervals import ANY
from grolang.language.ir import MethodIR, Step
from grolang.language.misuse import DATA_OF
from grolang.language.scopes import REDUCED, Scope, has_axis

DOCS = Path(__file__).resolve().parents[2] / "docs"
#: the methods that docs/maths.md derives; `grolang list` shows all
DERIVED = ("reinforce", "rloo", "remax", "grpo", "reinforce_pp", "dpo", "cpl", "kto", "awr", "gro", "sft")
MARK = re.compile(r"(<!-- table (?P<name>[\w-]+) -->\n)(?P<table>.*?)(<!-- end -->)", re.DOTALL)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def observables() -> str:
    rows = [
        (code(row.name), row.scope.word, DATA_OF[row.data].text if row.data else "any", str(row.range), row.help)
        for row in OBSERVABLES.values()
    ]
    return markdown(("name", "scope", "data", "range", "meaning"), rows)


def functions() -> str:
    rows = []
    for row in NAMED.values():
        domain = "; ".join(what for _, _, what in row.domain)
        found = str(row.range(*[ANY] * len(row.arguments))).replace("-0,", "0,")
        call = code(f"{row.name}({', '.join(row.arguments)})")
        rows.append((call, row.help, found, _slopes(row), ", ".join(_derivatives(row)), domain))
    return markdown(("function", "value", "range", "moves", "derivative in each argument", "domain"), rows)


def _slopes(row: Function) -> str:
    words = {"+": "rises", "-": "falls", "=": "constant", "?": "–"}
    return ", ".join(words[slope] for slope in row.slopes(*[ANY] * len(row.arguments)))


def _derivatives(row: Function) -> list[str]:
    return [code(text) if text is not None else "no gradient" for text in row.derivative]


_SHAPES = {"choose": "a if c else b", "not": "not a", "negate": "-a"}


def operators() -> str:
    rows = []
    for row in ROWS:
        if row.symbol:
            shape = _SHAPES.get(row.name, f"a {row.symbol} b")
            rows.append((code(shape), row.name, ", ".join(_derivatives(row))))
    return markdown(("operator", "step", "derivative in each argument"), rows)


def reductions() -> str:
    rows = [
        (code(f"{row.name}({'x, q' if row.arguments == 2 else 'x'} over AXIS)"), row.help)
        for row in REDUCTIONS.values()
    ]
    return markdown(("reduction", "value"), rows)


def axes() -> str:
    rows = []
    for axis, left in REDUCED.items():
        taken = [scope.word for scope in reversed(Scope) if has_axis(scope, axis)]
        rows.append((code(f"over {axis}"), ", ".join(taken), left.word))
    return markdown(("axis", "scopes that have it", "gives one value per"), rows)


def forms() -> str:
    rows = []
    for row in FORMS.values():
        takes = row.takes.word if row.coarsest is row.takes else f"{row.coarsest.word} to {row.takes.word}"
        gives = "as its argument" if row.name == "sg" else row.gives.word
        needs = DATA_OF[row.data].text if row.data else "any"
        flow = "yes" if row.flows else "no"
        rows.append((code(f"{row.name}({', '.join(row.arguments)})"), takes, gives, needs, flow, row.help))
    return markdown(("form", "takes", "gives", "data", "gradient", "value"), rows)


def codes() -> str:
    return markdown(("code", "finding"), [(name, row.title) for name, row in CODES.items()])


def methods() -> list[MethodIR]:
    return [check(library.built_in()[name]).unwrap() for name in DERIVED]


def _said(method: MethodIR, name: str) -> str:
    """The text of a component in its file; blank where it is left at its default."""
    row = method.definitions.get(name) or method.functions.get(name)
    if row is None or not row.given:
        return ""
    text = library.built_in()[method.name].text
    span = row.body.span
    return code(" ".join(text[span.start : span.end].split()))


def _step(step: Step) -> str:
    return f"{step.function} over {step.axis}" + (f" / {step.divisor}" if step.divisor is not None else "")


def value_side() -> str:
    names = ("reward", "baseline", "advantage", "upsilon")
    rows = [(method.name, " + ".join(method.data), *(_said(method, name) for name in names)) for method in methods()]
    return markdown(("method", "data", "reward R", "baseline B", "advantage A", "υ(a)"), rows)


def weight_side() -> str:
    names = ("measure", "anchor", "alpha", "omega", "credit")
    rows = []
    for method in methods():
        steps = ", ".join(map(_step, method.aggregate))
        rows.append((method.name, *(_said(method, name) for name in names), steps))
    return markdown(("method", "measure", "anchor ε*", "α", "ω(z)", "credit", "aggregate"), rows)


def settings() -> str:
    """A row for each flag of `grolang run`."""
    from grolang.cli.run import CONFIG
    from grolang.runtime.settings import PANELS, flag

    by_kind = {name for row in _kinds().values() for name in row}
    rows = []
    for panel in PANELS:
        for name in panel.__annotations__:
            default = panel.model_fields[name].default
            known = isinstance(default, (str, int, float)) and default is not False
            shown = "by data" if name in by_kind else code(str(default)) if known else ""
            if name != "method":
                rows.append((code(flag(name)), shown, str(panel.model_fields[name].description)))
    return markdown(("flag", "default", ""), [*rows, (code("--config"), "", CONFIG)])


def _kinds() -> dict[str, dict[str, object]]:
    from grolang.runtime import DEFAULTS

    return {kind: {name: value for name, value in row.items() if name != "own_lr"} for kind, row in DEFAULTS.items()}


def defaults() -> str:
    """The settings that depend on what the method learns from."""
    from grolang.runtime import DEFAULTS

    names = ("steps", "batch", "lr", "own_lr")
    rows = [(kind, *(f"{row[name]:g}" for name in names)) for kind, row in DEFAULTS.items()]
    return markdown(("data", "steps", "batch", "lr", "lr with `--model`"), rows)


def metrics() -> str:
    """What a step says."""
    from grolang.runtime.figures import METRICS

    rows = [(", ".join(map(code, row.names)), row.unit, row.when, row.meaning) for row in METRICS]
    return markdown(("name", "unit", "when", "meaning"), rows)


def held_out() -> str:
    """What an evaluation says."""
    from grolang.runtime.figures import HELD_OUT

    rows = [(", ".join(map(code, row.names)), row.unit, row.when, row.meaning, row.better) for row in HELD_OUT]
    return markdown(("name", "unit", "when", "meaning", "better"), rows)


def samples() -> str:
    """The columns of the samples that a run keeps."""
    from grolang.runtime.samples import COLUMNS

    types = {"double": "number", "list<item: float>": "numbers", "list<item: int32>": "integers", "int32": "integer"}
    types |= {"string": "text", "bool": "true or false"}
    found = ((name, str(kind).replace("element", "item"), help) for name, (kind, help) in COLUMNS.items())
    return markdown(("column", "type", "meaning"), [(code(name), types[kind], help) for name, kind, help in found])


def scores() -> str:
    """A row for each built-in score."""
    from grolang.runtime.verifiers import BUILTINS

    rows = [(code(f"{name}{_option(row.option)}"), row.value) for name, row in BUILTINS.items()]
    return markdown(("built in", "value"), rows)


def _option(text: str) -> str:
    return f"[:{text[1:]}" if text.startswith("[") else text and f":{text}"


def errors() -> str:
    """A section per code: what it says, why, a bad and a good example."""
    parts = []
    for name, row in CODES.items():
        shown = row.bad.encode(row.encoding).decode("utf-8", "replace")
        parts.append(
            f"## {name}: {row.title}\n\n{row.what}\n{row.why}\n\nBad:\n\n{_quoted(shown)}\nGood:\n\n{_quoted(row.good)}"
        )
    return "\n".join(parts)


def _quoted(text: str) -> str:
    return "".join(f"    {line}".rstrip() + "\n" for line in text.rstrip("\n").split("\n"))


TABLES: dict[str, Callable[[], str]] = {
    "observables": observables,
    "functions": functions,
    "operators": operators,
    "reductions": reductions,
    "axes": axes,
    "forms": forms,
    "codes": codes,
    "errors": errors,
    "settings": settings,
    "scores": scores,
    "defaults": defaults,
    "metrics": metrics,
    "held-out": held_out,
    "samples": samples,
    "value-side": value_side,
    "weight-side": weight_side,
}


def written(text: str) -> str:
    """A page with its tables as they are in code."""
    return MARK.sub(lambda found: f"{found[1]}\n{TABLES[found['name']]()}\n{found[4]}", text)


if __name__ == "__main__":
    for page in sorted(DOCS.rglob("*.md")):
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
