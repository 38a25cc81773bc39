"""Text to trees: each statement is parsed by itself, and what does not parse is worded, never shown raw."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache, lru_cache

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from grolang.language.findings import Findings, suggested
from grolang.language.functions import BINARY, CALLABLE
from grolang.language.habits import slip
from grolang.language.source import QUIET, Source, Span, statements
from grolang.language.tables import load

MAX_BYTES = 256 * 1024
MAX_STATEMENTS = 2000
MAX_WORDS = 20_000
MAX_NESTING = 100
MAX_DIGITS = 40


@dataclass(frozen=True)
class Statement:
    """One parsed statement and where its text starts; positions in the tree count from there."""

    source: Source
    start: int
    end: int
    tree: Tree[Token]
    place: Span | None = None  # where it is shown, if it is not the author's

    @property
    def kind(self) -> str:
        return str(self.tree.data)

    @property
    def span(self) -> Span:
        return Span(file=self.source.name, start=self.start, end=self.end)

    def span_of(self, part: Tree[Token] | Token) -> Span:
        if self.place is not None:
            return self.place
        if isinstance(part, Token):
            start, end = part.start_pos or 0, part.end_pos or 0
        else:
            start, end = part.meta.start_pos, part.meta.end_pos
        return Span(file=self.source.name, start=self.start + start, end=self.start + end)

    def text_of(self, part: Tree[Token] | Token) -> str:
        """The author's own spelling of a part, on one line."""
        return self.source.quoted(self.span_of(part))


def branches(tree: Tree[Token]) -> list[Tree[Token]]:
    """The trees directly below a tree."""
    return [child for child in tree.children if isinstance(child, Tree)]


def operator(tree: Tree[Token]) -> str | None:
    """The function of the table that a tree of an operator applies to its branches, as they stand."""
    match str(tree.data):
        case "binary":
            return BINARY[str(tree.children[1])].name
        case "negative":
            return "negate"
        case "not_" | "and_" | "or_" as rule:
            return rule.rstrip("_")
    return None


@cache
def parser() -> Lark:
    """The parser of one statement."""
    return load()


@cache
def tree_of(expression: str) -> Tree[Token]:
    """The tree of an expression of grolang's own."""
    (body,) = branches(parser().parse(f"d = {expression}"))
    return body


_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_WORD = re.compile(r"\w+|[^\w\s]")
#: what the statement, or one that it runs on into, would declare: the first two words
_DECLARES = re.compile(r"(?:\A|^[ \t]+(?=data\b|[\w \t]+=(?!=)))(\w+)(?:[ \t]+(\w+))?", re.MULTILINE)


@dataclass
class Parsed:
    """All statements that parse, a finding for each that does not, and the names that those were to declare."""

    statements: list[Statement] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    broken: set[str] = field(default_factory=set)


@lru_cache(maxsize=128)  # a folder of methods names most of its files more than once, by `extends` and in laws
def parse(source: Source) -> Parsed:
    """Parse every statement of a source by itself. Nobody may change what it gives."""
    out, cuts = Parsed(), list(statements(source.text))
    parsed, found = out.statements, out.findings
    if more := _past_bounds(source.text, cuts):
        found.add("E104", f"the file {more}", Span(file=source.name, start=0, end=0), help=_SMALLER)
        return out
    if (control := _CONTROL.search(source.text)) is not None:
        place = Span(file=source.name, start=control.start(), end=control.end())
        found.add("E102", f"a control character stands in the text: U+{ord(control[0]):04X}", place, help="delete it")
        return out
    for start, end in cuts:
        text = source.text[start:end]
        span = Span(file=source.name, start=start, end=end)
        if source.place(start)[1] > 1 and not parsed and not found:
            message = "the first statement is indented, so it would continue a statement that is not there"
            found.add("E103", message, span.model_copy(update={"end": start + 1}), help="start it in column 1")
        if problem := _too_much(text, span):
            found.add("E104", *problem, help=_SMALLER)
            continue
        try:
            parsed.append(Statement(source, start, end, parser().parse(text)))
        except UnexpectedInput as error:
            _word(error, text, span, found)
            for declares in _DECLARES.finditer(text):
                out.broken.update(word for word in declares.groups() if word)
    return out


_SMALLER = "split the method, or simplify it"


