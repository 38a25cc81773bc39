"""One canonical layout for a file: spacing, alignment and line breaks; never a word, a spelling or a comment.

The text is laid out again from the parser's own tokens, so that nothing but blanks can change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lark import Token

from grolang.language.diagnostics import GroError
from grolang.language.source import Source
from grolang.language.syntax import Statement, parse, parser

WIDTH = 110
INDENT = "    "
MAX_ALIGNED = 30  # a longer name stands out of its block instead of pushing the whole block to the right

_ENDS_OPERAND = {"NAME", "NUMBER", "INF", "RPAR", "CLOSE"}
_NO_BLANK_BEFORE = {"RPAR", "CLOSE", "COMMA", "COLON"}
_OPENING = {"LPAR", "OPEN"}

#: where a line may break, loosest first: after these tokens …
_BREAK_AFTER = {"COMMA": 0, "OR": 2, "AND": 3, "COMPARE": 4, "PLUS": 5, "MINUS": 5, "STAR": 6, "SLASH": 6, "POWER": 7}
#: … and before these
_BREAK_BEFORE = {"WITH": -1, "WHEN": -1, "AGGREGATE": -1, "TEXT": 0, "IF": 1, "ELSE": 1, "OVER": 1, "IN": 2}
#: deeper than any parenthesis: a break after `=`, `:` or `(` is the last resort
_LAST_RESORT = {"EQUAL": 1000, "COLON": 1000, "LPAR": 1001}

#: statements whose `=` stand below each other, by the kind of their block
_ALIGNED = {"definition": "definition", "function": "definition", "aggregate": "definition", "report": "report"}


@dataclass
class _Word:
    """A word of a statement: the blanks before it, how well a line breaks after it, and the comments there.

    A break is (depth, tier), the smallest one is taken first; a comment is (whether it has its own line, text).
    """

    text: str
    blank: str
    breaks: tuple[int, int] | None
    comments: list[tuple[bool, str]]


@dataclass
class _Line:
    """A statement as words; `block` is the kind of block in which its `=`, the word `equals`, is aligned."""

    block: str
    words: list[_Word]

    @property
    def equals(self) -> int:
        return next(place for place, word in enumerate(self.words) if word.text == "=")

    @property
    def head(self) -> int:
        """Width of what stands before `=`; 0 where it is not to be aligned."""
        before = self.words[: self.equals] if self.block else []
        if any(word.comments for word in before):
            return 0
        width = sum(len(word.blank + word.text) for word in before)
        return width if width <= MAX_ALIGNED else 0


def format_text(text: str, name: str = "text") -> str:
    """The text in canonical form: the same tree, every comment, the author's spelling; formatting it again changes
    nothing.

    Raises GroError with every syntax finding where a statement does not parse.
    """
    source = Source(name, text.replace("\r\n", "\n"))
    read = parse(source)
    if read.findings:
        raise GroError(read.findings, {name: source})
    items: list[str | _Line] = []
    end = 0
    for statement in read.statements:
        items += _between(source.text[end : statement.start], after=end > 0, before=True)
        items.append(_line(statement))
        end = statement.end
    items += _between(source.text[end:], after=end > 0, before=False)
    _align(items)
    return "".join(f"{line}\n" for line in _joined(items))


def one_line(statement: Statement) -> str:
    """A statement on one line, spaced as in a formatted file, without its comments."""
    return _text(_line(statement).words, first=True)


def _between(gap: str, *, after: bool, before: bool) -> list[str | _Line]:
    """The comment and blank lines between two statements; a blank line is ""."""
    lines = gap.split("\n")
    # The ends of the gap lie on the statements' own lines.
    return [line.strip() for line in lines[1 if after else 0 : -1 if before else None]]


def _line(statement: Statement) -> _Line:
    text = statement.source.text[statement.start : statement.end]
    tokens = list(parser().parse_interactive(text).exhaust_lexer())
    words = list[_Word]()
    depth = 0
    previous: Token | None = None
    unary = False
    for token, following in zip(tokens, [*tokens[1:], None]):
        blank = "" if previous is None or unary else _blank(previous, token)
        unary = token.type == "MINUS" and (previous is None or previous.type not in _ENDS_OPERAND)
        depth += (token.type in _OPENING) - (token.type in ("RPAR", "CLOSE"))
        breaks = None if following is None else _break(token, following, depth, unary)
        stop = len(text) if following is None else following.start_pos
        words.append(_Word(str(token), blank, breaks, list(_comments(text[token.end_pos : stop]))))
        previous = token
    return _Line(_ALIGNED.get(statement.kind, ""), words)


def _comments(gap: str) -> Iterator[tuple[bool, str]]:
    for number, line in enumerate(gap.split("\n")):
        if line.strip():
            yield number > 0, line.strip()


def _blank(left: Token, right: Token) -> str:
    tight = left.type in _OPENING or right.type in _NO_BLANK_BEFORE or (left.type, right.type) == ("NAME", "LPAR")
    return "" if tight else " "


def _break(left: Token, right: Token, depth: int, unary: bool) -> tuple[int, int] | None:
    """How well a line breaks between two words: by parentheses first, then by what binds loosest."""
    if unary:
        return None
    if left.type in _LAST_RESORT:
        return _LAST_RESORT[left.type] + depth, 0
    if right.type in _BREAK_BEFORE:
        return depth, _BREAK_BEFORE[right.type]
    return (depth, _BREAK_AFTER[left.type]) if left.type in _BREAK_AFTER else None


def _align(items: list[str | _Line]) -> None:
    """Put the `=` of neighbouring statements below each other."""
    block: list[_Line] = []
    for item in [*items, ""]:
        if isinstance(item, _Line) and item.block and (not block or item.block == block[0].block):
            block.append(item)
            continue
        width = max((line.head for line in block), default=0)
        for line in block:
            if line.head:
                line.words[line.equals].blank = " " * (width - line.head + 1)
        block = [item] if isinstance(item, _Line) and item.block else []


def _joined(items: list[str | _Line]) -> Iterator[str]:
    """All lines, with at most one blank line in a row and none at either end."""
    blank = first = True
    for item in items:
        if item == "":
            blank = True
            continue
        if blank and not first:
            yield ""
        blank = first = False
        if isinstance(item, str):
            yield item
        else:
            yield from _laid_out(item.words)


def _laid_out(words: list[_Word]) -> Iterator[str]:
    """A statement on one line where it fits; a comment within it keeps its place, so a line ends there."""
    start = 0
    for stop, word in enumerate(words, 1):
        if not word.comments and stop < len(words):
            continue
        *full, last = _filled(words[start:stop], first=start == 0)
        yield from full
        beside = [text for own, text in word.comments if not own]
        yield "  ".join([last, *beside])
        yield from (INDENT + text for own, text in word.comments if own)
        start = stop


def _filled(words: list[_Word], *, first: bool) -> Iterator[str]:
    """Words on as few lines as fit, broken where they belong together least."""
    while cut := _cut(words, first):
        yield _text(words[:cut], first=first)
        words, first = words[cut:], False
    yield _text(words, first=first)


def _cut(words: list[_Word], first: bool) -> int:
    """How many words a line takes, cut at the best of the last places where it can be; 0 where all fit, or none can."""
    cut, best = 0, None
    for count in range(1, len(words) + 1):
        if cut and len(_text(words[:count], first=first)) > WIDTH:
            return cut
        here = words[count - 1].breaks
        if here is not None and count < len(words) and (best is None or here <= best):
            cut, best = count, here
    return 0


def _text(words: list[_Word], *, first: bool) -> str:
    """Words on one line, indented unless it is a statement's first."""
    inner = "".join(word.blank + word.text for word in words[1:])
    return ("" if first else INDENT) + words[0].text + inner
