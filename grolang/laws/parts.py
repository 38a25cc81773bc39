"""From a loss to the parts of the estimator: credit · ω(α·(measure − anchor)) · advantage, read off the derivative.

What each row of a pair is pushed by is looked at by itself, then the two are brought together: a push that is the
same but for its sign is the label's. Nothing here is known by a method's name, and nothing is believed: `lift.py`
holds the result against the loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import sympy
from sympy import Expr

from grolang.language import ir
from grolang.language.ir import MethodIR
from grolang.language.scopes import Scope
from grolang.laws import algebra as ALGEBRA
from grolang.laws.book import LENGTH, LOGP, ONE, TOTAL, ZERO, Book, Z, signs_squared
from grolang.laws.terms import NoForm, Terms, affine, slope

_LABEL = sympy.Symbol("label", real=True)

#: a measure that is no straight line in the row's sums stands as one symbol while its loss is looked at
_MEASURE = sympy.Symbol("measure of the row", real=True)


@dataclass(frozen=True)
class Parts:
    """The components, as terms in the row's own words; `omega` is an expression in `Z`.

    `averaged`: the push is divided by the row's length. `plain`: omega is one for both responses of a pair.
    """

    measure: Expr
    anchor: Expr
    alpha: Expr
    omega: Expr
    credit: Expr
    advantage: Expr
    averaged: bool = False
    plain: bool = True

    @property
    def contrasts(self) -> bool:
        """Whether omega looks at its argument."""
        return bool(self.omega.has(Z))


@dataclass(frozen=True)
class _Share:
    """What one row is pushed by: `push` is an expression in Z = alpha · (measure − anchor)."""

    measure: Expr
    anchor: Expr
    alpha: Expr
    push: Expr
    credit: Expr
    averaged: bool


def parts(losses: list[ir.Expr], method: MethodIR, book: Book) -> Parts:
    """The parts of a sum of losses, or NoForm that says why it has none."""
    if "preference" not in method.data:
        share = _share(sum((Terms(method, book)(loss) for loss in losses), ZERO), book)
        if share.push == 0:
            raise NoForm(_FLAT)
        return _divided(share, share.push, book)
    chosen, rejected = (_of_row(losses, method, book, row) for row in (1, -1))
    found: Parts | NoForm
    try:
        found = _joined(_share(chosen, book), _share(rejected, book), book)
    except NoForm as why:
        found = why
    measure = _shared_measure(chosen, rejected, book)
    if measure is not None and not (isinstance(found, Parts) and found.plain):
        return _joined(_share(chosen, book, measure), _share(rejected, book, measure), book)
    if isinstance(found, NoForm):
        raise found
    return found


def _of_row(losses: list[ir.Expr], method: MethodIR, book: Book, row: int) -> Expr:
    """Everything that a row of a pair is in: its own loss, and the other row's, which may look across."""
    total = ZERO
    for loss in losses:
        total += Terms(method, book, row)(loss)
        if loss.scope >= Scope.SEQUENCE:
            total += book.away(Terms(method, book, -row)(loss))
    return total


_FLAT = "no gradient in `logp` flows through it"


# --- one row ---------------------------------------------------------------------------------------------------


def _share(loss: Expr, book: Book, measure: Expr | None = None) -> _Share:
    """What the row's tokens are pushed by: −∂loss/∂logp, its contrast found and named Z."""
    if measure is not None:
        loss = _with_measure(loss, measure)
        if loss.has(TOTAL, LOGP):
            raise NoForm("it looks at the log-probs of a completion in two ways")
        pushed, credit = -slope(loss, _MEASURE), _to_tokens(measure)
    else:
        pushed, credit = _pushed(loss)
    pushed = _tidy(_unstopped(pushed))
    if pushed.has(sympy.zoo, sympy.nan):
        raise NoForm("its derivative divides by 0")
    credit, averaged = _without_length(_tidy(_unstopped(credit)))
    movers = _movers(pushed)
    if not movers:
        pushed, also = _without_length(pushed)
        return _Share(LOGP, ZERO, ONE, pushed, credit, averaged or also)
    if len(movers) > 1 or LOGP in _movers(credit):
        raise NoForm("it looks at the log-probs of a completion in two ways")
    distance, alpha, push = _contrast(pushed, movers.pop(), book)
    push, also = _without_length(push)
    if _movers(push):
        raise NoForm("what a token is pushed by is not a function of one distance from an anchor")
    own, anchor = _sides(distance, book)
    if measure is not None:
        own = own.xreplace({_MEASURE: measure})
    return _Share(own, anchor, alpha, push, credit, averaged or also)


