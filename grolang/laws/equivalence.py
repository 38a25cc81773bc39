"""Are these two methods the same? First a proof, then a search for a batch that tells them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from grolang.compiler.method import Method, from_source
from grolang.language.ir import Law
from grolang.language.source import Source
from grolang.laws.claims import Pair, Verdict, claimed, search
from grolang.laws.proof import proved_equal

_LAW = "asked"


def asked(
    left: Method,
    right: Method,
    *,
    settings: Sequence[str] = (),
    exchanges: Sequence[str] = (),
    proportional: bool = False,
) -> Pair:
    """The pair for a question: `settings` as `p = v` for both sides, `exchanges` as `X = EXPR` in `left`'s words.

    Raises GroError where one of them does not check.
    """
    claim = f"{'proportional to' if proportional else 'equals'} {left.name}"
    claim += f" with {', '.join(settings)}" if settings else ""
    claim += f" when {', '.join(exchanges)}" if exchanges else ""
    return claimed(_law(left, claim), left, right.ir)


def _law(method: Method, claim: str) -> Law:
    """A claim in the language, read as a law of the method."""
    source = method.sources[method.path]
    return from_source(Source(source.name, f"{source.text}\nlaw {_LAW}: {claim}\n", source.built_in)).ir.laws[_LAW]


def equivalence(pair: Pair, *, examples: int = 200, seed: int = 0) -> Verdict:
    """`proved`, `held` on so many batches, or `failed` with the smallest counterexample."""
    if not pair.proportional and proved_equal(pair.program):
        return Verdict(pair.name, "", "proved")
    return replace(search(pair, examples=examples, seed=seed), law=pair.name)


def matrix(methods: Sequence[Method], *, examples: int = 50, seed: int = 0) -> dict[tuple[str, str], Verdict]:
    """Each pair of methods that learn from the same data."""
    found: dict[tuple[str, str], Verdict] = {}
    for place, left in enumerate(methods):
        for right in methods[place + 1 :]:
            if left.data == right.data:
                found[left.name, right.name] = equivalence(asked(left, right), examples=examples, seed=seed)
    return found
