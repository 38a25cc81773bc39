"""Sympy terms as text of the language, and the book of what their symbols stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import sympy
from sympy import Expr, Symbol

from grolang.language.functions import DENIED, FUNCTIONS, MIRRORED
from grolang.language.scopes import Scope

LOGP = Symbol("logp", real=True)
LENGTH = Symbol("length", real=True)
Z = Symbol("z", real=True)  # omega's argument
A = Symbol("a", real=True)  # upsilon's argument

#: `sum(x over tokens)` of what moves with the row's own `logp`
TOTAL = sympy.Function("sum over tokens", real=True)

#: what binds how tightly, as in the grammar
IF, OR, AND, NOT, COMPARE, SUM, PRODUCT, UNARY, POWER, ATOM = range(10)

_SIGMOID = sympy.Function("sigmoid", real=True)


@dataclass(frozen=True)
class Applied:
    """A form or reduction that a symbol stands for."""

    word: str
    axis: str
    arguments: tuple[Expr, ...]


_SCOPES = {LOGP: Scope.TOKEN, LENGTH: Scope.SEQUENCE, Z: Scope.TOKEN, A: Scope.TOKEN}


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
        """A symbol for `word(arguments over axis)`: two that read the same are the same."""
        found = Applied(word, axis, arguments)
        made = self.symbol(_call(found, self, {}), scope)
        self.applied[made] = found
        return made

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
        if expr.is_Symbol and self.applied.get(expr, Applied("", "", ())).word == "opposite":
            return self.applied[expr].arguments[0]
        if expr.is_Symbol or expr.func == TOTAL:
            return self.form("opposite", "", (expr,), Scope.SEQUENCE)
        return expr.func(*(self.away(argument) for argument in expr.args))


def signs_squared(expr: Expr, label: Symbol) -> Expr:
    """A label is 1 or -1: its square is 1."""
    return expr.replace(
        lambda part: part.is_Pow and part.base == label and part.exp.is_Integer,
        lambda part: label if part.exp % 2 else sympy.Integer(1),
    )


def spelled(expr: Expr, book: Book, names: Mapping[Expr, str] | None = None) -> str:
    """An expression in the language; what `names` knows is written by its name."""
    return _written(expr, book, names or {})[0]


def _written(expr: Expr, book: Book, names: Mapping[Expr, str]) -> tuple[str, int]:
    if expr in names:
        return names[expr], ATOM
    if expr.is_Rational:
        return _number(expr)
    if expr.is_Symbol:
        return (_call(book.applied[expr], book, names) if expr in book.applied else expr.name), ATOM
    if expr.func == TOTAL:
        return _call(Applied("sum", "tokens", expr.args), book, names), ATOM
    if expr.is_Add:
        return _sum(expr, book, names)
    if expr.is_Mul or (expr.is_Pow and expr.exp.could_extract_minus_sign()):
        return _product(expr, book, names)
    if expr.is_Pow:
        base, exponent = (_at(part, level, book, names) for part, level in ((expr.base, ATOM), (expr.exp, UNARY)))
        return f"{base} ^ {exponent}", POWER
    return _function(expr, book, names)


def _at(expr: Expr, level: int, book: Book, names: Mapping[Expr, str]) -> str:
    """An expression where only what binds at least so tightly can stand."""
    text, own = _written(expr, book, names)
    return text if own >= level else f"({text})"


def _number(value: sympy.Rational) -> tuple[str, int]:
    level = UNARY if value < 0 else ATOM
    if value.is_Integer:
        return str(value), level
    decimal = repr(float(value))
    if sympy.Rational(decimal) == value:
        return decimal.replace("e-0", "e-"), level
    return f"{value.p} / {value.q}", PRODUCT


def _call(found: Applied, book: Book, names: Mapping[Expr, str]) -> str:
    inner = ", ".join(_written(argument, book, names)[0] for argument in found.arguments)
    return f"{found.word}({inner} over {found.axis})" if found.axis else f"{found.word}({inner})"


def _sum(expr: Expr, book: Book, names: Mapping[Expr, str]) -> tuple[str, int]:
    terms = _gathered(expr, book)
    if len(terms) == 1:
        return _written(terms[0], book, names)
    rows = []
    for term in terms:
        negative, size = _signed(term)
        rows.append((negative, _rank(size, book), _at(size, PRODUCT, book, names)))
    rows.sort()
    first, *rest = rows
    text = f"-{first[2]}" if first[0] else first[2]
    return text + "".join(f" {'-' if negative else '+'} {word}" for negative, _, word in rest), SUM


def _signed(term: Expr) -> tuple[bool, Expr]:
    """Whether a term is written with a minus sign, and what follows it: -(a - 1) x is (1 - a) x."""
    number, rest = term.as_coeff_Mul()
    if number >= 0:
        return False, term
    factors = sympy.Mul.make_args(rest)
    for place, factor in enumerate(factors):
        if factor.is_Add and any(bool(part.as_coeff_Mul()[0] < 0) for part in factor.args):
            return False, sympy.Mul(-number, *factors[:place], -factor, *factors[place + 1 :])
    return True, -term


def _gathered(expr: Expr, book: Book) -> list[Expr]:
    """The terms of a sum, with the sums over tokens among them made one."""
    inside: dict[tuple[bool, Expr], list[Expr]] = {}
    rest = []
    for term in expr.args:
        number, part = term.as_coeff_Mul()
        mean = part.has(1 / LENGTH) and part.is_Mul
        total = part * LENGTH if mean else part
        found = _tokens(total, book)
        if found is None:
            rest.append(term)
        else:
            inside.setdefault((bool(mean), sympy.Integer(1)), []).append(number * found)
    for (mean, _), parts in inside.items():
        total = TOTAL(sum(parts, sympy.Integer(0)))
        rest.append(total / LENGTH if mean else total)
    return rest


def _tokens(expr: Expr, book: Book) -> Expr | None:
    """What a sum over tokens sums."""
    if expr.func == TOTAL:
        return expr.args[0]
    found = book.applied.get(expr)
    return found.arguments[0] if found and (found.word, found.axis) == ("sum", "tokens") else None


def _product(expr: Expr, book: Book, names: Mapping[Expr, str]) -> tuple[str, int]:
    negative, size = _signed(expr)
    number, rest = size.as_coeff_Mul()
    over, under = sympy.fraction(rest)
    factors = list(sympy.Mul.make_args(over))
    if under.is_Mul or under == LENGTH:  # a sum over the length is a mean
        for place, factor in enumerate(factors):
            if LENGTH in sympy.Mul.make_args(under) and (inner := _tokens(factor, book)) is not None:
                word = book.form("mean", "tokens", (inner,), Scope.SEQUENCE)
                factors[place], under = word, under / LENGTH
                break
    sign = "-" if negative else ""
    if number.q > 1 and sympy.Rational(repr(float(number))) == number and number.q > 9:
        above, below = [_number(number)[0]], sympy.Integer(1)
    else:
        above, below = ([str(number.p)] if number.p > 1 else []), sympy.Integer(number.q)
    words = [(_rank(factor, book), _at(factor, POWER, book, names)) for factor in factors if factor != 1]
    above += [word for _, word in sorted(words)]
    text = sign + " * ".join(above or ["1"])
    if below * under == 1:
        return text, (UNARY if sign and len(above) == 1 else PRODUCT if len(above) > 1 else POWER)
    return f"{text} / {_at(below * under, POWER, book, names)}", PRODUCT


def _rank(expr: Expr, book: Book) -> int:
    """Numbers first, then parameters, then names, then what is longer."""
    part = expr.as_coeff_Mul()[1]
    if expr.is_number or part.is_Symbol:
        return 0 if expr.is_number else 1 if book.scope(part) is Scope.CONST else 2
    return 2 if part.is_Pow else 3 if part.is_Mul else 4


def _function(expr: Expr, book: Book, names: Mapping[Expr, str]) -> tuple[str, int]:
    word, args = str(expr.func), expr.args
    if word in DENIED:
        return _comparison(word, args[0], args[1], book, names), COMPARE
    if word in ("and", "or"):
        level = AND if word == "and" else OR
        return f" {word} ".join(_at(argument, level + 1, book, names) for argument in args), level
    if word == "not":
        return f"not {_at(args[0], NOT, book, names)}", NOT
    if word == "choose":
        condition, then, otherwise = args
        texts = _at(then, OR, book, names), _at(condition, OR, book, names), _at(otherwise, IF, book, names)
        return "{} if {} else {}".format(*texts), IF
    return _call(Applied(word, "", args), book, names), ATOM


def _comparison(word: str, left: Expr, right: Expr, book: Book, names: Mapping[Expr, str]) -> str:
    """`a > b`, without minus signs at the front, and `z` on the left."""
    if right == 0 and left.is_Add and left not in names:
        terms = left.args
        left = sum((term for term in terms if term.as_coeff_Mul()[0] > 0), sympy.Integer(0))
        right = sum((-term for term in terms if term.as_coeff_Mul()[0] < 0), sympy.Integer(0))
    if (right.has(Z) and not left.has(Z)) or (left.is_number and not right.is_number):
        word, left, right = MIRRORED.get(word, word), right, left
    sides = _at(left, SUM, book, names), _at(right, SUM, book, names)
    return f"{sides[0]} {FUNCTIONS[word].symbol} {sides[1]}"


class _Algebra:
    """The table's functions on sympy terms: arithmetic is sympy's own, the rest stays a function of its name."""

    def number(self, value: float) -> Expr:
        return sympy.Integer(int(value)) if value == int(value) else sympy.Rational(repr(value))

    def apply(self, function: str, *args: Expr) -> Expr:
        if (known := _logistic(function, *args)) is not None:
            return known
        if function in _ARITHMETIC:
            return _ARITHMETIC[function](*args)
        if function in _DECIDED and all(arg.is_number for arg in args):
            return self.number(FUNCTIONS[function].number(*(float(arg) for arg in args)))
        if function == "choose":
            return _chosen(*args)
        if function in ("and", "or") and args[0].is_number:
            return args[1] if bool(args[0] != 0) == (function == "and") else args[0]
        if function in MIRRORED and args[1] == 0 and args[0].as_coeff_Mul()[0] < 0:
            return self.apply(MIRRORED[function], -args[0], args[1])
        return sympy.Function(function, real=True)(*args)


_ARITHMETIC: dict[str, Callable[..., Expr]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "chain": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "power": lambda a, b: a**b,
    "negate": lambda a: -a,
}
#: functions whose value at plain numbers is a plain number
_DECIDED = {*DENIED, "not", "min", "max", "clip", "relu", "abs", "sign"}


def _logistic(function: str, *args: Expr) -> Expr | None:
    """The sigmoid and its logarithms, where they are spelt out: e^a / (e^a + e^b), log(1 + e^x), log(sigmoid(x))."""
    x = args[0]
    if function == "divide" and args[1].is_Add and len(args[1].args) == 2 and x in args[1].args:
        above, below = _exponent(x), _exponent(args[1] - x)
        if above is not None and below is not None and above != below:
            return _SIGMOID(above - below)
    if function == "log" and x.func == _SIGMOID:
        return sympy.Function("logsigmoid", real=True)(x.args[0])
    if function == "log" and x.is_Add and len(x.args) == 2 and sympy.Integer(1) in x.args:
        exponent = _exponent(x - 1)
        return None if exponent in (None, 0) else sympy.Function("softplus", real=True)(exponent)
    return None


def _exponent(expr: Expr) -> Expr | None:
    return sympy.Integer(0) if expr == 1 else expr.args[0] if str(expr.func) == "exp" else None


def _chosen(condition: Expr, then: Expr, otherwise: Expr) -> Expr:
    if condition.is_number:
        return then if condition != 0 else otherwise
    if then == otherwise:
        return then
    if (then, otherwise) == (1, 0) and str(condition.func) in {*DENIED, "not"}:
        return condition
    return sympy.Function("choose", real=True)(condition, then, otherwise)


ALGEBRA = _Algebra()