def _movers(expr: Expr) -> set[Expr]:
    """What of the row's own log-probs a number moves with: a token's, a sum's, or a measure's."""
    if expr in (LOGP, _MEASURE) or expr.func == TOTAL:
        return {expr}
    return set().union(*(_movers(argument) for argument in expr.args))


def _pushed(loss: Expr) -> tuple[Expr, Expr]:
    """−∂loss/∂logp in two factors: what the loss's own look at the completion gives, and the way to each token."""
    shares = []
    for mover in sorted(_movers(loss), key=str):
        outer = -slope(loss, mover)
        if outer != 0:
            shares.append((mover, outer))
    if not shares:
        return ZERO, ONE
    if len(shares) > 1:
        raise NoForm("it sums the log-probs of a completion in two ways")
    mover, outer = shares[0]
    if mover == LOGP:
        return outer, ONE
    inner = slope(mover.args[0], LOGP)
    if inner.has(TOTAL):
        raise NoForm("a sum over tokens stands within another")
    # The sum of what is no straight line in logp is each token's own affair.
    return (outer * inner, ONE) if inner.has(LOGP) else (outer, inner)


def _to_tokens(measure: Expr) -> Expr:
    totals = {part for part in measure.atoms(sympy.Function) if part.func == TOTAL}
    if len(totals) != 1:
        raise NoForm("it sums the log-probs of a completion in two ways")
    (total,) = totals
    inner = slope(total.args[0], LOGP)
    if inner.has(LOGP):
        raise NoForm("it looks at the log-probs of a token in two ways")
    outer = slope(measure, total)
    return min(outer, sympy.cancel(outer), key=sympy.count_ops) * inner


def _contrast(pushed: Expr, variable: Expr, book: Book) -> tuple[Expr, Expr, Expr]:
    """The distance that the push is a function of, its factor alpha, and the push in Z.

    Every place where the variable stands in a straight line is slope · distance + constant, with one distance.
    """
    rows = []
    for node, inner in dict.fromkeys(_lines(pushed, variable, inside=False)):
        wide = sympy.expand(node)
        rate = wide.coeff(variable, 1)
        rest = sympy.expand(wide - rate * variable)
        factor, unit = _unit(rate)
        constants, others = ZERO, ZERO
        for term in sympy.Add.make_args(rest):
            if book.scope(term) is Scope.CONST:
                constants += term
            else:
                others += term / factor
        rows.append((node, inner, factor, sympy.expand(unit * variable + others), constants))
    distances = {distance for *_, distance, _ in rows}
    if len(distances) != 1:
        raise NoForm("it looks at `logp` from two anchors, or in two ways")
    inner_factors = [factor for _, inner, factor, *_ in rows if inner] or [rows[0][2]]
    alpha = inner_factors[0].as_coeff_Mul()[1]
    if not any(inner for _, inner, *_ in rows):
        alpha = sympy.Mul(*(part for part in sympy.Mul.make_args(alpha) if book.scope(part) > Scope.CONST))
    places = {}
    for node, _, factor, _, constants in rows:
        ratio = signs_squared(sympy.cancel(factor / alpha), _LABEL)
        if book.scope(ratio.xreplace({_LABEL: ONE})) > Scope.CONST:
            raise NoForm("it scales one distance in two ways")
        places[node] = ratio * Z + constants
    return distances.pop(), alpha, signs_squared(_tidy(_replaced(pushed, places)), _LABEL)


def _unit(rate: Expr) -> tuple[Expr, Expr]:
    """A slope without the length that makes a sum a mean, and that."""
    unit = ONE / LENGTH if 1 / LENGTH in sympy.Mul.make_args(rate) else ONE
    return rate / unit, unit


def _lines(expr: Expr, variable: Expr, *, inside: bool) -> Iterator[tuple[Expr, bool]]:
    """The largest places where the variable stands in a straight line, and whether they are within a function."""
    if not expr.has(variable):
        return
    if affine(expr, variable) and (inside or not expr.is_Mul):
        yield expr, inside
    else:
        for argument in expr.args:
            yield from _lines(argument, variable, inside=inside or not (expr.is_Add or expr.is_Mul))


