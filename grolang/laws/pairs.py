"""The two responses of a pair as one: from the push of the chosen and that of the rejected to a push for both.

DPO's loss −logsigmoid(β·(m₊ − m₋)) looks at a response's own measure m and at the other's. In z = β·(m − opposite(m))

    the chosen response is pushed by β·sigmoid(−z), the rejected one by −β·sigmoid(z):

the same but for the sign of both the push and z, so both signs are the label's, and in z = label·β·(m − opposite(m))
the push of either is label · β·sigmoid(−z).
"""

from __future__ import annotations

from dataclasses import replace

import sympy
from sympy import Expr

from grolang.laws import algebra
from grolang.laws.book import LABEL, ONE, TOTAL, ZERO, Book, Z
from grolang.laws.push import Parts
from grolang.laws.terms import NoForm, affine


def joined(chosen: Parts, rejected: Parts, book: Book) -> Parts:
    """Both rows as one: the same omega for both, or with the label's sign, or one for each."""
    chosen, rejected = _filled(chosen, rejected), _filled(rejected, chosen)
    _unless_apart(chosen, rejected, book)
    mirrored = rejected.omega.xreplace({Z: -Z})
    for alpha, other in ((chosen.alpha * LABEL, mirrored), (chosen.alpha, rejected.omega)):
        if _same(chosen.omega, -other):
            return replace(chosen, alpha=alpha, advantage=LABEL)
        if _same(chosen.omega, other):
            return replace(chosen, alpha=alpha)
    return _one_each(chosen, rejected)


def _filled(push: Parts, other: Parts) -> Parts:
    """What a response leaves open is the other's: its distance where it looks at none, its credit where it is 0."""
    if not push.contrasts:
        push = replace(push, measure=other.measure, anchor=other.anchor, alpha=other.alpha)
    return replace(push, credit=other.credit, averaged=other.averaged) if push.omega == 0 else push


def _unless_apart(chosen: Parts, rejected: Parts, book: Book) -> None:
    for part in ("measure", "anchor", "alpha", "credit"):
        if not _same(getattr(chosen, part), getattr(rejected, part)):
            raise NoForm(f"the two responses of a pair have no {part} in common")
    if chosen.averaged != rejected.averaged:
        raise NoForm("only one response of a pair is averaged over its tokens")
    if chosen.contrasts and (_across(chosen.omega, book) or _across(rejected.omega, book)):
        raise NoForm("the other response is looked at outside of the margin")


def _one_each(chosen: Parts, rejected: Parts) -> Parts:
    """A choice by the label: between two omegas, with the label as advantage, or between two advantages."""
    contrasts = chosen.contrasts or rejected.contrasts
    other = -rejected.omega if contrasts else rejected.omega
    omega = algebra.apply("choose", algebra.apply("greater", LABEL, ZERO), chosen.omega, other)
    return replace(chosen, omega=omega, advantage=LABEL if contrasts else ONE, plain=False)


def _same(left: Expr, right: Expr) -> bool:
    return bool(sympy.expand(left - right) == 0)


def _across(expr: Expr, book: Book) -> bool:
    """Whether the other response of the pair is in it."""
    return any(found.word == "opposite" for found in book.words(expr))


def curved_measure(chosen: Expr, rejected: Expr, book: Book) -> Expr | None:
    """A measure that is no straight line in the log-probs, as log odds, where both losses hold its difference."""
    own, other = _own_terms(chosen, book), _own_terms(rejected, book)
    return own if own is not None and other in (own, -own) else None


def _own_terms(expr: Expr, book: Book) -> Expr | None:
    """The row's own terms of the first sum that holds terms of both responses, where they are no straight line."""
    if expr.is_Add:
        own = {term for term in expr.args if term.has(TOTAL)}
        others = {term for term in expr.args if _across(term, book)}
        if own and others and not own & others:
            made = sympy.Add(*own)
            return None if all(affine(made, total) for total in made.atoms(TOTAL)) else made
    found = (_own_terms(argument, book) for argument in expr.args)
    return next((terms for terms in found if terms is not None), None)
