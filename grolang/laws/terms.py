"""Expressions as sympy terms, seen from one row of a batch, and their derivative in that row's `logp`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import sympy
from sympy import Expr

from grolang.compiler.derivative import written
from grolang.language import ir
from grolang.language.facts import elementwise
from grolang.language.functions import FUNCTIONS
from grolang.language.ir import Call, MethodIR, Named, Number, Observed, Parameter, Reduce, nodes
from grolang.language.scopes import Scope
from grolang.laws import algebra
from grolang.laws.book import LENGTH, LOGP, ONE, STOPPED, TOTAL, ZERO, Book


class NoForm(Exception):
    """A loss, or a part of it, is not of the estimator's form; the text says why."""


@dataclass(frozen=True)
class Terms:
    """Reads a method's expressions for one row.

    `row` is +1 or -1 for the chosen or the rejected response of a pair, so that `label`, `chosen` and `rejected` are
    settled; 0 for any row. What moves with the row's own `logp` is written out, through definitions; the rest keeps
    its name. Within `stopped` no gradient is asked for, so every reduction can stand there.
    """

    method: MethodIR
    book: Book
    row: int = 0
    stopped: bool = False

    def __call__(self, expr: ir.Expr) -> Expr:
        match expr:
            case Number():
                return self.book.symbol("inf", Scope.CONST) if math.isinf(expr.value) else algebra.number(expr.value)
            case Parameter():
                return self.book.symbol(expr.name, Scope.CONST)
            case Observed(name="label") if self.row:
                return sympy.Integer(self.row)
            case Observed():
                return self.book.symbol(expr.name, expr.scope)
            case Named():
                body = self.method.definitions[expr.name].body
                if moves(body, self.method):
                    return self(body)
                made = self.book.symbol(expr.name, body.scope)
                if of_tokens(body, self.method):
                    self.book.own.add(made)
                return made
            case Reduce(axis="tokens", function="sum" | "mean"):
                return self._over_tokens(expr)
            case Reduce():
                return self._opaque(expr, expr.function, expr.axis, expr.arguments)
            case Call():
                return self._call(expr)
            case _:
                raise NoForm("it has `any(…)`, which stands for no value of a batch")

    def _call(self, expr: Call) -> Expr:
        match expr.function:
            case "sg":
                return STOPPED(replace(self, stopped=True)(expr.arguments[0]))
            case "opposite":
                return self.book.away(replace(self, row=-self.row)(expr.arguments[0]))
            case "chosen" | "rejected" if self.row:
                own = 1 if expr.function == "chosen" else -1
                there = replace(self, row=own)(expr.arguments[0])
                return there if own == self.row else self.book.away(there)
            case function if function in FUNCTIONS:
                made = algebra.apply(function, *(self(argument) for argument in expr.arguments))
                if made.has(sympy.zoo, sympy.nan, sympy.oo):
                    raise NoForm("it divides by 0")
                return made
            case form:
                return self._opaque(expr, form, "", expr.arguments)

    def _opaque(self, expr: ir.Expr, word: str, axis: str, arguments: tuple[ir.Expr, ...]) -> Expr:
        """A form or reduction as a symbol; other rows' values are in it, so the row's own label is not settled."""
        if expr.live and not self.stopped:
            where = f"`{word}(… over {axis})`" if axis else f"`{word}(…)`"
            raise NoForm(f"a gradient flows through {where}, so that a token moves what other tokens are pushed by")
        inner = replace(self, row=0, stopped=True)
        return self.book.form(word, axis, tuple(inner(argument) for argument in arguments), expr.scope)

    def _over_tokens(self, expr: Reduce) -> Expr:
        """Sums are linear, and what is the same for all tokens leaves them; a mean is a sum over the length."""
        inner = self(expr.arguments[0])
        wide = sympy.expand_mul(inner, deep=False)
        if affine(wide, LOGP):
            inner = wide
        share = 1 / LENGTH if expr.function == "mean" else ONE
        return sympy.Add(*(self._total(term) * share for term in sympy.Add.make_args(inner)))

    def _total(self, term: Expr) -> Expr:
        factors = sympy.Mul.make_args(term)
        outside = sympy.Mul(*(factor for factor in factors if self.book.scope(factor) < Scope.TOKEN))
        inside = sympy.Mul(*(factor for factor in factors if self.book.scope(factor) is Scope.TOKEN))
        if inside == 1:
            return outside * LENGTH
        if inside.has(LOGP):
            return outside * TOTAL(inside)
        return outside * self.book.form("sum", "tokens", (inside,), Scope.SEQUENCE)


