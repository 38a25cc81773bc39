"""A loss with everything that it is made of, as statements of text: what `lift` starts from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lark import Token, Tree

from grolang.language.checker import KINDS
from grolang.language.components import COMPONENTS
from grolang.language.declarations import canonical, declare, leaf
from grolang.language.diagnostics import GroError
from grolang.language.findings import Findings, nearest
from grolang.language.functions import CALLABLE, FORMS, OBSERVABLES, Form, Observable
from grolang.language.ir import Law, MethodIR
from grolang.language.misuse import DATA_OF
from grolang.language.scopes import REDUCED
from grolang.language.source import Source
from grolang.language.syntax import Statement, parse, parser

#: completions drawn for a prompt where a loss compares them and nothing says how many
GROUP = 8

#: components that the author left out
DEFAULTS = {name: row.default for name, row in COMPONENTS.items() if row.default}


@dataclass(frozen=True)
class Question:
    """A loss and the statements that a file with it needs.

    `statements` holds parameters, scores and definitions by name, each as its text; `claim` is what stands after
    `law NAME:`.
    """

    name: str
    title: str
    data: str
    claim: str
    law: str = "gradient"
    group: int | None = None
    statements: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """A file that checks and says no more than the loss."""
        lines = [f"method {self.name}", f"data {self.data}", *self.statements.values()]
        if not {"reward", "advantage"} & set(self.statements):
            lines.append("reward = 1")
        return "\n".join([*lines, f"law {self.law}: {self.claim}"]) + "\n"

    def needed(self, *texts: str) -> list[str]:
        """The statements that texts mention, directly or through others, in their order."""
        found: set[str] = set()
        waiting = list(texts)
        while waiting:
            for name in mentioned(waiting.pop()) & set(self.statements) - found:
                found.add(name)
                waiting.append(self.statements[name])
        return [name for name in self.statements if name in found]

    def renamed(self, names: Iterable[str]) -> Question:
        """Definitions under other names, where the lifted file has its own under these: `given_NAME`."""
        new = {name: f"given_{name}" for name in names}
        while any(name in self.statements for name in new.values()):
            new = {old: f"{name}_" for old, name in new.items()}
        statements = {new.get(name, name): _with_names(text, new) for name, text in self.statements.items()}
        return replace(self, statements=statements, claim=_with_names(self.claim, new))


def mentioned(text: str) -> set[str]:
    """The words of a text: a definition may have a keyword's name, `loss`."""
    return {canonical(str(word)) for word in _words(text)}


def _words(text: str) -> list[Token]:
    """The words of a statement, or of an expression."""
    return [word for word in parser().lex(text) if isinstance(word, Token)]


def _with_names(text: str, new: Mapping[str, str]) -> str:
    made, end = "", 0
    for word in _words(text):
        assert word.start_pos is not None and word.end_pos is not None
        made += text[end : word.start_pos] + (
            new.get(canonical(str(word)), str(word)) if word.type == "NAME" else str(word)
        )
        end = word.end_pos
    return made + text[end:]


def of_method(method: MethodIR, law: Law, sources: Mapping[str, Source]) -> Question:
    """The question that a law of a file asks."""
    declared = declare(sources[method.file], Findings())

    def text(statement: Statement) -> str:
        return statement.source.text[statement.start : statement.end]

    statement = declared.laws[law.name]
    claim = text(statement).split(":", 1)[1].strip()
    rows = {
        name: text(row)
        for (kind, name), row in declared.table.items()
        if kind == "name" and row.kind in ("param", "score", "definition")
    }
    rows = {name: f"{name} = {body}" for name, body in DEFAULTS.items() if name not in rows} | rows
    whole = Question(method.name, method.title, " + ".join(method.data), claim, law.name, method.group, rows)
    return replace(whole, statements={name: rows[name] for name in whole.needed(claim)})


def of_text(
    loss: str,
    *,
    name: str = "lifted",
    data: str | None = None,
    aggregate: str | None = None,
    params: Mapping[str, str] | None = None,
    scores: Sequence[str] = (),
    lets: Sequence[str] = (),
) -> Question:
    """The question of a loss that was typed. GroError names what nothing declares, and how to declare it."""
    claim = "loss " + " ".join(loss.split()) + (f" aggregate {aggregate}" if aggregate else "")
    lines = [f"param {word} = {value}" for word, value in (params or {}).items()]
    lines += [f"score {word.replace('=', ' = ')}" for word in scores] + [" ".join(let.split()) for let in lets]
    source = Source("loss", "\n".join([f"method {name}", *lines, f"law gradient: {claim}"]) + "\n")
    read = parse(source)
    if read.findings:
        raise GroError(read.findings, {source.name: source})
    head, *rows, law = read.statements
    statements = {canonical(str(leaf(row))): source.text[row.start : row.end] for row in rows}
    _known([*rows, law], set(statements), source)
    kind = data or _kind([*rows, law])
    groups = any(word in ("group", "others", "group_size") for row in (*rows, law) for word in _names(row.tree))
    return Question(
        str(leaf(head)),
        "",
        kind,
        claim,
        group=GROUP if "prompts" in kind and groups else None,
        statements=statements,
    )


def _names(tree: Tree[Token]) -> list[str]:
    words = (word for node in tree.iter_subtrees() for word in node.children)
    return [canonical(str(word)) for word in words if isinstance(word, Token) and word.type == "NAME"]


def _kind(statements: Sequence[Statement]) -> str:
    """The data that has what a loss uses."""
    words = {word for statement in statements for word in _names(statement.tree)}
    rows: list[Observable | Form] = [*OBSERVABLES.values(), *FORMS.values()]
    needs = {DATA_OF[row.data] for row in rows if row.data and row.name in words}
    for kind in KINDS:
        if needs and all(kind in need.kinds for need in needs):
            return "unpaired" if kind == "preference" and not words & _PAIRED else kind
    drawn = any(statement.kind == "score" for statement in statements) or words & {"group", "others", "logp_old"}
    return "prompts" if drawn else "demonstrations"


_PAIRED = {"chosen", "rejected", "opposite"}


def _known(statements: Sequence[Statement], given: set[str], source: Source) -> None:
    """Every name that an expression uses is declared; all that are not are said at once."""
    known = given | set(OBSERVABLES) | {"inf"}
    findings = Findings()
    for statement in statements:
        for node in statement.tree.iter_subtrees():
            if node.data != "name":
                continue
            (word,) = node.children
            assert isinstance(word, Token)
            name = canonical(str(word))
            if name in known or name in CALLABLE:
                continue
            near = nearest(name, known)
            say = f"--param {name}=0.1`, `--score {name}` or `--let '{name} = …'"
            if name in COMPONENTS or name in REDUCED:
                say = f"--let '{name} = …'"
            help = (f"did you mean `{near}`? Else declare" if near else "declare") + f" it: `{say}`"
            findings.add("E201", f"there is no `{word}`", statement.span_of(word), label="not known", help=help)
            known.add(name)
    if findings:
        raise GroError(findings, {source.name: source})