def _past_bounds(text: str, cuts: list[tuple[int, int]]) -> str:
    """What a file has more of than the language allows; blank where it is within all bounds."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        return f"is larger than {MAX_BYTES // 1024} KiB"
    if len(cuts) > MAX_STATEMENTS:
        return f"has more than {MAX_STATEMENTS} statements"
    words = sum(1 for start, end in cuts for _ in _WORD.finditer(text, start, end))
    return f"has more than {MAX_WORDS} words and signs" if words > MAX_WORDS else ""


def _too_much(text: str, span: Span) -> tuple[str, Span] | None:
    """What a statement has more of than the language allows, and the place to show."""
    text, first = QUIET.sub(" ", text), span.model_copy(update={"end": span.start + 1})
    depth = digits = 0
    prefix = 0  # a run of unary minus, `not`, `^` or `else` nests as deeply as parentheses do
    for word in text.replace("(", " ( ").replace(")", " ) ").replace("-", " - ").replace("^", " ^ ").split():
        depth += (word == "(") - (word == ")")
        prefix += word in ("-", "^", "not", "else")
        if depth > MAX_NESTING:
            return f"nested more than {MAX_NESTING} deep", first
    if prefix > 20 * MAX_NESTING:
        return f"more than {20 * MAX_NESTING} signs in one statement", span
    for char in text:
        digits = digits + 1 if char.isdigit() else 0
        if digits > MAX_DIGITS:
            return f"a number with more than {MAX_DIGITS} digits", first
    return None


# --- wording -------------------------------------------------------------------------------------------------

_STATEMENT = {"METHOD", "EXTENDS", "DATA", "GROUP", "PARAM", "SCORE", "AGGREGATE", "REPORT", "LAW"}
_EXPRESSION = {"NUMBER", "NAME", "LPAR", "MINUS"}
_OPERATORS = {"PLUS", "MINUS", "STAR", "SLASH", "POWER", "COMPARE", "AND", "OR", "IF"}
_CLAIMS = {"LOSS", "EQUALS", "PROPORTIONAL", "INVARIANT", "UNBIASED"}
_WORDS = {
    "NAME": "a name",
    "NUMBER": "a number",
    "INF": "`inf`",
    "TEXT": 'a text in "quotes"',
    "EQUAL": "`=`",
    "COLON": "`:`",
    "COMMA": "`,`",
    "OVER": "`over` and an axis",
    "LPAR": "`(`",
    "RPAR": "`)`",
    "OPEN": "`(` or `[`",
    "CLOSE": "`)` or `]`",
    "PLUS": "`+`",
    "MINUS": "`-`",
    "SLASH": "`/`",
    "$END": "the end of the statement",
}


def wording(accepted: frozenset[str]) -> str:
    """What a parser state accepts, in the author's words: "`over` and an axis", "an expression"."""
    rest = {name.lstrip("_") for name in accepted}
    parts: list[str] = []

    def take(group: set[str], words: str, needed: set[str] | None = None) -> None:
        if (needed or group) <= rest:
            parts.append(words)
            rest.difference_update(group)

    if "STAR" in rest:
        rest.discard("LPAR")  # a call is spelled by its name; after it an operator is what is missing
    take(_STATEMENT | {"NAME"}, "a statement: `method`, `data`, `param`, …, or `NAME = EXPRESSION`")
    take(_CLAIMS, "`loss`, `equals`, `proportional to`, `invariant when` or `unbiased`")
    take(_EXPRESSION | {"NOT"}, "an expression", _EXPRESSION)
    take({"NUMBER", "MINUS", "INF", "NAME"}, "a number or a parameter")
    take({"NUMBER", "MINUS", "INF"}, "a number")
    end = "$END" in rest
    rest.discard("$END")
    for name in ("OVER", "RPAR", "COMMA", "ELSE", "WITH", "WHEN", "TEXT", "IN", "AGGREGATE"):
        if name in rest:
            rest.discard(name)
            parts.append(_WORDS.get(name, f"`{name.lower()}`"))
    take(_OPERATORS, "an operator", {"STAR", "POWER"})
    rest.difference_update(_OPERATORS if "an operator" in parts else set())
    parts += [_WORDS.get(name, f"`{name.lower()}`") for name in sorted(rest)]
    if end:
        parts.append(_WORDS["$END"])
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " or " + parts[-1]


