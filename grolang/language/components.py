"""The components of the estimator (LANGUAGE.md, 2): a row each, with what it is where an author leaves it out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Component:
    """A part of the estimator that a file may define.

    `default` is its text in the language, blank where there is none; `argument` is that of a function, `of` what the
    estimator gives it; `letter` is another spelling of the name; `reader` is the one part that looks at it, where a
    method may do without.
    """

    name: str
    default: str = ""
    argument: str = ""
    of: tuple[str, ...] = ()
    letter: str = ""
    reader: str = ""


_OMEGA = "an `omega` of its argument"
_ROWS = (
    Component("reward"),
    Component("baseline", "0", reader="the default `advantage`"),
    Component("advantage", "reward - baseline"),
    Component("measure", "logp", reader=_OMEGA),
    Component("anchor", "0", reader=_OMEGA),
    Component("alpha", "1", letter="α", reader=_OMEGA),
    Component("credit", "1"),
    Component("penalty", "0"),
    Component("upsilon", "a", "a", ("advantage",), "υ"),
    Component("omega", "1", "z", ("alpha", "measure", "anchor"), "ω"),
)

COMPONENTS = {row.name: row for row in _ROWS if not row.argument}
FUNCTION_COMPONENTS = {row.name: row for row in _ROWS if row.argument}
#: other spellings of their names
LETTERS = {row.letter: row.name for row in _ROWS if row.letter}