def _replaced(expr: Expr, places: dict[Expr, Expr]) -> Expr:
    """The places replaced, from the top down: one may be a part of another."""
    if expr in places:
        return places[expr]
    return expr.func(*(_replaced(argument, places) for argument in expr.args)) if expr.args else expr


def _sides(distance: Expr, book: Book) -> tuple[Expr, Expr]:
    """measure and anchor: what is made of the row's own log-probs alone, and the rest."""
    terms = sympy.Add.make_args(distance)
    if any(factor == LOGP for term in terms for factor in sympy.Mul.make_args(term)):
        return LOGP, LOGP - distance
    own = sympy.Add(*(term for term in terms if _own(term, book)))
    return own, own - distance


def _own(term: Expr, book: Book) -> bool:
    if term.has(TOTAL, _MEASURE):
        return True
    found = [book.applied[symbol] for symbol in term.free_symbols if symbol in book.applied]
    return bool(found or term.free_symbols & book.own) and all(
        (form.word, form.axis) == ("sum", "tokens") for form in found
    )


# --- pairs -----------------------------------------------------------------------------------------------------


def _shared_measure(chosen: Expr, rejected: Expr, book: Book) -> Expr | None:
    """A measure that is no straight line in the log-probs, where both rows' losses hold its difference."""
    own = _own_terms(chosen, book)
    other = _own_terms(rejected, book)
    if own is None or other is None or other not in (own, -own):
        return None
    return own


def _own_terms(expr: Expr, book: Book) -> Expr | None:
    """The row's own terms of the first sum that holds terms of both responses, where they are no straight line."""
    if expr.is_Add:
        own = [term for term in expr.args if term.has(TOTAL) and not _across(term, book)]
        other = [term for term in expr.args if _across(term, book) and not term.has(TOTAL)]
        if own and len(own) + len(other) == len([t for t in expr.args if t.has(TOTAL) or _across(t, book)]) and other:
            made = sympy.Add(*own)
            totals = {part for part in made.atoms(sympy.Function) if part.func == TOTAL}
            return None if all(affine(made, total) for total in totals) else made
    for argument in expr.args:
        if (found := _own_terms(argument, book)) is not None:
            return found
    return None


def _across(expr: Expr, book: Book) -> bool:
    """Whether the other response of the pair is in it."""
    return any(book.applied[symbol].word == "opposite" for symbol in expr.free_symbols if symbol in book.applied)


def _with_measure(expr: Expr, measure: Expr) -> Expr:
    """The measure's terms in every sum that holds them all, as one symbol."""
    if not expr.has(TOTAL):
        return expr
    if expr.is_Add:
        for sign in (1, -1):
            terms = set(sympy.Add.make_args(sign * measure))
            if terms <= set(expr.args):
                rest = sympy.Add(*(term for term in expr.args if term not in terms))
                return sign * _MEASURE + _with_measure(rest, measure)
    return expr.func(*(_with_measure(argument, measure) for argument in expr.args)) if expr.args else expr


def _joined(chosen: _Share, rejected: _Share, book: Book) -> Parts:
    """Both rows as one: the same push for both, or with the label's sign, or one for each."""
    if chosen.push == 0 and rejected.push == 0:
        raise NoForm(_FLAT)
    label = book.symbol(_LABEL.name, Scope.SEQUENCE)
    if not chosen.push.has(Z):  # where one of the two looks at no distance, any will do
        chosen = replace(chosen, measure=rejected.measure, anchor=rejected.anchor, alpha=rejected.alpha)
    elif not rejected.push.has(Z):
        rejected = replace(rejected, measure=chosen.measure, anchor=chosen.anchor, alpha=chosen.alpha)
    if chosen.push == 0:
        chosen = replace(chosen, credit=rejected.credit, averaged=rejected.averaged)
    elif rejected.push == 0:
        rejected = replace(rejected, credit=chosen.credit, averaged=chosen.averaged)
    for part in ("measure", "anchor", "alpha", "credit"):
        if sympy.expand(getattr(chosen, part) - getattr(rejected, part)) != 0:
            raise NoForm(f"the two responses of a pair have no {part} in common")
    if chosen.averaged != rejected.averaged:
        raise NoForm("only one response of a pair is averaged over its tokens")
    if any(_across(share.push, book) for share in (chosen, rejected)) and chosen.push.has(Z):
        raise NoForm("the other response is looked at outside of the margin")
    flipped = rejected.push.xreplace({Z: -Z}) if rejected.push.has(Z) else rejected.push
    for alpha, other in ((chosen.alpha * label, flipped), (chosen.alpha, rejected.push)):
        share = replace(chosen, alpha=alpha)
        if _same(chosen.push, -other):
            return _divided(share, chosen.push, book, label)
        if _same(chosen.push, other):
            return _divided(share, chosen.push, book)
    positive = ALGEBRA.apply("greater", label, ZERO)
    if not (chosen.push.has(Z) or rejected.push.has(Z)):
        weight = ALGEBRA.apply("choose", positive, chosen.push, rejected.push)
        return replace(_divided(chosen, ONE, book), advantage=weight, plain=False)
    push = ALGEBRA.apply("choose", positive, chosen.push, -rejected.push)
    made = _divided(chosen, ONE, book, label)
    return replace(made, omega=push, plain=False)


