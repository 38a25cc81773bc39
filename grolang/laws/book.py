"""What the symbols of a term stand for.

A loss is read as a sympy term for one row of a batch. What moves with the row's own `logp` is written out; all else is
a symbol, into which sympy never looks. So `(r - mean(r over group)) * logp` is (r − m)·logp with a symbol m, and

    book.scope(m) = Scope.GROUP        book.applied[m] = Applied("mean", "group", (r,))
"""

from __future__ import annotations

from dataclasses import dataclass, field

import sympy
from sympy import Expr, Symbol

from grolang.language.scopes import Scope

ZERO, ONE = sympy.Integer(0), sympy.Integer(1)

LOGP = Symbol("logp", real=True)
LENGTH = Symbol("length", real=True)
LABEL = Symbol("label", real=True)
Z = Symbol("z", real=True)  # omega's argument
A = Symbol("a", real=True)  # upsilon's argument

#: `sum(x over tokens)` of what moves with the row's own `logp`
TOTAL = sympy.Function("sum over tokens", real=True)

#: `sg(x)`, a number throughout
STOPPED = sympy.Function("sg", real=True)


@dataclass(frozen=True)
class Applied:
    """A form or reduction that a symbol stands for."""

    word: str
    axis: str
    arguments: tuple[Expr, ...]


_SCOPES = {LOGP: Scope.TOKEN, LENGTH: Scope.SEQUENCE, LABEL: Scope.SEQUENCE, Z: Scope.TOKEN, A: Scope.TOKEN}


@dataclass
class Book:
    """The symbols of terms: the scope of each, and the form or reduction that it stands for.

    `own` holds the definitions that are made of a completion's own log-probs alone.
    """

    scopes: dict[Symbol, Scope] = field(default_factory=lambda: dict(_SCOPES))
    applied: dict[Symbol, Applied] = field(default_factory=dict)
    own: set[Symbol] = field(default_factory=set)

    def symbol(self, name: str, scope: Scope) -> Symbol:
        made = Symbol(name, real=True)
        self.scopes[made] = scope
        return made

    def form(self, word: str, axis: str, arguments: tuple[Expr, ...], scope: Scope) -> Symbol:
        """A symbol for `word(arguments over axis)`."""
        made = self.symbol(f"{word}({', '.join(map(str, arguments))} over {axis})", scope)
        self.applied[made] = Applied(word, axis, arguments)
        return made

    def words(self, expr: Expr) -> list[Applied]:
        """The forms and reductions that stand in an expression."""
        return [self.applied[symbol] for symbol in expr.free_symbols if symbol in self.applied]

    def scope(self, expr: Expr) -> Scope:
        """The finest scope of what an expression is made of."""
        if expr.func == TOTAL:
            return Scope.SEQUENCE
        if expr.is_Symbol:
            return self.scopes.get(expr, Scope.CONST)
        return max((self.scope(argument) for argument in expr.args), default=Scope.CONST)

    def away(self, expr: Expr) -> Expr:
        """The same expression for the other response of the pair."""
        if self.scope(expr) < Scope.SEQUENCE:
            return expr
        if expr in self.applied and self.applied[expr].word == "opposite":
            return self.applied[expr].arguments[0]
        if expr.is_Symbol or expr.func == TOTAL:
            return self.form("opposite", "", (expr,), Scope.SEQUENCE)
        return expr.func(*(self.away(argument) for argument in expr.args))


def signs_squared(expr: Expr, label: Symbol) -> Expr:
    """A label is 1 or -1: its square is 1."""
    return expr.replace(
        lambda part: part.is_Pow and part.base == label and part.exp.is_Integer, lambda part: label ** (part.exp % 2)
    )
