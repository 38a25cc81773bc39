"""A method's family: what it extends, what laws say it equals, and which built-in methods say so of it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from grolang.explain.document import Code, Link, Words, listed
from grolang.explain.printer import Printer
from grolang.language import library
from grolang.language.checker import check
from grolang.language.ir import Law, MethodIR


def relatives(method: MethodIR) -> tuple[Words, ...]:
    """Sentences, its own claims first."""
    rows: list[Words] = []
    if method.parents:
        rows.append(("Extends ", *listed([_named(name) for name in method.parents]), "."))
    rows += [("It ", *_claim(method, law), ".") for law in method.laws.values() if law.method is not None]
    children, claims = [], []
    for other in _mentioning(method.name):
        if method.name in other.parents:
            children.append(_named(other.name))
        claims += [
            (*_named(other.name), " ", *_claim(other, law), ".")
            for law in other.laws.values()
            if law.method == method.name
        ]
    if children:
        rows.append(("Extended by ", *listed(children), "."))
    return (*rows, *claims)


def _mentioning(name: str) -> Iterator[MethodIR]:
    """The built-in methods whose text extends this one, or has a law about it; only they are checked."""
    pattern = re.compile(rf"\b(?:extends|equals|to)\s+{re.escape(name)}\b")
    texts = {key: source.text for key, source in library.built_in().items()}
    wanted = {key for key, text in texts.items() if pattern.search(text) and key != name}
    while more := {key for key, text in texts.items() if key not in wanted | {name} and _extends(text, wanted)}:
        wanted |= more
    for key in sorted(wanted):
        if (other := check(library.built_in()[key]).method) is not None:
            yield other


def _extends(text: str, names: set[str]) -> bool:
    found = re.search(r"^extends\s+(\w+)", text, re.MULTILINE)
    return found is not None and found[1] in names


def _named(name: str) -> Words:
    return (Link(name) if name in library.built_in() else Code(name),)


def _claim(method: MethodIR, law: Law) -> Words:
    """`equals dpo with gamma = 1 when log π_ref is 0`"""
    printer = Printer(method)
    relation = "equals " if law.claim == "equals" else "is proportional to "
    words: Words = (relation, *_named(law.method or ""))
    settings = [(Code(f"{name} = {value:g}"),) for name, value in law.settings.items()]
    words += (" with ", *listed(settings)) if settings else ()
    changes = []
    for name, expr in law.exchanges.items():
        replaced, by = printer.exchange(name, expr)
        changes.append((replaced, " is ", by))
    words += (" where ", *listed(changes)) if changes else ()
    return (*words, " (law ", Code(law.name), ")")
