"""`grolang list`: the built-in methods."""

from __future__ import annotations

from grolang.cli.paint import say, table


def list_methods() -> None:
    """List the built-in methods: name, data, what they need, title."""
    from grolang.compiler.lowering import lower
    from grolang.compiler.needs import needs
    from grolang.language import library
    from grolang.language.checker import check

    rows = [("NAME", "DATA", "NEEDS", "TITLE")]
    for source in library.built_in().values():
        method = check(source).unwrap()
        words = needs(lower(method), tuple(method.scores)).words
        rows.append((method.name, " + ".join(method.data), ", ".join(words) or "-", method.title))
    say(table(rows))