def moves(expr: ir.Expr, method: MethodIR) -> bool:
    """Whether a value changes with `logp` of the completion itself, as a gradient or as a number."""
    match expr:
        case Observed():
            return expr.name == "logp"
        case Named():
            return moves(method.definitions[expr.name].body, method)
        case Call(function="mismatched" | "greedy"):
            return False
        case Call() | Reduce():
            return any(moves(argument, method) for argument in expr.arguments)
        case _:
            return False


def of_tokens(expr: ir.Expr, method: MethodIR) -> bool:
    """Whether a value is made of log-probs of the completion itself and of nothing else that a batch brings."""
    brought = set()
    for node in nodes(expr, method.definitions):
        if isinstance(node, Observed):
            brought.add(node.name)
        elif not elementwise(node) and not (isinstance(node, Reduce) and node.axis == "tokens"):
            return False
    logps = {"logp_ref", "logp_old", "logp_sampler"}
    return bool(brought & logps) and brought <= logps | {"position", "length"} and expr.scope is Scope.SEQUENCE


def affine(expr: Expr, variable: Expr) -> bool:
    """Whether an expression is a · variable + b as it stands, with a and b free of it."""
    if expr == variable or not expr.has(variable):
        return True
    if expr.is_Add:
        return all(affine(term, variable) for term in expr.args)
    if expr.is_Mul:
        moving = [factor for factor in expr.args if factor.has(variable)]
        return len(moving) == 1 and affine(moving[0], variable)
    return False


def slope(expr: Expr, variable: Expr) -> Expr:
    """The derivative in a variable, from the table of functions; `sg` stops it."""
    if expr == variable:
        return ONE
    if not expr.has(variable) or expr.func == STOPPED or expr.func == TOTAL:
        return ZERO
    if expr.is_Add:
        return sympy.Add(*(slope(term, variable) for term in expr.args))
    if expr.is_Mul:
        others = ((factor, (other for other in expr.args if other != factor)) for factor in expr.args)
        return sympy.Add(*(sympy.Mul(slope(factor, variable), *rest) for factor, rest in others))
    for rule in RULES:
        if (found := rule(expr, variable)) is not None:
            return found
    row = FUNCTIONS["power" if expr.is_Pow else str(expr.func)]
    names = dict(zip(row.arguments, expr.args)) | {"out": expr}
    shares = (
        written(algebra, text, names) * slope(argument, variable)
        for argument, text in zip(expr.args, row.derivative)
        if text is not None
    )
    return sympy.Add(*shares)


def _branches(expr: Expr, variable: Expr) -> Expr | None:
    """The derivative of `A if C else B` is `A' if C else B'`; those of min and max are such choices too."""
    word, args = str(expr.func), expr.args
    if word == "choose":
        return branched(args[0], slope(args[1], variable), slope(args[2], variable))
    if word in ("min", "max"):
        first, second = (slope(argument, variable) for argument in args)
        tie = branched(algebra.apply("equal", *args), (first + second) / 2, second)
        return branched(algebra.apply("less" if word == "min" else "greater", *args), first, tie)
    return None


def branched(condition: Expr, then: Expr, otherwise: Expr) -> Expr:
    """`then if condition else otherwise`, with what both branches share in front of it."""
    front = algebra.shared([branch for branch in (then, otherwise) if branch != 0] or [ONE])
    return front * algebra.apply("choose", condition, then / front, otherwise / front)


def _pessimistic(expr: Expr, variable: Expr) -> Expr | None:
    """min(x A, clip(x, lo, hi) A) is flat in x where x > hi and A > 0, or x < lo and A < 0; its slope is A elsewhere.

    Max is the same for -A. This holds where lo <= hi; at x = lo and x = hi the two agree, half from each side.
    """
    word, args = str(expr.func), expr.args
    if word not in ("min", "max"):
        return None
    for straight, held in (args, args[::-1]):
        for clip in sympy.Mul.make_args(held):
            if str(clip.func) != "clip" or straight != clip.args[0] * (held / clip):
                continue
            (x, low, high), weight = clip.args, held / clip
            if weight.has(variable) or low.has(variable) or high.has(variable):
                continue
            good = algebra.apply("greater" if word == "min" else "less", weight, ZERO)
            past = algebra.apply("greater", x, high), algebra.apply("less", x, low)
            flat = algebra.apply("choose", good, *past)
            return weight * slope(x, variable) * algebra.apply("choose", flat, ZERO, ONE)
    return None


#: derivatives that are plainer than what the table gives, the more special first
RULES = (_pessimistic, _branches)
