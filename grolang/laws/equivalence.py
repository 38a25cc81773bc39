"""Are these two methods the same? First a proof, then a search for a batch that tells them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from grolang.compiler.method import Method, from_source
from grolang.language.ir import Expr, Law
from grolang.language.source import Source
from grolang.laws.claims import Pair, Verdict, claimed, search
from grolang.laws.proof import proved_equal


def asked(
    left: Method,
    right: Method,
    *,
    settings: Mapping[str, float] | None = None,
    exchanges: Sequence[str] = (),
    proportional: bool = False,
) -> Pair:
    """The pair for a question: parameters for the sides that have them, `X = EXPR` in `left`'s words.

    Raises GroError where an exchange does not check, or no side has a parameter.
    """
    claim: Literal["equals", "proportional"] = "proportional" if proportional else "equals"
    law = Law(
        name="asked",
        claim=claim,
        method=right.name,
        settings=dict(settings or {}),
        span=left.ir.definitions["advantage"].span,
    )
    if exchanges:
        law = law.model_copy(update={"exchanges": _read(left, exchanges)})
    return claimed(law, left, right.ir)


def _read(method: Method, exchanges: Sequence[str]) -> dict[str, Expr]:
    """`X = EXPR` as a law of the method reads it."""
    source, name = method.sources[method.path], "asked"
    while name in method.ir.laws:
        name += "_"
    line = f"law {name}: invariant when {', '.join(exchanges)}"
    return from_source(Source(source.name, f"{source.text}\n{line}\n", source.built_in)).ir.laws[name].exchanges


def equivalence(pair: Pair, *, examples: int = 200, seed: int = 0) -> Verdict:
    """`proved`, `held` on so many batches, or `failed` with a small counterexample."""
    if not pair.proportional and proved_equal(pair.program):
        return Verdict(pair.name, "proved")
    return search(pair, examples=examples, seed=seed)


def matrix(methods: Sequence[Method], *, examples: int = 50, seed: int = 0) -> dict[tuple[str, str], Verdict]:
    """Each pair of methods that learn from the same data."""
    found: dict[tuple[str, str], Verdict] = {}
    for place, left in enumerate(methods):
        for right in methods[place + 1 :]:
            if left.data == right.data:
                found[left.name, right.name] = equivalence(asked(left, right), examples=examples, seed=seed)
    return found
