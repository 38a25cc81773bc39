"""A symbolic proof that two coefficients are equal: both in one normal form, their difference expanded to 0.

Each step becomes a sympy expression over atoms: a tensor of the batch at the place where it is read, a count, a
parameter. Four facts about the batch are used, and no more:

- a sum over children is linear, and what is the same for all children of a parent leaves the sum; a mean is a sum
  over a count, and the sum of 1 is the count;
- a pair has one label of each sign: label² = 1, the opposite's label is −label, `chosen(x)` is
  (x + opposite(x))/2 + label · (x − opposite(x))/2, and the opposite of an expression is that of its atoms;
- over the others means over the group without the sequence itself, also of what `own` is held against;
- sigmoid(−x) = 1 − sigmoid(x) and its kin, by writing them with exp.

What sympy is not sure to treat soundly on the whole real line (branches, comparisons, min, max, clip, abs, other
reductions) stays an opaque function of its arguments' normal forms. So a proof can be missed, never made up: only
equal normal forms, or a difference that cancels as a rational function of atoms, count as a proof.

A quotient such as r / r cancels, and is no number where r is 0. Such a batch says nothing, unless what asks hides it
(`1 if r / r == 1 else 0` does). So what can hide it knows its arguments together with how they are computed, where
they may be without a value (`Normal.written`), as a factor, and only what is computed alike is equal: 1 / r and
2 / r − 1 / r are not, one is infinite where r is 0 and the other no number.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import sympy
from sympy import Expr, Function, Symbol

from grolang.compiler.program import MISMATCHED, Program
from grolang.language.functions import FUNCTIONS
from grolang.language.scopes import Scope
from grolang.laws.book import signs_squared

_EXACT: dict[str, Callable[..., Expr]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "negate": lambda a: -a,
    "stop": lambda x: x,
}
_SATURATED: dict[str, Callable[[Expr], Expr]] = {
    "exp": sympy.exp,
    "sigmoid": lambda x: 1 / (1 + sympy.exp(-x)),
    "tanh": lambda x: (sympy.exp(2 * x) - 1) / (sympy.exp(2 * x) + 1),
    "expm1": lambda x: sympy.exp(x) - 1,
}

#: functions that do not ask which argument comes first
_EITHER_WAY = frozenset(("add", "multiply", "equal", "not_equal", "min", "max"))

#: which argument divides
_DIVISOR = {"divide": 1, "power": 0}

#: operations of an expression that is still expanded
LARGEST = 400

#: terms that an expression may have when it is expanded
TERMS = 5000


class Normal:
    """The normal forms of a program's steps."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._done: dict[tuple[int, bool], Expr] = {}
        self._scopes: dict[Symbol, Scope] = {}
        self._gaps: dict[tuple[int, bool], bool] = {}
        self._written: dict[tuple[int, bool, bool], int] = {}
        self._texts: dict[object, int] = {}  # what is written so has this number
        self._behind: dict[Symbol, Symbol] = {}  # of what is the other's in a comparison: what it is of a sequence

    def __call__(self, index: int, *, opposite: bool = False) -> Expr:
        opposite = opposite and self.program.steps[index].scope >= Scope.SEQUENCE  # a pair's value is its own opposite
        key = (index, opposite)
        if key not in self._done:
            self._done[key] = self.paired(self._form(index, opposite))
        return self._done[key]

    def paired(self, expr: Expr) -> Expr:
        """label² = 1."""
        label = self._atom("label", Scope.SEQUENCE)
        return signs_squared(expr, label) if label in expr.free_symbols else expr

    def _atom(self, name: str, scope: Scope) -> Symbol:
        count = name.removeprefix("opposite ").startswith("#")  # of what is there, so 1 at least
        made = Symbol(name, positive=True) if count else Symbol(name, real=True, nonzero=name == "label" or None)
        self._scopes[made] = scope
        return made

    def _scope(self, expr: Expr) -> Scope:
        return max((self._scopes.get(symbol, Scope.CONST) for symbol in expr.free_symbols), default=Scope.CONST)

    def _form(self, index: int, opposite: bool) -> Expr:
        step = self.program.steps[index]
        away = opposite and step.scope >= Scope.SEQUENCE
        match step.op:
            case "const":
                value = float(step.detail[0])
                if math.isinf(value):
                    raise NotImplementedError("infinity has no normal form")
                return sympy.Integer(int(value)) if value == int(value) else sympy.Rational(str(value))
            case "param":
                value = float(step.detail[1])
                return Symbol(f"{step.detail[0]}={value!r}", real=True, nonzero=value != 0, negative=value < 0)
            case "load" | "count":
                return self._load(index, away)
            case "spread":
                return self(step.args[0], opposite=opposite)
            case "opposite":
                return self(step.args[0], opposite=not opposite)
            case "chosen" | "rejected":
                return self._of_pair(step.args[0], 1 if step.op == "chosen" else -1)
            case "swapped":
                return self._swapped(index, opposite)
            case "reduce":
                return self._reduced(index, opposite)
            case "power":
                return self._power(index, opposite)
            case "choose":
                return self._choice(index, opposite)
            case "chain":  # 0 where the first is, whatever the second
                first, second = (self(argument, opposite=opposite) for argument in step.args)
                return first * second * (1 if first.is_nonzero else self._defined(step.args[1], opposite))
            case op if op in _SATURATED:
                (inner,) = step.args
                return _SATURATED[op](self(inner, opposite=opposite) * self._defined(inner, opposite))
            case op if op in _EXACT:
                return _EXACT[op](*(self(argument, opposite=opposite) for argument in step.args))
            case _:
                return self._opaque(index, opposite)

    def _load(self, index: int, away: bool) -> Expr:
        step = self.program.steps[index]
        word = f"#{step.detail[0]} per {step.scope.word}" if step.op == "count" else str(step.detail[0])
        if step.world == MISMATCHED:
            word = f"mismatched {word}"
        if word == "label":
            return -self._atom("label", step.scope) if away else self._atom("label", step.scope)
        return self._atom(f"opposite {word}" if away else word, step.scope)

    def _of_pair(self, argument: int, sign: int) -> Expr:
        forms = self(argument), self(argument, opposite=True)
        return self._by_label(*forms[::sign])

    def _by_label(self, above: Expr, below: Expr) -> Expr:
        """One value where the label is 1, another where it is -1.

        What the other label leaves undefined, as in `5 if label > 0 else x / (1 - label)`, is read at its own: the
        divisor would cancel against the factor that takes the value away.
        """
        label = self._atom("label", Scope.SEQUENCE)
        if _undefined_at(above, label, -1) or _undefined_at(below, label, 1):
            if _undefined_at(above, label, 1) or _undefined_at(below, label, -1):
                raise NotImplementedError("what has a value for no label has no normal form")
            above, below = above.xreplace({label: sympy.Integer(1)}), below.xreplace({label: sympy.Integer(-1)})
        return (above + below) / 2 + label * (above - below) / 2

    def _swapped(self, index: int, opposite: bool) -> Expr:
        """Each comparison the other way round: what is of the sequence is of the other one, and back."""
        inner = self(self.program.steps[index].args[0], opposite=opposite)
        turned: dict[Symbol, Symbol] = {}
        for symbol in inner.free_symbols:
            if symbol in self._behind:
                turned[symbol] = self._behind[symbol]
            elif self._scopes.get(symbol) is Scope.SEQUENCE:
                turned[symbol] = self._atom(f"other {symbol.name}", Scope.COMPARISON)
                self._behind[turned[symbol]] = symbol
            elif self._scopes.get(symbol) is Scope.COMPARISON:
                return self._opaque(index, opposite)
        return inner.xreplace(turned)

    def _choice(self, index: int, opposite: bool) -> Expr:
        """`a if label > 0 else b` is linear in the label, `terminal` in the last token's mark; the rest is opaque."""
        step = self.program.steps[index]
        condition = self.program.steps[step.args[0]]
        if condition.op == "load" and condition.detail == ("last token",):
            mark = self._load(step.args[0], opposite)
            then, otherwise = (self(argument, opposite=opposite) for argument in step.args[1:])
            return otherwise + mark * (then - otherwise)
        if condition.op in ("greater", "less"):
            left, right = (self(argument, opposite=opposite) for argument in condition.args)
            label = self._atom("label", Scope.SEQUENCE)
            if right == 0 and left in (label, -label):
                forms = [self(argument, opposite=opposite) for argument in step.args[1:]]
                return self._by_label(*(forms if (left == label) == (condition.op == "greater") else forms[::-1]))
        return self._opaque(index, opposite)

    def _power(self, index: int, opposite: bool) -> Expr:
        base, exponent = (self(argument, opposite=opposite) for argument in self.program.steps[index].args)
        return base**exponent if exponent.is_Integer else self._opaque(index, opposite)

    def _opaque(self, index: int, opposite: bool) -> Expr:
        """A function of its arguments' normal forms, about which nothing is known."""
        step = self.program.steps[index]
        detail = " ".join(str(part) for part in step.detail)
        arguments = [self.cancelled(self(argument, opposite=opposite)) for argument in step.args]
        arguments += [self._defined(argument, opposite) for argument in step.args]
        made = Function(f"{step.op} {detail} {step.scope.word} {step.world}", real=True)(*arguments)
        return self._named(made, step.scope)

    def _named(self, made: Expr, scope: Scope) -> Symbol:
        """One symbol for an opaque value: equal values get the same one, and it knows its scope."""
        return self._atom(f"⟨{sympy.srepr(made)}⟩", scope)

    def _reduced(self, index: int, opposite: bool) -> Expr:
        step = self.program.steps[index]
        function, child = str(step.detail[0]), step.child
        others = step.others and child is not Scope.COMPARISON  # comparisons leave the sequence out already
        inner = _expanded(self(step.args[0], opposite=opposite))
        terms = [self._split(term, Scope.GROUP if others else step.scope) for term in sympy.Add.make_args(inner)]
        if function not in ("sum", "mean"):
            return self._shifted(index, opposite, terms)

        def summed(parent: Scope) -> Expr:
            return sum(
                (out * self._sum(inside, child, parent, step.world, opposite) for out, inside in terms),
                sympy.Integer(0),
            )

        def counted(parent: Scope) -> Expr:
            return self._sum(sympy.Integer(1), child, parent, step.world, opposite)

        if not others:
            return summed(step.scope) / counted(step.scope) if function == "mean" else summed(step.scope)
        # The others are the group without the sequence itself.
        total, count = summed(Scope.GROUP) - self._own(inner, child, step.world, opposite), counted(Scope.GROUP)
        own_count = sympy.Integer(1) if child is Scope.SEQUENCE else counted(Scope.SEQUENCE)
        return total / (count - own_count) if function == "mean" else total

    def _own(self, inner: Expr, child: Scope, world: str, opposite: bool) -> Expr:
        """A sequence's own share of its group's sum."""
        if child is Scope.SEQUENCE:
            return inner
        terms = [self._split(term, Scope.SEQUENCE) for term in sympy.Add.make_args(inner)]
        return sum(
            (out * self._sum(inside, child, Scope.SEQUENCE, world, opposite) for out, inside in terms), sympy.Integer(0)
        )

    def _split(self, term: Expr, parent: Scope) -> tuple[Expr, Expr]:
        """A term as (what is the same for all children of a parent, the rest)."""
        finer = [symbol for symbol in term.free_symbols if self._scopes.get(symbol, Scope.CONST) > parent]
        outside, inside = term.as_independent(*finer) if finer else (term, sympy.Integer(1))
        return outside, inside

    def _shifted(self, index: int, opposite: bool, terms: list[tuple[Expr, Expr]]) -> Expr:
        """std forgets what is added to all values; max, min and quantiles carry it through."""
        step = self.program.steps[index]
        shift = sum((out for out, inside in terms if inside == 1), sympy.Integer(0))
        rest = sum((out * inside for out, inside in terms if inside != 1), sympy.Integer(0))
        more = [self(argument, opposite=opposite) for argument in step.args[1:]]
        word = f"reduce {' '.join(map(str, step.detail))} {step.scope.word} {step.world}"
        more += [self._defined(argument, opposite) for argument in step.args]
        named = self._named(Function(word, real=True)(self.cancelled(rest), *more), step.scope)
        return named if step.detail[0] in ("std", "sample_std") else named + shift

    def gaps(self, index: int, opposite: bool) -> bool:
        """Whether a step may be without a value: by a divisor that can be 0, or an argument outside of a domain."""
        key = self._key(index, opposite)
        if key not in self._gaps:
            step, opposite = self.program.steps[index], key[1]
            below = any(self.gaps(argument, away) for argument in step.args for away in self._sides(index, opposite))
            self._gaps[key] = below or self._gap(index, opposite)
        return self._gaps[key]

    def _key(self, index: int, opposite: bool) -> tuple[int, bool]:
        return index, opposite and self.program.steps[index].scope >= Scope.SEQUENCE

    def _sides(self, index: int, opposite: bool) -> tuple[bool, ...]:
        """Of which response a step takes its arguments: of the opposite one, or not."""
        op = self.program.steps[index].op
        return (False, True) if op in ("chosen", "rejected") else (opposite != (op == "opposite"),)

    def _gap(self, index: int, opposite: bool) -> bool:
        """Whether this very step may be without a value though its arguments have one."""
        step, row = self.program.steps[index], FUNCTIONS.get(self.program.steps[index].op)
        if step.op == "divide":
            return not self.cancelled(self(step.args[1], opposite=opposite)).is_nonzero
        if step.op == "power":
            base, exponent = (self.cancelled(self(argument, opposite=opposite)) for argument in step.args)
            return not (exponent.is_Integer and (exponent >= 0 or base.is_nonzero))
        return bool(row and row.domain) or "sample_std" in step.detail

    def written(self, index: int, opposite: bool, exact: bool = False) -> int:
        """A number for how a step is computed, from what surely has a value, which is known by its normal form.

        `exact`: what may be a divisor is written down to what it is made of, since r - s and -(s - r) are 0 of
        different signs, and what they divide is infinite with different signs.
        """
        index, opposite = self._key(index, opposite)
        key = (index, opposite, exact)
        if key in self._written:
            return self._written[key]
        step = self.program.steps[index]
        if step.op in ("spread", "stop", "opposite"):
            found = self.written(step.args[0], opposite != (step.op == "opposite"), exact)
        else:
            text: object
            exact = exact and step.op != "reduce"
            if self.gaps(index, opposite) or (exact and step.args):
                parts = [
                    self.written(argument, away, exact or place == _DIVISOR.get(step.op))
                    for place, argument in enumerate(step.args)
                    for away in self._sides(index, opposite)
                ]
                parts = sorted(parts) if step.op in _EITHER_WAY else parts
                text = (step.op, step.detail, step.scope, step.world, *parts)
            else:
                text = sympy.srepr(self.cancelled(self(index, opposite=opposite)))
            found = self._texts.setdefault(text, len(self._texts))
        self._written[key] = found
        return found

    def _defined(self, index: int, opposite: bool) -> Expr:
        """A factor that stands for 1 where a step has a value: equal for steps that are computed alike."""
        if not self.gaps(index, opposite):
            return sympy.Integer(1)
        return Symbol(f"defined as {self.written(index, opposite)}", positive=True)

    def _sum(self, inside: Expr, child: Scope, parent: Scope, world: str, opposite: bool) -> Expr:
        away = opposite and parent >= Scope.SEQUENCE
        if inside == 1:
            return self._count(child, parent, world, away)
        if child is Scope.COMPARISON and parent is Scope.SEQUENCE and inside.free_symbols <= self._behind.keys():
            # What is the others' alone: over the group, without the sequence's own.
            of_one = _expanded(inside.xreplace(self._behind))
            terms = [self._split(term, Scope.GROUP) for term in sympy.Add.make_args(of_one)]
            whole = (out * self._sum(rest, Scope.SEQUENCE, Scope.GROUP, world, opposite) for out, rest in terms)
            return sum(whole, sympy.Integer(0)) - of_one
        if parent is Scope.SEQUENCE and inside.is_Symbol and inside.name.endswith("last token"):
            return sympy.Integer(1)  # one token of each completion is its last
        return self._named(Function(f"sum {child.word} per {parent.word} {world}", real=True)(inside), parent)

    def _count(self, child: Scope, parent: Scope, world: str, away: bool) -> Expr:
        if child is Scope.COMPARISON and parent is Scope.SEQUENCE:
            return self._count(Scope.SEQUENCE, Scope.GROUP, world, away) - 1
        word = f"#{child.word} per {parent.word}"
        word = f"mismatched {word}" if world == MISMATCHED else word
        return self._atom(f"opposite {word}" if away else word, parent)

    def cancelled(self, expr: Expr) -> Expr:
        """One form for equal rational functions of atoms and exponentials."""
        if expr.count_ops() > LARGEST or _terms(expr) > TERMS:
            return expr
        return self.paired(sympy.cancel(sympy.powsimp(sympy.expand(expr, power_exp=True), deep=False)))


