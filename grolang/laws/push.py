"""What the tokens of one row are pushed by, −∂loss/∂logp, as a function of one distance from an anchor.

With S = Σ logp and R = Σ logp_ref over a completion's n tokens, take the loss −logsigmoid(β·(S − R)/n). It pushes by

    −∂loss/∂S = β/n · sigmoid(−β·S/n + β·R/n)        and each token moves S by 1, its credit.

The one place where S stands in a straight line is −β · distance with the distance S/n − R/n. So alpha is β, the
measure S/n, the anchor R/n, and in z = alpha · distance omega is β·sigmoid(−z). A mean over tokens takes the other 1/n.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import sympy
from sympy import Expr

from grolang.language.scopes import Scope
from grolang.laws import algebra
from grolang.laws.book import LABEL, LENGTH, LOGP, ONE, STOPPED, TOTAL, ZERO, Book, Z, signs_squared
from grolang.laws.terms import NoForm, affine, slope

#: a measure that is no straight line in the row's sums stands as one symbol while its loss is looked at
_MEASURE = sympy.Symbol("measure of the row", real=True)

_TWO_WAYS = "it looks at the log-probs of a completion in two ways"


@dataclass(frozen=True)
class Parts:
    """credit · omega · advantage, where omega is an expression in Z, which stands for alpha · (measure − anchor).

    `averaged`: it is divided by the row's length. `plain`: omega is one for both responses of a pair.
    """

    measure: Expr
    anchor: Expr
    alpha: Expr
    omega: Expr
    credit: Expr
    averaged: bool
    advantage: Expr = ONE
    plain: bool = True

    @property
    def contrasts(self) -> bool:
        """Whether omega looks at its argument."""
        return bool(self.omega.has(Z))


def pushed(loss: Expr, book: Book, measure: Expr | None = None) -> Parts:
    """The push of a row's loss, all but its credit in omega; by way of a measure that curves, where one is given."""
    if measure is not None:
        loss = _with_measure(loss, measure)
        if loss.has(TOTAL, LOGP):
            raise NoForm(_TWO_WAYS)
    omega, credit = (_tidy(part.replace(STOPPED, lambda inner: inner)) for part in _derivative(loss, measure))
    if omega.has(sympy.zoo, sympy.nan):
        raise NoForm("its derivative divides by 0")
    movers = _movers(omega)
    if len(movers) > 1:
        raise NoForm(_TWO_WAYS)
    own, anchor, alpha = LOGP, ZERO, ONE
    for mover in movers:  # the one, or none
        distance, alpha, omega = _contrast(omega, mover, book)
        own, anchor = _sides(distance, mover, book)
    omega, divided = _without_length(omega)
    credit, shared = _without_length(credit)
    return Parts(own.subs(_MEASURE, measure or LOGP), anchor, alpha, omega, credit, divided or shared)


# --- the derivative ------------------------------------------------------------------------------------------------


def _movers(expr: Expr) -> set[Expr]:
    """What of the row's own log-probs a number moves with: a token's, a sum's, or a measure's."""
    if expr in (LOGP, _MEASURE) or expr.func == TOTAL:
        return {expr}
    return set().union(*(_movers(argument) for argument in expr.args))


def _derivative(loss: Expr, measure: Expr | None) -> tuple[Expr, Expr]:
    """−∂loss/∂logp in two factors: what the loss's own look at the completion gives, and the way to each token."""
    rates = {mover: rate for mover in _movers(loss) if (rate := -slope(loss, mover)) != 0}
    if not rates:
        return ZERO, ONE
    if len(rates) > 1:
        raise NoForm("it sums the log-probs of a completion in two ways")
    ((mover, rate),) = rates.items()
    if mover == LOGP:
        return rate, ONE
    total, outer = (mover, ONE) if measure is None else _total(measure)
    inner = slope(total.args[0], LOGP)
    if inner.has(TOTAL):
        raise NoForm("a sum over tokens stands within another")
    if not inner.has(LOGP):
        return rate, outer * inner
    if measure is not None:
        raise NoForm("it looks at the log-probs of a token in two ways")
    return rate * inner, ONE  # the sum of what is no straight line in logp is each token's own affair


def _total(measure: Expr) -> tuple[Expr, Expr]:
    """The sum over tokens in a measure, and the measure's derivative in it, in its shorter form."""
    totals = measure.atoms(TOTAL)
    if len(totals) != 1:
        raise NoForm("it sums the log-probs of a completion in two ways")
    (total,) = totals
    outer = slope(measure, total)
    return total, min(outer, sympy.cancel(outer), key=sympy.count_ops)


