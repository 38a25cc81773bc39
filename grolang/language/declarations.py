"""What a file says, statement by statement, after `extends`: each thing once, each under a name it may take."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from lark import Token, Tree

from grolang.language import library
from grolang.language.components import COMPONENTS, FUNCTION_COMPONENTS, LETTERS
from grolang.language.diagnostics import Diagnostic
from grolang.language.findings import Findings, suggested
from grolang.language.functions import KEYWORDS, OBSERVABLES, TAKEN
from grolang.language.habits import DECLARED
from grolang.language.source import NOWHERE, Source, Span
from grolang.language.syntax import Statement, branches, parse

MAX_EXTENDS = 16
MAX_NODES = 10_000
MAX_DEPTH = 200

#: what a name is written as in the table, whatever the author's spelling
Key = tuple[str, str]
_NAMED = {"param": "name", "score": "name", "definition": "name", "function": "name", "report": "report", "law": "law"}


def canonical(name: str) -> str:
    """One form for every spelling of a name: NFKC as in Python, and `ω` for `omega`."""
    name = unicodedata.normalize("NFKC", name)
    return LETTERS.get(name, name)


@dataclass
class Declarations:
    """Every statement in force by what it declares, the method's own name and title, and the files read."""

    name: str = ""
    title: str = ""
    place: Span = NOWHERE
    parents: tuple[str, ...] = ()
    extends: Span | None = None  # where the file itself extends another
    table: dict[Key, Statement] = field(default_factory=dict)
    laws: dict[str, Statement] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    incomplete: bool = False  # a method that it extends is not to be had, or no statement parses
    broken: set[str] = field(default_factory=set)  # names and keywords of statements that do not parse

    def of_kind(self, kind: str) -> Iterator[tuple[str, Statement]]:
        """Name and statement of each declaration of a kind, in the order of the file."""
        for (_, name), statement in self.table.items():
            if statement.kind == kind:
                yield name, statement

    def one(self, kind: str) -> Statement | None:
        """The statement of a kind that a file has once: `data`, `group`, `aggregate`."""
        return self.table.get((kind, ""))

    def named(self, name: str) -> Statement | None:
        """What declares a name that expressions may use."""
        return self.table.get(("name", name))

    @property
    def names(self) -> set[str]:
        """Every such name."""
        return {name for space, name in self.table if space == "name"}

    def used(self) -> set[str]:
        """Every name that stands in a statement, apart from the one that it declares."""
        words = (
            canonical(str(word))
            for statement in (*self.table.values(), *self.laws.values())
            for tree in branches(statement.tree)
            for word in tree.scan_values(lambda part: isinstance(part, Token))
        )
        return set(words)


@contextmanager
def room_to_nest() -> Iterator[None]:
    """Expressions nest up to MAX_DEPTH, and a visitor takes a few Python frames a level."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, 20 * MAX_DEPTH))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def leaf(statement: Statement, index: int = 0) -> Token:
    """The index-th word directly below a statement."""
    token = statement.tree.children[index]
    assert isinstance(token, Token)
    return token


def text(token: Token | Tree[Token] | None) -> str:
    """The text between quotes."""
    return "" if token is None else str(token)[1:-1].replace('\\"', '"').replace("\\\\", "\\")


def declare(source: Source, findings: Findings) -> Declarations:
    """Read a file and what it extends."""
    found = Declarations()
    _read(source, found, findings, chain=())
    statements = [*found.table.values(), *found.laws.values()]
    nodes = sum(sum(1 for _ in statement.tree.iter_subtrees()) for statement in statements)
    if nodes > MAX_NODES:
        findings.add("E104", f"the method has more than {MAX_NODES} parts", found.place, help="simplify it")
    if (deepest := _deepest(found)) is not None:
        message = f"definitions that use each other more than {MAX_DEPTH} deep"
        findings.add("E104", message, _head(deepest), help="write some of them out")
    return found


def _deepest(found: Declarations) -> Statement | None:
    """A definition that nests too deep, counted through the definitions that it uses."""
    definitions = dict(found.of_kind("definition"))
    depths: dict[str, int] = {}
    for start in definitions:
        stack = [start]  # no recursion: a chain of definitions may be as long as the file
        while stack:
            name = stack[-1]
            tree = definitions[name].tree
            words = {canonical(str(word)) for word in tree.scan_values(lambda part: isinstance(part, Token))}
            below = words & definitions.keys() - {name}
            if waiting := below - depths.keys() - set(stack):
                stack.append(min(waiting))
                continue
            stack.pop()
            depths[name] = _depth(tree) + max((depths.get(other, 0) for other in below), default=0)
            if depths[name] > MAX_DEPTH:
                return definitions[name]
    return None


def _read(source: Source, found: Declarations, findings: Findings, chain: tuple[Source, ...]) -> None:
    """Add a file's statements: first its parent's, then its own in their place."""
    found.sources[source.name] = source
    read = parse(source)
    parsed, problems = read.statements, read.findings
    findings.extend(problems)
    found.broken |= {canonical(name) for name in read.broken}
    found.incomplete |= not parsed or any(word.startswith("extend") for word in read.broken)
    own = _once(parsed, findings)
    method = own.pop(("method", ""), None)
    if any(problem.code in ("E102", "E104") for problem in problems):
        found.incomplete = True
    elif "method" not in found.broken and not (problems and not parsed):
        _check_method(method, source, parsed, problems, findings)
    if parent := own.pop(("extends", ""), None):
        _extend(parent, source, found, findings, chain)
    found.laws = {name: law for (kind, name), law in own.items() if kind == "law"}
    found.table |= {key: statement for key, statement in own.items() if key[0] != "law"}
    if method is not None:
        found.name, found.title = str(leaf(method)), text(method.tree.children[1])
        found.place = _head(method)
    else:
        found.place = Span(file=source.name, start=0, end=0)


def _once(statements: list[Statement], findings: Findings) -> dict[Key, Statement]:
    """A file's own statements by what they declare; a finding for each that is too deep, or says a thing again."""
    own: dict[Key, Statement] = {}
    for statement in statements:
        if _depth(statement.tree) > MAX_DEPTH:
            help = "name parts of it in definitions of their own"
            findings.add("E104", f"an expression more than {MAX_DEPTH} deep", _head(statement), help=help)
            continue
        space, name = key = _key(statement)
        if key in own:
            message, notes = f"`{name or statement.kind}` is said twice", [(_head(own[key]), "first said here")]
            help = "delete one of the two"
            findings.add("E202", message, _head(statement), label="again here", notes=notes, help=help)
            continue
        own[key] = statement
        if space == "name":
            _check_name(statement, findings)
    return own


