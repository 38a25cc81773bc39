"""From a loss to the parts of the estimator: credit · ω(α·(measure − anchor)) · advantage, read off the derivative.

The loss −exp(logp − logp_old)·(r − b) pushes each token by exp(z)·(r − b) with z = logp − logp_old. The factor with z
is ω, the one with a score the advantage; one that is neither, and differs by token, would be the credit:

    measure = logp,  anchor = logp_old,  alpha = 1,  omega(z) = exp(z),  advantage = r − b,  credit = 1

What each row of a pair is pushed by is looked at by itself, then the two are joined. Nothing here is known by a
method's name, and nothing is believed: `lift.py` holds the result against the loss.
"""

from __future__ import annotations

from dataclasses import replace

import sympy
from sympy import Expr

from grolang.language import ir
from grolang.language.functions import OBSERVABLES
from grolang.language.ir import MethodIR
from grolang.language.scopes import Scope
from grolang.laws import algebra
from grolang.laws.book import ONE, ZERO, Book, Z
from grolang.laws.pairs import curved_measure, joined
from grolang.laws.push import Parts, factors, pushed
from grolang.laws.terms import NoForm, Terms


def parts(losses: list[ir.Expr], method: MethodIR, book: Book) -> Parts:
    """The parts of a sum of losses, or NoForm that says why it has none."""
    if "preference" in method.data:
        push = _of_pair(_of_row(losses, method, book, 1), _of_row(losses, method, book, -1), book)
    else:
        push = pushed(sympy.Add(*map(Terms(method, book), losses)), book)
    if push.omega == 0:
        raise NoForm("no gradient in `logp` flows through it")
    return _divided(push, book)


def _of_row(losses: list[ir.Expr], method: MethodIR, book: Book, row: int) -> Expr:
    """Everything that a row of a pair is in: its own loss, and the other row's, which may look across."""
    own, other = Terms(method, book, row), Terms(method, book, -row)
    return sympy.Add(*map(own, losses), *(book.away(other(loss)) for loss in losses if loss.scope >= Scope.SEQUENCE))


def _of_pair(chosen: Expr, rejected: Expr, book: Book) -> Parts:
    """The push of both rows: of their sums of log-probs, or else of a measure that curves."""
    try:
        return joined(pushed(chosen, book), pushed(rejected, book), book)
    except NoForm:
        if (measure := curved_measure(chosen, rejected, book)) is None:
            raise
    return joined(pushed(chosen, book, measure), pushed(rejected, book, measure), book)


def _divided(push: Parts, book: Book) -> Parts:
    """Factors of omega without Z go to the data's signal, or to each token's credit."""
    advantage, credit, omega = push.advantage, push.credit, ONE
    for factor in factors(push.omega):
        if factor.has(Z) or (push.contrasts and book.scope(factor) is Scope.CONST):
            omega *= factor
        elif book.scope(factor) is Scope.TOKEN and not _has_signal(factor, book):
            credit *= factor
        else:
            advantage *= factor
    return replace(push, omega=_unbranched(omega), credit=credit, advantage=advantage)


def _has_signal(expr: Expr, book: Book) -> bool:
    """Whether the data's verdict is in it: a score, a label, or a definition that may hold one."""
    plain = {name for name, row in OBSERVABLES.items() if not row.data}
    symbols = expr.free_symbols - book.applied.keys()
    return any(book.scope(symbol) > Scope.CONST and symbol.name not in plain for symbol in symbols) or any(
        _has_signal(argument, book) for found in book.words(expr) for argument in found.arguments
    )


def _unbranched(omega: Expr) -> Expr:
    """k · (0 if C else y) as 0 if C else k · y."""
    for factor in sympy.Mul.make_args(omega):
        if str(factor.func) == "choose" and ZERO in factor.args[1:]:
            condition, *branches = factor.args
            return algebra.apply("choose", condition, *(omega / factor * branch for branch in branches))
    return omega
