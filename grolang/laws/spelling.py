"""Terms as text of the language, in the order and with the parentheses of an author.

Every writer gives a text and how tightly it binds, so that who sets it beside another knows whether to put it in
parentheses. With S the sum of `logp` over a completion's tokens:

    beta·(S/length − 1)     beta * (mean(logp over tokens) - 1)
    sigmoid(−z)·beta/4      beta * sigmoid(-z) / 4

Sympy's printers are no help: they know no choices, sort by other rules, and would not see that S / length is a mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import sympy
from sympy import Expr

from grolang.language.functions import DENIED, FUNCTIONS, MIRRORED
from grolang.language.scopes import Scope
from grolang.laws.book import LENGTH, ONE, TOTAL, ZERO, Applied, Book, Z

#: what binds how tightly, as in the grammar
IF, OR, AND, NOT, COMPARE, SUM, PRODUCT, UNARY, POWER, ATOM = range(10)


def spelled(expr: Expr, book: Book, names: Mapping[Expr, str] | None = None) -> str:
    """An expression in the language; what `names` knows is written by its name."""
    return _Speller(book, names or {}).text(expr)


def added(texts: Iterable[str]) -> str:
    """The sum of texts, of which some begin with a minus sign."""
    whole = "".join(f" - {text[1:]}" if text.startswith("-") else f" + {text}" for text in texts)
    return f"-{whole[3:]}" if whole.startswith(" - ") else whole[3:]


@dataclass(frozen=True)
class _Speller:
    book: Book
    names: Mapping[Expr, str]

    def text(self, expr: Expr, level: int = IF) -> str:
        """An expression where only what binds at least so tightly can stand."""
        text, own = self._written(expr)
        return text if own >= level else f"({text})"

    def _written(self, expr: Expr) -> tuple[str, int]:
        if expr in self.names:
            return self.names[expr], ATOM
        if expr.is_Rational:
            return _number(expr)
        if expr in self.book.applied:
            return self._call(self.book.applied[expr]), ATOM
        if expr.is_Symbol:
            return expr.name, ATOM
        if expr.is_Add:
            return self._sum(expr)
        if expr.is_Mul or (expr.is_Pow and expr.exp.could_extract_minus_sign()):
            return self._product(expr)
        if expr.is_Pow:
            return f"{self.text(expr.base, ATOM)} ^ {self.text(expr.exp, UNARY)}", POWER
        if expr.func == TOTAL:
            return self._call(Applied("sum", "tokens", expr.args)), ATOM
        return self._function(str(expr.func), expr.args)

    def _call(self, found: Applied) -> str:
        inner = ", ".join(self.text(argument) for argument in found.arguments)
        return f"{found.word}({inner} over {found.axis})" if found.axis else f"{found.word}({inner})"

    def _sum(self, expr: Expr) -> tuple[str, int]:
        terms = self._gathered(expr)
        if len(terms) == 1:
            return self._written(terms[0])
        signed = (_signed(term) for term in terms)
        rows = sorted((negative, self._rank(size), self.text(size, PRODUCT)) for negative, size in signed)
        return added(f"-{word}" if negative else word for negative, _, word in rows), SUM

    def _gathered(self, expr: Expr) -> list[Expr]:
        """The terms of a sum, with the sums over tokens among them made one, and the means."""
        inside: dict[Expr, Expr] = {}
        rest = []
        for term in expr.args:
            number, part = term.as_coeff_Mul()
            for divisor in (ONE, LENGTH):
                if (found := self._summed(part * divisor)) is not None:
                    inside[divisor] = inside.get(divisor, ZERO) + number * found
                    break
            else:
                rest.append(term)
        return rest + [TOTAL(total) / divisor for divisor, total in inside.items()]

    def _summed(self, expr: Expr) -> Expr | None:
        """What a sum over tokens sums."""
        if expr.func == TOTAL:
            return expr.args[0]
        found = self.book.applied.get(expr)
        return found.arguments[0] if found and (found.word, found.axis) == ("sum", "tokens") else None

    def _product(self, expr: Expr) -> tuple[str, int]:
        negative, size = _signed(expr)
        number, rest = size.as_coeff_Mul()
        over, under = sympy.fraction(rest)
        factors, under = self._averaged(list(sympy.Mul.make_args(over)), under)
        words = sorted((self._rank(factor), self.text(factor, POWER)) for factor in factors if factor != 1)
        above = [word for _, word in words]
        if number.q > 9 and (decimal := _decimal(number)):
            above.insert(0, decimal)
        else:
            above, under = ([str(number.p)] if number.p > 1 else []) + above, number.q * under
        text = ("-" if negative else "") + " * ".join(above or ["1"])
        if under != 1:
            return f"{text} / {self.text(under, POWER)}", PRODUCT
        return text, PRODUCT if len(above) > 1 else UNARY if negative else POWER

    def _averaged(self, factors: list[Expr], under: Expr) -> tuple[list[Expr], Expr]:
        """A sum over the length is a mean."""
        if LENGTH in sympy.Mul.make_args(under):
            for place, factor in enumerate(factors):
                if (inner := self._summed(factor)) is not None:
                    mean = self.book.form("mean", "tokens", (inner,), Scope.SEQUENCE)
                    return [*factors[:place], mean, *factors[place + 1 :]], under / LENGTH
        return factors, under

    def _rank(self, expr: Expr) -> int:
        """Numbers first, then parameters, then names, then what is longer."""
        part = expr.as_coeff_Mul()[1]
        if expr.is_number or part.is_Symbol:
            return 0 if expr.is_number else 1 if self.book.scope(part) is Scope.CONST else 2
        return 2 if part.is_Pow else 3 if part.is_Mul else 4

    def _function(self, word: str, args: tuple[Expr, ...]) -> tuple[str, int]:
        if word in DENIED:
            return self._comparison(word, *args), COMPARE
        if word in ("and", "or"):
            level = AND if word == "and" else OR
            return f" {word} ".join(self.text(argument, level + 1) for argument in args), level
        if word == "not":
            return f"not {self.text(args[0], NOT)}", NOT
        if word == "choose":
            condition, then, otherwise = args
            return f"{self.text(then, OR)} if {self.text(condition, OR)} else {self.text(otherwise)}", IF
        return self._call(Applied(word, "", args)), ATOM

    def _comparison(self, word: str, left: Expr, right: Expr) -> str:
        """`a > b`, without minus signs at the front, and `z` on the left."""
        if right == 0 and left.is_Add and left not in self.names:
            falling = [term for term in left.args if term.as_coeff_Mul()[0] < 0]
            left, right = left - sympy.Add(*falling), -sympy.Add(*falling)
        if (right.has(Z) and not left.has(Z)) or (left.is_number and not right.is_number):
            word, left, right = MIRRORED.get(word, word), right, left
        return f"{self.text(left, SUM)} {FUNCTIONS[word].symbol} {self.text(right, SUM)}"


def _number(value: sympy.Rational) -> tuple[str, int]:
    text = _decimal(value)
    return (text, UNARY if value < 0 else ATOM) if text else (f"{value.p} / {value.q}", PRODUCT)


def _decimal(value: sympy.Rational) -> str:
    """A number without a division, or nothing where it has no such text."""
    text = str(value) if value.is_Integer else repr(float(value)).replace("e-0", "e-")
    return text if sympy.Rational(text) == value else ""


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
