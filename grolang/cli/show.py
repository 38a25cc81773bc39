"""`grolang show`: a method at any stage of its way from text to tensor steps."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from lark import Token, Tree

from grolang.cli.options import File
from grolang.cli.paint import say, table
from grolang.language import library
from grolang.language.checker import check
from grolang.language.diagnostics import GroError
from grolang.language.ir import Expr, MethodIR
from grolang.language.source import Source
from grolang.language.syntax import parse


def show(
    file: File,
    stage: Annotated[
        Literal["text", "tree", "ir", "facts", "needs", "steps", "python"], typer.Option(help="How far on its way.")
    ] = "text",
) -> None:
    """Print a method at one stage: its text, trees, checked form, facts, needs, tensor steps or Python."""
    source = library.find(file)
    say(_STAGES[stage](source))


def _text(source: Source) -> str:
    return source.text.rstrip("\n")


def _tree(source: Source) -> str:
    read = parse(source)
    if read.findings:
        raise GroError(read.findings, {source.name: source})
    return "\n".join(_drawn(statement.tree) for statement in read.statements)


def _drawn(tree: Tree[Token]) -> str:
    """A tree as indented lines, without recursion: a sum of many terms is a deep tree."""
    lines: list[str] = []
    stack: list[tuple[int, Tree[Token] | Token]] = [(0, tree)]
    while stack:
        depth, node = stack.pop()
        if isinstance(node, Tree):
            lines.append("  " * depth + str(node.data).rstrip("_"))
            stack += [(depth + 1, child) for child in reversed(node.children) if child is not None]
        else:
            lines.append(f"{'  ' * depth}{node.type} {node}")
    return "\n".join(lines)


def _ir(source: Source) -> str:
    try:
        return check(source).unwrap().model_dump_json(indent=2)
    except ValueError:  # pydantic writes 255 levels and no more
        help = "name parts of its expressions in definitions of their own"
        raise GroError.plain("the method nests too deep to be printed as JSON", help=help, code="E104") from None


def _facts(source: Source) -> str:
    """A line for each definition, component and report: scope, flow and range."""
    from grolang.language.facts import Facts

    method = check(source).unwrap()
    facts = Facts(method)
    rows = [("NAME", "SCOPE", "FLOW", "RANGE", "MOVES")]
    for name, body in _bodies(method):
        flow = "live in logp" if body.live else "number"
        rows.append((name, body.scope.word, flow, str(facts.range(body)), ""))
    for function in method.functions.values():
        moves = {"+": "increasing", "-": "decreasing", "=": "constant"}.get(
            facts.slope(function.body, function.name), "unknown"
        )
        head = f"{function.spelled}({function.argument})"
        rows.append((head, function.body.scope.word, "number", str(facts.range(function.body)), moves))
    return table(rows)


def _bodies(method: MethodIR) -> list[tuple[str, Expr]]:
    rows = [(row.spelled, row.body) for row in method.definitions.values()]
    return rows + [(f"report {name}", row.body) for name, row in method.reports.items()]


def _needs(source: Source) -> str:
    from grolang.compiler.lowering import lower
    from grolang.compiler.needs import KNOWN, needs_of, vanishing
    from grolang.compiler.on_policy import on_policy
    from grolang.compiler.schedule import schedule

    method = check(source).unwrap()
    program, found = lower(method), needs_of(method)
    asked = {
        "reference model": found.reference,
        "mismatched pass": found.mismatched,
        "greedy completions": found.greedy,
        "old log-probs": found.old,
        "sampler log-probs": found.sampler,
        "entropy": found.entropy,
    }
    rows = [
        ("data", " + ".join(method.data)),
        ("scores", ", ".join(found.scores) or "none"),
        *((word, "yes" if needed else "no") for word, needed in asked.items()),
        ("coefficient known", f"{KNOWN[found.scope]} ({found.scope})"),
        ("in the first update", f"{KNOWN[found.old_scope]} ({found.old_scope})"),
        ("mismatched scope", found.mismatched_scope),
        ("schedule", schedule(program).phrase),
        ("first schedule", schedule(on_policy(program)).phrase),
    ]
    rows += [(f"with {name} = 0", f"no {' and no '.join(words)}") for name, words in vanishing(method).items()]
    return table(rows)


def _steps(source: Source) -> str:
    from grolang.compiler.lowering import lower
    from grolang.compiler.program import described

    return described(lower(check(source).unwrap()))


def _python(source: Source) -> str:
    from grolang.compiler.emit import emit

    return emit(check(source).unwrap(), source.text).rstrip("\n")


_STAGES = {
    "text": _text,
    "tree": _tree,
    "ir": _ir,
    "facts": _facts,
    "needs": _needs,
    "steps": _steps,
    "python": _python,
}
