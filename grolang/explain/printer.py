"""Expressions as formulas: indices for scopes, and parentheses where they are needed.

A value of scope sequence gets the index i, one of scope token i and t, one of scope group g. A reduction binds a
letter of its own; a form such as `opposite(x)` is its argument at another index. A definition is written by its
name, so that each formula stays short; which names a formula mentions is remembered, to be defined below it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from grolang.explain import notation
from grolang.explain.formula import NOTHING, Formula
from grolang.explain.notation import (
    ATOM,
    BIG,
    CHOICE,
    COMPARED,
    NOT,
    OPEN,
    POWER,
    PRODUCT,
    SIGNED,
    SUM,
    Moved,
    Notation,
)
from grolang.explain.tidy import TRUTHS, tidied, truth, unsigned
from grolang.language.functions import DENIED, OBSERVABLES
from grolang.language.ir import Argument, Call, Expr, MethodIR, Named, Number, Observed, Parameter, Reduce
from grolang.language.scopes import Scope
from grolang.language.source import NOWHERE

MINUS = Formula(" - ", " − ")
NEGATIVE = Formula("-", "−")
TIMES = Formula(r"\,", "·")
MEMBER = Formula(r" \in ", "∈")
SIGMA = Formula(r"\sum", "Σ")
HELD = Formula(r"\left({0}\right)", "({0})")

_SHORT = 40  # an exponent of more characters is written as exp(…)


#: the usual letters of indices
SEQUENCE, TOKEN, GROUP = Formula.plain("i"), Formula.plain("t"), Formula.plain("g")


@dataclass(frozen=True)
class Place:
    """Where a value is read: the indices of its sequence, token and group, and the letters that are taken.

    `own` is the sequence whose others a reduction runs over; nothing within a reduction that stands in no sequence.
    """

    own: Formula = SEQUENCE
    sequence: Formula = SEQUENCE
    token: Formula = TOKEN
    group: Formula = GROUP
    taken: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Written:
    """A piece, and how tightly it holds together in LaTeX and in text."""

    formula: Formula
    latex: int
    text: int

    @staticmethod
    def at(level: int, formula: Formula) -> Written:
        """A piece that holds together as tightly in both."""
        return Written(formula, level, level)

    def held(self, latex: int, text: int | None = None) -> Formula:
        """The piece, in parentheses where it holds together less than is asked."""
        whole = HELD.format(self.formula)
        return Formula(
            self.formula.latex if self.latex >= latex else whole.latex,
            self.formula.text if self.text >= (latex if text is None else text) else whole.text,
        )


@dataclass
class Printer:
    """Writes expressions of one method.

    `expanded` are the definitions that are written out where they stand; `arguments` what stands for the argument of
    omega and of upsilon. `mentioned` and `legend` collect the names and signs that were used.
    """

    method: MethodIR
    expanded: Collection[str] = ()
    arguments: Mapping[str, Formula] = field(default_factory=dict)
    mentioned: dict[str, None] = field(default_factory=dict)
    legend: dict[Formula, str] = field(default_factory=dict)

    # --- places -----------------------------------------------------------------------------------------------------

    def place(self, scope: Scope) -> Place:
        """Where a value of this scope stands, seen from outside."""
        letters = (("g", Scope.GROUP), ("i", Scope.SEQUENCE), ("t", Scope.TOKEN))
        return Place(taken=frozenset(letter for letter, own in letters if scope >= own))

    def _letter(self, letters: str, place: Place) -> Formula:
        names = {*self.method.parameters, *self.method.definitions, *self.method.scores}
        return Formula.plain(next(letter for letter in letters if letter not in place.taken | names))

    def _with_token(self, place: Place) -> Place:
        letter = self._letter("tksuv", place)
        return replace(place, token=letter, taken=place.taken | {letter.text})

    def _with_sequence(self, place: Place) -> Place:
        letter, own = self._letter("ijnqr", place), place.own if SEQUENCE.text in place.taken else NOTHING
        return replace(place, own=own, sequence=letter, taken=place.taken | {letter.text})

    def index(self, scope: Scope, place: Place) -> Formula:
        """The subscript of a value of this scope."""
        match scope:
            case Scope.TOKEN:
                return place.sequence + Formula(",", "") + place.token
            case Scope.SEQUENCE | Scope.COMPARISON:
                return place.sequence
            case Scope.GROUP:
                return place.group
            case _:
                return NOTHING

    # --- expressions ------------------------------------------------------------------------------------------------

    def of(self, expr: Expr, level: int = OPEN) -> Formula:
        """An expression at its own place."""
        return self.at(expr, self.place(expr.scope), level)

    def at(self, expr: Expr, place: Place, level: int = OPEN) -> Formula:
        """An expression at a place, in parentheses where it holds together less than is asked."""
        return self._expression(expr, place).held(level)

    def _expression(self, expr: Expr, place: Place) -> Written:
        match expr:
            case Number():
                return number(expr.value)
            case Parameter():
                return Written.at(ATOM, notation.named(expr.name))
            case Observed():
                return self._observed(expr, place)
            case Named():
                return self._named(expr, place)
            case Argument() if place.sequence == place.own:
                return Written.at(ATOM, self.arguments[expr.name])
            case Argument():  # of another sequence
                return Written.at(ATOM, self.symbol({"omega": "z"}.get(expr.name, "advantage"), expr.scope, place))
            case Reduce():
                return self._reduce(expr, place)
            case Call():
                return self._call(expr, place)
            case _:
                self.legend[Formula.plain("c")] = "any number"
                return Written.at(ATOM, self.symbol("c", expr.scope, place))

    def _observed(self, expr: Observed, place: Place) -> Written:
        if expr.name not in notation.OBSERVABLES:
            return Written.at(ATOM, notation.named(expr.name, self.index(expr.scope, place)))
        template, meaning = notation.OBSERVABLES[expr.name]
        if meaning:
            self.legend[_filled(template, Place())] = meaning
        return Written.at(PRODUCT if expr.name.startswith("logp") else ATOM, _filled(template, place))

    def _named(self, expr: Named, place: Place) -> Written:
        if expr.name in self.expanded:
            return self._expression(self.method.definitions[expr.name].body, place)
        self.mentioned[expr.name] = None
        return Written.at(ATOM, self.symbol(expr.name, expr.scope, place))

    def symbol(self, name: str, scope: Scope, place: Place | None = None) -> Formula:
        """A definition's or component's sign with its index."""
        index = self.index(scope, place or self.place(scope))
        if name not in notation.COMPONENTS:
            return notation.named(name, index)
        sign = notation.COMPONENTS[name]
        return sign + Formula("_{{{0}}}", "_{0}").format(index) if index else sign

    def observed(self, name: str, scope: Scope) -> Formula:
        """An observable or score; its scope is that of its row, or a sequence's."""
        own = OBSERVABLES[name].scope if name in OBSERVABLES else Scope.SEQUENCE
        place = self.place(max(own, scope))
        return self._observed(Observed(scope=own, span=NOWHERE, name=name), place).formula

    def function(self, name: str) -> Formula:
        """`ω(z)`, with the author's name of the argument."""
        argument = notation.named(self.method.functions[name].argument)
        return self.symbol(name, Scope.CONST) + "(" + argument + ")"

    def exchange(self, name: str, expr: Expr) -> tuple[Formula, Formula]:
        """An observable and its stand-in, as in `when NAME = EXPR` of a law."""
        return self.observed(name, expr.scope).tight(), self.of(expr).tight()

    # --- functions --------------------------------------------------------------------------------------------------

    def _call(self, expr: Call, place: Place) -> Written:
        if expr.function in notation.FORMS:
            return self._form(expr, place)
        if expr.function not in notation.FUNCTIONS:
            return self._spelled(notation.called(expr.function, len(expr.arguments)), expr, place)
        if truth(expr, self.method):
            one = Formula(r"\mathbf{{1}}\left[{0}\right]", "1[{0}]")
            return Written.at(ATOM, one.format(self._condition(expr, place).formula))
        plain = unsigned(expr)
        if plain is not expr and expr.function != "negate":
            return Written.at(SIGNED, NEGATIVE + self._expression(plain, place).held(BIG))
        match expr := tidied(expr):
            case Call(function="negate", arguments=(Call(function="expm1", arguments=(x,)),)):
                return Written.at(SUM, Formula("1 - e^{{{0}}}", "1 − exp({0})").format(self.at(x, place)))
            case Call(function="subtract") if shared := self._ratio(expr, place):
                return Written(Formula(r"\log {0}", "log({0})").format(shared), PRODUCT, ATOM)
            case Call(function="exp", arguments=(x,)):
                return self._exponential(x, place)
            case Call(function="choose"):
                return self._cases(expr, place)
            case _:
                return self._spelled(notation.FUNCTIONS[expr.function], expr, place)

    def _exponential(self, x: Expr, place: Place) -> Written:
        """A ratio where x is the difference of two log-probs, else, in LaTeX, a power where x is short."""
        if shared := self._ratio(x, place):
            return Written(shared, PRODUCT, BIG)
        power = self.at(x, place)
        whole = notation.FUNCTIONS["exp"].template.format(power)
        if len(power.latex) <= _SHORT and r"\frac" not in power.latex:
            return Written(Formula(f"e^{{{power.latex}}}", whole.text), POWER, ATOM)
        return Written.at(ATOM, whole)

    def _ratio(self, expr: Expr, place: Place) -> Formula:
        """Of the difference of two log-probs: the ratio whose logarithm it is; blank for the rest."""
        match expr:
            case Call(function="subtract", arguments=(Observed() as above, Observed() as below)):
                logps = above.name.startswith("logp") and below.name.startswith("logp")
                if not logps or above.name == below.name:
                    return NOTHING
            case _:
                return NOTHING
        parts = [self._observed(part, place).formula for part in (above, below)]
        parts = [Formula(part.latex.removeprefix(r"\log "), part.text.removeprefix("log ")) for part in parts]
        return Formula(r"\frac{{{0}}}{{{1}}}", "{0} / {1}").format(*parts)

    def _spelled(self, row: Notation, expr: Call, place: Place) -> Written:
        written = [self._expression(argument, place) for argument in expr.arguments]
        rest = (OPEN,) * len(written)
        parts = [part.held(*levels) for part, *levels in zip(written, row.latex.places + rest, row.text.places + rest)]
        template, latex, text = row.template, row.latex.level, row.text.level
        if expr.function == "multiply":  # what ends in a sum takes in what follows
            latex, text = (BIG if level == BIG else PRODUCT for level in (written[1].latex, written[1].text))
            if parts[1].latex[:1].isdigit():
                template = Formula(template.latex.replace(r"\,", r" \cdot "), template.text)
        return Written(_filled(template.format(*parts), place), latex, text)

    def _cases(self, expr: Call, place: Place) -> Written:
        """`A if C else B`; in LaTeX a row for each case."""
        spelling = notation.FUNCTIONS["choose"].text
        rows: list[tuple[Formula, Formula]] = []
        rest: Expr = expr
        while isinstance(rest, Call) and rest.function == "choose":
            condition, then, rest = rest.arguments
            value = self._expression(then, place).held(OPEN, spelling.places[1])
            rows.append((self._condition(condition, place).held(OPEN, spelling.places[0]), value))
        last = self._expression(rest, place).held(OPEN, spelling.places[2])
        latex, text = "", last.text
        for held, value in reversed(rows):
            latex = rf"{value.latex} & \text{{if }} {held.latex} \\ " + latex
            text = spelling.template.format(held.text, value.text, text)
        latex = rf"\begin{{cases}} {latex}{last.latex} & \text{{otherwise}} \end{{cases}}"
        return Written(Formula(latex, text), CHOICE, spelling.level)

    # --- conditions -------------------------------------------------------------------------------------------------

    def _condition(self, expr: Expr, place: Place) -> Written:
        """An expression where it is asked whether it holds."""
        match expr:
            case Call(function="not", arguments=(inner,)):
                return self._denied(inner, place)
            case Call(function="and" | "or" as function, arguments=(a, b)):
                return _joined(function, self._condition(a, place), self._condition(b, place))
            case Call(function="choose", arguments=(condition, then, otherwise)) if truth(expr, self.method):
                # where it holds the one, elsewhere the other
                first = _joined("and", self._condition(condition, place), self._condition(then, place))
                second = _joined("and", self._denied(condition, place), self._condition(otherwise, place))
                return _joined("or", first, second)
            case Call() if expr.function in TRUTHS:
                return self._spelled(notation.FUNCTIONS[expr.function], expr, place)
            case Named() if truth(expr, self.method):
                return self._expression(expr, place)
            case _:
                return Written.at(COMPARED, self.at(expr, place, SUM) + Formula(r" \ne 0", " ≠ 0"))

    def _denied(self, expr: Expr, place: Place) -> Written:
        match expr:
            case Call() if expr.function in DENIED:
                return self._condition(expr.model_copy(update={"function": DENIED[expr.function]}), place)
            case Call(function="not", arguments=(inner,)):
                return self._condition(inner, place)
            case _:
                return Written.at(NOT, Formula(r"\lnot ", "not ") + self._condition(expr, place).held(ATOM))

    # --- forms and reductions ---------------------------------------------------------------------------------------

    def _form(self, expr: Call, place: Place) -> Written:
        row, value = notation.FORMS[expr.function], expr.arguments[0]
        if isinstance(row, Moved):
            return self._expression(value, self._moved(row, place))
        if "@k" in row.latex.template:
            return self._later(row, expr, place)
        return self._spelled(row, expr, place)

    def _moved(self, row: Moved, place: Place) -> Place:
        """The place of the other sequence that a form reads."""
        letter = place.sequence
        if "@own" in row.index.latex:
            return replace(place, sequence=place.own)
        if "{" in row.index.latex:  # an accent stands in place of the dot
            letter = Formula({"i": r"\imath", "j": r"\jmath"}.get(letter.latex, letter.latex), letter.text)
        index = row.index.replace("@", letter)
        self.legend[index] = row.legend
        return replace(place, sequence=index, taken=place.taken | {letter.text})

    def _later(self, row: Notation, expr: Call, place: Place) -> Written:
        """A sum over later tokens; a discount of 1 is not written."""
        later = self._with_token(place)
        template = row.template.replace("@k", later.token)
        value, discount = expr.arguments
        if isinstance(discount, Number) and discount.value == 1:
            sums = Formula(template.latex.partition("{1}")[0], template.text.partition("{1}")[0])
            return Written.at(BIG, _filled(sums.format(), place) + self.at(value, later, BIG))
        parts = self.at(value, later, BIG), self.at(discount, place, ATOM)
        return Written.at(BIG, _filled(template.format(*parts), place))

    def _reduce(self, expr: Reduce, place: Place) -> Written:
        row, value = notation.REDUCTIONS[expr.function], expr.arguments[0]
        inner, domains, count = self._range(value.scope, expr.axis, place)
        if row.big:
            sums = NOTHING.join(under(row.operator, domain) for domain in domains)
            share = self.share([count]) if row.averaged else NOTHING
            return Written.at(BIG, share + sums + self.at(value, inner, BIG))
        below = Formula.plain(", ").join(domains)
        if len(expr.arguments) > 1:
            below = self.at(expr.arguments[1], place) + "; " + below
        operator = under(row.operator, below)
        operator = Formula(operator.latex.strip(), operator.text.strip())
        return Written.at(ATOM, operator + HELD.format(self.at(value, inner)))

    def share(self, counts: Iterable[Formula]) -> Formula:
        """One part of so many, in front of a sum."""
        count = TIMES.join(counts)
        for sign, meaning in notation.COUNTS.items():
            if sign in count.latex:
                self.legend[Formula.plain(sign)] = meaning
        text = f"({count.text})" if {" ", "·"} & set(count.text) else count.text
        return Formula(rf"\frac{{1}}{{{count.latex}}} ", f"1/{text} ")

    def _range(self, scope: Scope, axis: str, place: Place) -> tuple[Place, list[Formula], Formula]:
        """What a reduction runs over: the inner place, the domains of its letters, and how many terms there are."""
        if axis == "tokens":
            inner = self._with_token(place)
            return inner, [inner.token], length(place.sequence)
        inner = self._with_sequence(place)
        letter = inner.sequence
        if axis == "batch":
            inner = replace(inner, group=GROUP + "(" + letter + ")")
            domain, sequences = letter, Formula.plain("S")
        else:
            domain, sequences = letter + MEMBER + place.group, size(place.group)
            if axis == "others":
                domain, sequences = domain + Formula(r" \setminus ", "∖") + place.sequence, sequences + MINUS + "1"
                inner = replace(inner, own=place.sequence)
        if scope is not Scope.TOKEN:
            return inner, [domain], sequences
        inside = self._with_token(inner)
        tokens = Formula.plain("N") if axis == "batch" else under(SIGMA, domain) + length(letter)
        return inside, [domain, inside.token], tokens