def _with_measure(expr: Expr, measure: Expr) -> Expr:
    """The measure's terms in every sum that holds them all, as one symbol; sympy's `subs` would take multiples, too."""
    for sign in (1, -1):
        terms = set(sympy.Add.make_args(sign * measure))
        if expr.is_Add and terms <= set(expr.args):
            rest = sympy.Add(*(term for term in expr.args if term not in terms))
            return sign * _MEASURE + _with_measure(rest, measure)
    return expr.func(*(_with_measure(argument, measure) for argument in expr.args)) if expr.args else expr


# --- the distance --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Line:
    """A place where what moves stands in a straight line: factor · distance + constant; `inside` of a function."""

    place: Expr
    inside: bool
    factor: Expr
    distance: Expr
    constant: Expr


def _contrast(push: Expr, mover: Expr, book: Book) -> tuple[Expr, Expr, Expr]:
    """The one distance that a push looks at, what scales it, and the push in Z."""
    lines = [_line(place, inside, mover, book) for place, inside in _places(push, mover)]
    if len({line.distance for line in lines}) > 1:
        raise NoForm("it looks at `logp` from two anchors, or in two ways")
    alpha = _alpha(lines, book)
    in_z = {line.place: _ratio(line.factor, alpha, book) * Z + line.constant for line in lines}
    return lines[0].distance, alpha, signs_squared(_tidy(push.xreplace(in_z)), LABEL)


def _places(expr: Expr, mover: Expr, *, inside: bool = False) -> Iterator[tuple[Expr, bool]]:
    """The largest places where what moves stands in a straight line, and whether they are within a function."""
    if affine(expr, mover) and (inside or not expr.is_Mul):
        if expr.has(mover):
            yield expr, inside
    else:
        for argument in expr.args:
            yield from _places(argument, mover, inside=inside or not (expr.is_Add or expr.is_Mul))


def _line(place: Expr, inside: bool, mover: Expr, book: Book) -> _Line:
    """The length that makes a sum a mean belongs to the distance."""
    wide = sympy.expand(place)
    rate, rest = wide.coeff(mover, 1), wide.coeff(mover, 0)
    unit = 1 / LENGTH if 1 / LENGTH in sympy.Mul.make_args(rate) else ONE
    factor = rate / unit
    constant = sympy.Add(*(term for term in sympy.Add.make_args(rest) if book.scope(term) is Scope.CONST))
    return _Line(place, inside, factor, sympy.expand(unit * mover + (rest - constant) / factor), constant)


def _alpha(lines: list[_Line], book: Book) -> Expr:
    """What scales the distance within a function, but for its number; where none looks at it, what differs by row."""
    for line in lines:
        if line.inside:
            return line.factor.as_coeff_Mul()[1]
    return sympy.Mul(*(part for part in sympy.Mul.make_args(lines[0].factor) if book.scope(part) > Scope.CONST))


def _ratio(factor: Expr, alpha: Expr, book: Book) -> Expr:
    """A place's own scale over alpha: a number, or one with the label's sign."""
    ratio = signs_squared(sympy.cancel(factor / alpha), LABEL)
    if book.scope(ratio.subs(LABEL, ONE)) > Scope.CONST:
        raise NoForm("it scales one distance in two ways")
    return ratio


def _sides(distance: Expr, mover: Expr, book: Book) -> tuple[Expr, Expr]:
    """measure and anchor: what is made of the row's own log-probs alone, and the rest."""
    terms = sympy.Add.make_args(distance)
    own = LOGP if mover == LOGP else sympy.Add(*(term for term in terms if _is_own(term, book)))
    return own, own - distance


def _is_own(term: Expr, book: Book) -> bool:
    if term.has(TOTAL, _MEASURE):
        return True
    words = book.words(term)
    made = bool(words or term.free_symbols & book.own)
    return made and all((found.word, found.axis) == ("sum", "tokens") for found in words)


# --- factors -------------------------------------------------------------------------------------------------------


def factors(expr: Expr) -> tuple[Expr, ...]:
    """The factors of an expression; those of a sum are what all of its terms share, and the rest."""
    if expr.is_Add:
        front = algebra.shared(expr.args)
        expr = front * sympy.Add(*(term / front for term in expr.args))
    return tuple(sympy.Mul.make_args(expr))


def _without_length(expr: Expr) -> tuple[Expr, bool]:
    """Without the factor 1 / length, which the aggregation takes, and whether it was there."""
    found = factors(expr)
    return (sympy.Mul(*found) * LENGTH, True) if 1 / LENGTH in found else (expr, False)


def _tidy(expr: Expr) -> Expr:
    """n − n·sigmoid(x) as n·sigmoid(−x)."""

    def mended(*terms: Expr) -> Expr:
        total = sympy.Add(*terms)
        number, rest = total.as_coeff_Add()
        coefficient, inner = rest.as_coeff_Mul()
        flips = str(inner.func) == "sigmoid" and number == -coefficient
        return number * inner.func(-inner.args[0]) if flips else total

    return expr.replace(sympy.Add, mended)