def _depth(tree: Tree[Token]) -> int:
    """Levels of a tree, counted without recursion."""
    deepest, level = 0, [tree]
    while level:
        deepest += 1
        level = [child for node in level for child in node.children if isinstance(child, Tree)]
    return deepest


def _key(statement: Statement) -> Key:
    space = _NAMED.get(statement.kind)
    if space is None:
        return statement.kind, ""
    return space, canonical(str(leaf(statement)))


def _head(statement: Statement) -> Span:
    """The word that names what a statement declares, else its keyword."""
    if statement.kind in _NAMED or statement.kind in ("method", "extends"):
        return statement.span_of(leaf(statement))
    return statement.span.model_copy(update={"end": statement.start + len(statement.kind)})


def _check_method(
    method: Statement | None, source: Source, parsed: list[Statement], problems: list[Diagnostic], findings: Findings
) -> None:
    start = Span(file=source.name, start=0, end=0)
    if method is None:
        findings.add("E105", "the file does not name its method", start, help='begin it with `method NAME "title"`')
    elif parsed[0] is not method and not problems:
        findings.add(
            "E105",
            "`method` is not the first statement",
            _head(method),
            notes=[(_head(parsed[0]), "this stands before it")],
            help="move the `method` line to the top",
        )


def _check_name(statement: Statement, findings: Findings) -> None:
    """A definition may not take the name of an observable, a function, a component's kind or a keyword."""
    token = leaf(statement)
    name, spelled = canonical(str(token)), str(token)
    span = statement.span_of(token)
    kind = {"definition": "definition", "param": "parameter", "score": "score"}.get(statement.kind)
    if statement.kind == "function":
        if name not in FUNCTION_COMPONENTS:
            help = suggested(name, FUNCTION_COMPONENTS, f"write `{name} = …`, or put it into `omega` or `upsilon`")
            findings.add("E205", f"`{spelled}` is not a function component", span, help=help)
        return
    for names, what in ((OBSERVABLES, "an observable"), (TAKEN, "a function"), (KEYWORDS, "a keyword")):
        if name in names:
            help = DECLARED.get(name, f"call it `my_{name}`")
            findings.add("E203", f"`{spelled}` is {what}: a {kind} needs a name of its own", span, help=help)
            return
    if name in FUNCTION_COMPONENTS:
        argument = FUNCTION_COMPONENTS[name].argument
        help = f"write `{spelled}({argument}) = …`" if statement.kind == "definition" else f"call it `my_{name}`"
        findings.add("E203", f"`{spelled}` is a function of one argument", span, help=help)
    elif name in COMPONENTS and statement.kind != "definition":
        help = f"give it another name and write `{name} = NAME`"
        findings.add("E203", f"`{spelled}` is a component: a {kind} needs a name of its own", span, help=help)


def _extend(
    statement: Statement, source: Source, found: Declarations, findings: Findings, chain: tuple[Source, ...]
) -> None:
    name = str(leaf(statement))
    span = statement.span_of(leaf(statement))
    parent = library.sibling(name, source)
    if parent is None:
        help = suggested(name, library.built_in(), f"put `{name}.gro` into the same folder")
        findings.add("E601", f"there is no method `{name}` to extend", span, help=help)
        found.incomplete = True
        return
    known = [earlier.resolved for earlier in (*chain, source)]
    if parent.resolved in known:
        way = [*(earlier.name for earlier in (*chain, source)), parent.name]
        way = way[known.index(parent.resolved) :]
        findings.add("E603", f"a method extends itself: {' → '.join(way)}", span, help="extend another method")
        found.incomplete = True
        return
    if len(chain) + 1 > MAX_EXTENDS:
        findings.add(
            "E104", f"`extends` goes more than {MAX_EXTENDS} deep", span, help="extend a method nearer the top"
        )
        return
    found.parents = (*found.parents, name)
    found.extends = found.extends or span
    _read(parent, found, findings, (*chain, source))