def _filled(template: Formula, place: Place) -> Formula:
    """With the indices of a place for its marks."""
    for mark, index in (("@i", place.sequence), ("@t", place.token), ("@g", place.group)):
        template = template.replace(mark, index)
    return template


def _joined(function: str, a: Written, b: Written) -> Written:
    spelling = notation.FUNCTIONS[function].latex  # both have the same levels
    own, apart = spelling.level, spelling.places[1]  # "and" within "or" gets parentheses too
    left = a.held(own if a.latex == own else apart, own if a.text == own else apart)
    return Written.at(own, notation.FUNCTIONS[function].template.format(left, b.held(apart)))


def number(value: float) -> Written:
    """`0.1`, `−∞`, `3·10^-5`"""
    if value < 0:
        return Written.at(SIGNED, "-" + number(-value).formula)
    if math.isinf(value):
        return Written.at(ATOM, Formula(r"\infty", "∞"))
    digits, _, power = f"{value:.6g}".partition("e")
    if not power:
        return Written.at(ATOM, Formula.plain(digits))
    ten = Formula("10^{{{0}}}", "10^{0}").format(Formula.plain(str(int(power))))
    if digits == "1":
        return Written.at(POWER, ten)
    return Written.at(PRODUCT, digits + Formula(r" \cdot ", "·") + ten)


def setting(name: str, value: float) -> Formula:
    """`ε = 0.2`"""
    return (notation.named(name) + " = " + number(value).formula).tight()


def under(operator: Formula, domain: Formula) -> Formula:
    """An operator with what it runs over."""
    text = domain.text if len(domain.text) == 1 else f"({domain.text})"
    return Formula(f"{operator.latex}_{{{domain.latex}}} ", f"{operator.text}_{text} ")


def length(sequence: Formula) -> Formula:
    """How many tokens a completion has."""
    return Formula(r"\left\lvert y_{{{0}}}\right\rvert", "|y_{0}|").format(sequence)


def size(group: Formula) -> Formula:
    """How many sequences a group has."""
    return Formula(r"\left\lvert {0}\right\rvert", "|{0}|").format(group)