def _terms(expr: Expr) -> float:
    """How many terms an expression may have when it is expanded, at most."""
    if isinstance(expr, sympy.Add):
        return sum(_terms(part) for part in expr.args)
    if isinstance(expr, sympy.Mul):
        return math.prod(_terms(part) for part in expr.args)
    if isinstance(expr, sympy.Pow) and expr.exp.is_Integer:
        k, n = min(_terms(expr.base), 1e6), abs(int(expr.exp))
        return math.exp(min(700.0, math.lgamma(n + k) - math.lgamma(n + 1) - math.lgamma(k)))  # n + k − 1 over n
    return 1.0


def _undefined_at(expr: Expr, label: Symbol, sign: int) -> bool:
    """Whether an expression divides by what is 0 for a label of this sign, whatever the other atoms are."""
    if label not in expr.free_symbols:
        return False
    divisor = sympy.fraction(sympy.together(expr))[1].xreplace({label: sympy.Integer(sign)})
    return bool(_expanded(divisor) == 0) or divisor.has(sympy.zoo, sympy.nan)


def _expanded(expr: Expr) -> Expr:
    if _terms(expr) > TERMS:
        raise NotImplementedError("a power or product of too many terms")
    return sympy.expand(expr)


def proved_equal(program: Program) -> bool:
    """Whether the outputs `left` and `right` are equal on every batch, as far as this proof can see."""
    a, b = program.outputs["left"], program.outputs["right"]
    if a == b:
        return True
    normal = Normal(program)
    try:
        difference = sympy.together(normal(a) - normal(b))
        if difference.count_ops() > 4000:
            return False
        numerator, denominator = sympy.fraction(difference)
        products = _expanded(numerator)  # also exp(a + b) as exp(a) · exp(b), so that equal ones meet
        return bool(normal.paired(products) == 0 and normal.paired(_expanded(denominator)) != 0)
    except (RecursionError, ZeroDivisionError, NotImplementedError, sympy.PolynomialError):
        return False