def _word(error: UnexpectedInput, text: str, span: Span, findings: Findings) -> None:
    """Say what the parser expected, and what it found."""
    accepted, before = _state(text)
    if isinstance(error, UnexpectedToken) and error.token.type != "$END":
        found, place = str(error.token), error.token.start_pos or 0
    elif isinstance(error, UnexpectedCharacters):
        place = error.pos_in_stream or 0
        found = text[place]
    else:
        found, place = "", len(text)
    expected = _NAMES.get(before, "") if accepted == {"NAME"} else ""
    if accepted == {"NAME"} and not expected and text.startswith("aggregate"):
        expected = "`sum over AXIS` or `mean over AXIS`"
    expected = expected or wording(accepted)
    what = f"found `{_shown(found)}`" if found else "but the statement ends"
    at = Span(file=span.file, start=span.start + place, end=span.start + place + max(len(found), 1))
    help = slip(text, place, accepted) or _edit(found, before, text[:place], text[place:], accepted, expected)
    findings.add("E101", f"expected {expected}, {what}", at, help=help)


#: what a name stands for, by the word before it
_NAMES = {
    "over": "an axis, such as `tokens`",
    "equals": "the name of a method",
    "to": "the name of a method",
    "extends": "the name of a method",
    "method": "the method's name",
    "data": "a kind of data: `preference`, `unpaired`, `prompts` or `demonstrations`",
}


def _state(text: str) -> tuple[frozenset[str], str]:
    """What is acceptable where the parser stops, and the word before that place."""
    steps = parser().parse_interactive(text)
    last = ""
    try:
        for token in steps.iter_parse():
            last = str(token)
    except UnexpectedInput:
        pass
    accepted = steps.accepts()  # type: ignore[no-untyped-call]  # lark has no type for it
    return frozenset(name.lstrip("_") for name in accepted), last


def _shown(text: str) -> str:
    if not text.isprintable():
        return "".join(f"U+{ord(char):04X}" for char in text)
    return text


def _edit(found: str, before: str, left: str, right: str, accepted: frozenset[str], expected: str) -> str:
    """What to write where, by what could stand here; `left` and `right` are the statement's text on its two sides."""
    shown = f"`{_shown(found)}`"
    word = bool(found) and (found.isidentifier() or found[0].isdigit())
    if not found:
        return f"add it after `{before}`"
    if accepted >= _CLAIMS:
        return suggested(found, [claim.lower() for claim in _CLAIMS], f"write `loss` before {shown}")
    if before == "over" and re.search(r",\s*over\s*$", left):
        return "delete the comma before `over`"
    if found == "," and accepted == {"RPAR"} and "=" not in left:
        return "`omega` and `upsilon` have one argument: close the parenthesis after it"
    if found == "," and accepted <= {"RPAR", "CLOSE"}:
        return f"delete `{re.split(r'[])]', right)[0].strip()}`"
    if found in (",", "and") and "PLUS" in accepted and "STAR" not in accepted:
        return f"write `+` for `{found}`"
    if found == "over" and "$END" in accepted:
        return "put what is reduced into a call: `mean(x over group)`"
    if accepted == {"EQUAL", "LPAR"} and word:
        return suggested(
            before, [name.lower() for name in _STATEMENT], f"write `{before}_{found}`: a name has no blanks"
        )
    twice = re.search(rf"(?<!\w){re.escape(found)}\s*$", left)
    if twice or ("$END" in accepted and found in _CLOSING) or ("NUMBER" in accepted and found in _SIGNS):
        return f"delete {shown}"
    if "$END" in accepted and (found == "," or len(accepted) == 1):
        return f"delete {shown}" if right.strip() == found else f"delete what stands from {shown} on"
    if "STAR" in accepted and (word or found == "("):
        return f"write `{before}(…)`" if before in CALLABLE else f"write `*` before {shown}"
    if (len(accepted) == 1 and not (word and "NAME" in accepted)) or found == ")":
        return f"write {expected.split(', such')[0]} before {shown}"
    return f"replace {shown}"


_CLOSING = {")", "]"}
_SIGNS = {"*", "/", "+", "^", "="}  # that stand where no operand is before them