def _same(left: Expr, right: Expr) -> bool:
    return bool(sympy.expand(left - right) == 0)


# --- factors ---------------------------------------------------------------------------------------------------


def _divided(share: _Share, push: Expr, book: Book, sign: Expr = ONE) -> Parts:
    """A push as advantage · credit · omega: factors without Z go to the data's signal, or to each token's credit."""
    advantage, credit, omega = sign, share.credit, ONE
    for factor in sympy.Mul.make_args(_factored(push)):
        if factor.has(Z) or (push.has(Z) and book.scope(factor) is Scope.CONST):
            omega *= factor
        elif book.scope(factor) is Scope.TOKEN and not _signal(factor, book):
            credit *= factor
        else:
            advantage *= factor
    omega = _unbranched(omega)
    return Parts(share.measure, share.anchor, share.alpha, omega, credit, advantage, share.averaged)


def _signal(expr: Expr, book: Book) -> bool:
    """Whether the data's verdict is in it: a score, a label, or a definition that may hold one."""
    plain = {"logp", "logp_old", "logp_ref", "logp_sampler", "entropy", "position", "length"}
    return any(
        book.scopes.get(symbol, Scope.CONST) > Scope.CONST and symbol not in book.applied and symbol.name not in plain
        for symbol in expr.free_symbols
    ) or any(
        _signal(argument, book)
        for symbol in expr.free_symbols & book.applied.keys()
        for argument in book.applied[symbol].arguments
    )


def _without_length(expr: Expr) -> tuple[Expr, bool]:
    """Without the factor 1 / length, which the aggregation takes."""
    factored = _factored(expr)
    if ONE / LENGTH in sympy.Mul.make_args(factored):
        return factored * LENGTH, True
    return expr, False


def _factored(expr: Expr) -> Expr:
    """What all terms of a sum share, in front of it."""
    if not expr.is_Add:
        return expr
    powers = [term.as_powers_dict() for term in expr.args]
    common = [
        base
        for base in powers[0]
        if not base.is_number and all(row.get(base, 0) == powers[0][base] for row in powers[1:])
    ]
    front = sympy.Mul(*(base ** powers[0][base] for base in common))
    return front * sympy.Add(*(term / front for term in expr.args))


def _unbranched(omega: Expr) -> Expr:
    """k · (0 if C else y) as 0 if C else k · y."""
    factors = sympy.Mul.make_args(omega)
    for place, factor in enumerate(factors):
        if str(factor.func) == "choose" and ZERO in factor.args[1:]:
            rest = sympy.Mul(*factors[:place], *factors[place + 1 :])
            return ALGEBRA.apply("choose", factor.args[0], *(rest * branch for branch in factor.args[1:]))
    return omega


def _unstopped(expr: Expr) -> Expr:
    """Without `sg`: a coefficient is a number throughout."""
    return expr.replace(lambda part: str(part.func) == "sg", lambda part: part.args[0])


def _tidy(expr: Expr) -> Expr:
    """1 − sigmoid(x) as sigmoid(−x)."""

    def mended(part: Expr) -> Expr:
        if part.is_Add and len(part.args) == 2 and part.args[0].is_number:
            number, other = part.args
            coefficient, inner = other.as_coeff_Mul()
            if str(inner.func) == "sigmoid" and number == -coefficient:
                return number * inner.func(-inner.args[0])
        return part

    for _ in range(2):  # one may stand within another
        expr = expr.replace(lambda part: part.is_Add, mended)
    return expr
