"""Expressions as formulas, in LaTeX and in plain Unicode: indices for scopes, and parentheses where they are needed.

A value of scope sequence gets the index i, one of scope token i and t, one of scope group g. A reduction binds a
letter of its own; a form such as `opposite(x)` is its argument at another index. A definition is written by its
name, so that each formula stays short; which names a formula mentions is remembered, to be defined below it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from grolang.explain import notation
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
from grolang.language.functions import DENIED, OBSERVABLES
from grolang.language.ir import Argument, Call, Expr, MethodIR, Named, Number, Observed, Parameter, Reduce
from grolang.language.scopes import Scope
from grolang.language.source import NOWHERE


@dataclass(frozen=True)
class Formula:
    """One formula: LaTeX for pages, Unicode text for terminals."""

    latex: str
    text: str

    @staticmethod
    def of(latex: str, text: str) -> Formula:
        """With parentheses that grow only around what is tall."""
        return Formula(tightened(latex), text)

    def mathml(self, *, display: bool = False) -> str:
        """MathML Core, which browsers draw by themselves; needs the package math-core (extra `explain`)."""
        from grolang.explain.mathml import converted

        return converted(self.latex, display=display)


_DELIMITER = re.compile(r"\\(left|right)(\\[lr]vert|[()\[\]])")
_TALL = (r"\frac", r"\sum", r"\begin", r"\max_", r"\min_")


def tightened(latex: str) -> str:
    """Without \\left and \\right around what is no taller than a line: they would set it apart."""
    pieces = [""]  # of the text, one more for each open parenthesis
    last, signs = 0, list[str]()
    for found in _DELIMITER.finditer(latex):
        pieces[-1] += latex[last : found.start()]
        last = found.end()
        if found[1] == "left":
            pieces.append("")
            signs.append(found[2])
            continue
        inside, opening = pieces.pop(), signs.pop()
        if any(sign in inside for sign in _TALL):
            pieces[-1] += rf"\left{opening}{inside}\right{found[2]}"
        else:
            pieces[-1] += f"{opening}{inside}{found[2]}"
    return pieces[0] + latex[last:]


@dataclass(frozen=True)
class Place:
    """Where a value is read: the indices of its sequence, token and group, and the letters that are taken.

    `own` is the sequence whose others a reduction runs over.
    """

    own: str = ""
    sequence: str = ""
    token: str = ""
    group: str = ""
    taken: frozenset[str] = frozenset()


Written = tuple[str, int]  # a text and how tightly it holds together

_TRUTHS = (*DENIED, "not")
_SHORT = 40  # an exponent of more characters is written as exp(…)


@dataclass
class Printer:
    """Writes expressions of one method in one of the two spellings.

    `expanded` are the definitions that are written out where they stand; `arguments` what stands for the argument of
    omega and of upsilon. `mentioned` and `legend` collect the names and signs that were used.
    """

    method: MethodIR
    latex: bool
    expanded: Collection[str] = ()
    arguments: Mapping[str, str] = field(default_factory=dict)
    mentioned: dict[str, None] = field(default_factory=dict)
    legend: dict[str, str] = field(default_factory=dict)

    # --- places -----------------------------------------------------------------------------------------------------

    def place(self, scope: Scope) -> Place:
        """Where a value of this scope stands, seen from outside."""
        sequence = "i" if scope >= Scope.SEQUENCE else ""
        token = "t" if scope is Scope.TOKEN else ""
        group = "g" if scope >= Scope.GROUP else ""
        return Place(sequence, sequence, token, group, frozenset(sequence + token + group))

    def _letter(self, letters: str, place: Place) -> str:
        names = {*self.method.parameters, *self.method.definitions, *self.method.scores}
        return next(letter for letter in letters if letter not in place.taken | names)

    def _with_token(self, place: Place) -> Place:
        letter = self._letter("tksuv", place)
        return replace(place, token=letter, taken=place.taken | {letter})

    def _with_sequence(self, place: Place, group: str) -> Place:
        letter = self._letter("ijnqr", place)
        return replace(place, sequence=letter, token="", group=group, taken=place.taken | {letter})

    def index(self, scope: Scope, place: Place) -> str:
        """The subscript of a value of this scope."""
        comma = "," if self.latex else ""
        match scope:
            case Scope.TOKEN:
                return f"{place.sequence or 'i'}{comma}{place.token or 't'}"
            case Scope.SEQUENCE | Scope.COMPARISON:
                return place.sequence or "i"
            case Scope.GROUP:
                return place.group or "g"
            case _:
                return ""

    # --- expressions ------------------------------------------------------------------------------------------------

    def of(self, expr: Expr, level: int = OPEN) -> str:
        """An expression at its own place."""
        return self.at(expr, self.place(expr.scope), level)

    def at(self, expr: Expr, place: Place, level: int = OPEN) -> str:
        """An expression at a place, in parentheses where it holds together less than is asked."""
        return self.held(self._expression(expr, place), level)

    def held(self, written: Written, level: int) -> str:
        """What was written, in parentheses where it holds together less than is asked."""
        text, own = written
        if own >= level:
            return text
        return rf"\left({text}\right)" if self.latex else f"({text})"

    def _expression(self, expr: Expr, place: Place) -> Written:
        match expr:
            case Number():
                return self.number(expr.value)
            case Parameter():
                return notation.named(expr.name, "", self.latex), ATOM
            case Observed():
                return self._observed(expr, place)
            case Named():
                return self._named(expr, place)
            case Argument() if place.sequence in ("", place.own):
                return self.arguments[expr.name], ATOM
            case Argument():  # of another sequence
                return self.symbol({"omega": "z"}.get(expr.name, "advantage"), expr.scope, place), ATOM
            case Reduce():
                return self._reduce(expr, place)
            case Call():
                return self._call(expr, place)
            case _:
                self.legend["c"] = "any number"
                return self._indexed("c", expr.scope, place), ATOM

    def number(self, value: float) -> Written:
        if math.isinf(value):
            return (r"\infty" if self.latex else "∞"), ATOM if value > 0 else SIGNED
        if value < 0:
            return "-" + self.number(-value)[0], SIGNED
        digits, _, power = f"{value:.6g}".partition("e")
        if not power:
            return digits, ATOM
        ten = f"10^{{{int(power)}}}" if self.latex else f"10^{int(power)}"
        times = r" \cdot " if self.latex else "·"
        return (ten, POWER) if digits == "1" else (f"{digits}{times}{ten}", PRODUCT)

    def setting(self, name: str, value: float) -> str:
        """`ε = 0.2`"""
        return f"{notation.named(name, '', self.latex)} = {self.number(value)[0]}"

    def _observed(self, expr: Observed, place: Place) -> Written:
        if expr.name not in notation.OBSERVABLES:
            return notation.named(expr.name, self.index(expr.scope, place), self.latex), ATOM
        latex, text, meaning = notation.OBSERVABLES[expr.name]
        shown = self._filled(latex if self.latex else text, place)
        if meaning:
            self.legend[self._filled(latex if self.latex else text, Place())] = meaning
        return shown, PRODUCT if expr.name.startswith("logp") else ATOM

    def _filled(self, template: str, place: Place) -> str:
        marks = (("@i", place.sequence or "i"), ("@t", place.token or "t"), ("@g", place.group or "g"))
        for mark, index in marks:
            template = template.replace(mark, index)
        return template

    def _named(self, expr: Named, place: Place) -> Written:
        body = self.method.definitions[expr.name].body
        if expr.name in self.expanded:
            return self._expression(body, place)
        self.mentioned[expr.name] = None
        return self.symbol(expr.name, expr.scope, place), ATOM

    def symbol(self, name: str, scope: Scope, place: Place | None = None) -> str:
        """A definition's or component's sign with its index."""
        return self._indexed(name, scope, place or self.place(scope))

    def _indexed(self, name: str, scope: Scope, place: Place) -> str:
        index = self.index(scope, place)
        if name not in notation.COMPONENTS:
            return notation.named(name, index, self.latex)
        latex, text = notation.COMPONENTS[name]
        if not index:
            return latex if self.latex else text
        return f"{latex}_{{{index}}}" if self.latex else f"{text}_{index}"

    def observed(self, name: str, scope: Scope) -> str:
        """An observable or score; its scope is that of its row, or a sequence's."""
        own = OBSERVABLES[name].scope if name in OBSERVABLES else Scope.SEQUENCE
        place = self.place(max(own, scope))
        return self._observed(Observed(scope=own, span=NOWHERE, name=name), place)[0]

    def function(self, name: str) -> str:
        """`ω(z)`, with the author's name of the argument."""
        argument = notation.named(self.method.functions[name].argument, "", self.latex)
        return f"{self.symbol(name, Scope.CONST)}({argument})"

    # --- functions --------------------------------------------------------------------------------------------------

    def _call(self, expr: Call, place: Place) -> Written:
        if expr.function in notation.FORMS:
            return self._form(expr, place)
        if expr.function not in notation.FUNCTIONS:
            return self._spelled(notation.called(expr.function, len(expr.arguments)), expr, place)
        if truth(expr, self.method):
            condition, _ = self._condition(expr, place)
            return (rf"\mathbf{{1}}\left[{condition}\right]" if self.latex else f"1[{condition}]"), ATOM
        plain = unsigned(expr)
        if plain is not expr and expr.function != "negate":
            return self._negative(self._expression(plain, place))
        match expr := tidied(expr):
            case Call(function="negate", arguments=(Call(function="expm1", arguments=(x,)),)):
                return (f"1 - e^{{{self.at(x, place)}}}" if self.latex else f"1 − exp({self.at(x, place)})"), SUM
            case Call(function="subtract", arguments=(Observed() as above, Observed() as below)) if ratio(above, below):
                shown = self._ratio(above, below, place)
                return (rf"\log {shown}", PRODUCT) if self.latex else (f"log({shown})", ATOM)
            case Call(function="exp", arguments=(x,)):
                return self._exponential(expr, x, place)
            case Call(function="choose"):
                return self._cases(expr, place)
            case _:
                return self._spelled(notation.FUNCTIONS[expr.function], expr, place)

    def _exponential(self, expr: Call, x: Expr, place: Place) -> Written:
        """A ratio where x is the difference of two log-probs, else a power where x is short."""
        match x:
            case Call(function="subtract", arguments=(Observed() as above, Observed() as below)) if ratio(above, below):
                return self._ratio(above, below, place), PRODUCT if self.latex else BIG
        power = self.at(x, place)
        if self.latex and len(power) <= _SHORT and r"\frac" not in power:
            return f"e^{{{power}}}", POWER
        return self._spelled(notation.FUNCTIONS["exp"], expr, place)

    def _negative(self, written: Written) -> Written:
        return ("-" if self.latex else "−") + self.held(written, BIG), SIGNED

    def _ratio(self, above: Observed, below: Observed, place: Place) -> str:
        parts = [
            self._observed(part, place)[0].removeprefix(r"\log " if self.latex else "log ") for part in (above, below)
        ]
        return rf"\frac{{{parts[0]}}}{{{parts[1]}}}" if self.latex else " / ".join(parts)

    def _spelled(self, row: Notation, expr: Call, place: Place) -> Written:
        spelling = row.latex if self.latex else row.text
        places = (*spelling.places, *(OPEN for _ in expr.arguments))
        written = [self._expression(argument, place) for argument in expr.arguments]
        parts = [self.held(part, level) for part, level in zip(written, places)]
        template = self._filled(spelling.template, place)
        level = spelling.level
        if expr.function == "multiply":
            level = BIG if written[1][1] == BIG else PRODUCT  # what ends in a sum takes in what follows
            if self.latex and parts[1][:1].isdigit():
                template = template.replace(r"\,", r" \cdot ")
        return template.format(*parts), level

    def _cases(self, expr: Call, place: Place) -> Written:
        """`A if C else B`; in LaTeX a row for each case."""
        if not self.latex:
            spelling = notation.FUNCTIONS["choose"].text
            condition, then, otherwise = expr.arguments
            parts = (self.at(part, place, level) for part, level in zip((then, otherwise), spelling.places[1:]))
            shown = self.held(self._condition(condition, place), spelling.places[0])
            return spelling.template.format(shown, *parts), spelling.level
        rows: list[str] = []
        rest: Expr = expr
        while isinstance(rest, Call) and rest.function == "choose":
            condition, then, rest = rest.arguments
            rows.append(rf"{self.at(then, place)} & \text{{if }} {self._condition(condition, place)[0]}")
        rows.append(rf"{self.at(rest, place)} & \text{{otherwise}}")
        return r"\begin{cases} " + r" \\ ".join(rows) + r" \end{cases}", CHOICE

    # --- conditions -------------------------------------------------------------------------------------------------

    def _condition(self, expr: Expr, place: Place) -> Written:
        """An expression where it is asked whether it holds."""
        match expr:
            case Call(function="not", arguments=(inner,)):
                return self._denied(inner, place)
            case Call(function="and" | "or" as function, arguments=(a, b)):
                return self._joined(function, self._condition(a, place), self._condition(b, place))
            case Call(function="choose", arguments=(condition, then, otherwise)) if truth(expr, self.method):
                # where it holds the one, elsewhere the other
                first = self._joined("and", self._condition(condition, place), self._condition(then, place))
                second = self._joined("and", self._denied(condition, place), self._condition(otherwise, place))
                return self._joined("or", first, second)
            case Call() if expr.function in _TRUTHS:
                return self._spelled(notation.FUNCTIONS[expr.function], expr, place)
            case Named() if truth(expr, self.method):
                return self._expression(expr, place)
            case _:
                value = self.at(expr, place, SUM)
                return (rf"{value} \ne 0" if self.latex else f"{value} ≠ 0"), COMPARED

    def _denied(self, expr: Expr, place: Place) -> Written:
        match expr:
            case Call() if expr.function in DENIED:
                return self._condition(expr.model_copy(update={"function": DENIED[expr.function]}), place)
            case Call(function="not", arguments=(inner,)):
                return self._condition(inner, place)
            case _:
                inside = self.held(self._condition(expr, place), ATOM)
                return (rf"\lnot {inside}" if self.latex else f"not {inside}"), NOT

    def _joined(self, function: str, a: Written, b: Written) -> Written:
        row = notation.FUNCTIONS[function]
        spelling = row.latex if self.latex else row.text
        own, apart = spelling.level, spelling.places[1]  # "and" within "or" gets parentheses too
        left = self.held(a, own if a[1] == own else apart)
        return spelling.template.format(left, self.held(b, apart)), own

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
        letter = place.sequence or self._letter("ijnqr", place)
        if "@own" in row.latex:
            return replace(place, sequence=place.own)
        if self.latex:
            dotless = {"i": r"\imath", "j": r"\jmath"}.get(letter, letter)
            index = row.latex.replace("@", dotless if "{" in row.latex else letter)
        else:
            index = row.text.replace("@", letter)
        self.legend[index] = row.legend
        return replace(place, sequence=index, taken=place.taken | {letter})

    def _later(self, row: Notation, expr: Call, place: Place) -> Written:
        """A sum over later tokens; a discount of 1 is not written."""
        spelling = row.latex if self.latex else row.text
        later = self._with_token(place)
        template = self._filled(spelling.template.replace("@k", later.token), place)
        value, discount = expr.arguments
        if isinstance(discount, Number) and discount.value == 1:
            head, _, _ = template.partition("{1}")
            return head.format() + self.at(value, later, BIG), BIG
        return template.format(self.at(value, later, BIG), self.at(discount, place, ATOM)), BIG

    def _reduce(self, expr: Reduce, place: Place) -> Written:
        row, value = notation.REDUCTIONS[expr.function], expr.arguments[0]
        inner, domains, count = self._range(value.scope, expr.axis, place)
        if row.big:
            sums = "".join(self.under(row.latex if self.latex else row.text, domain) for domain in domains)
            return (self.share([count]) if row.averaged else "") + sums + self.at(value, inner, BIG), BIG
        under = ", ".join(domains)
        if len(expr.arguments) > 1:
            under = f"{self.at(expr.arguments[1], place)}; {under}"
        body = self.at(value, inner)
        operator = self.under(row.latex if self.latex else row.text, under).strip()
        return operator + (rf"\left({body}\right)" if self.latex else f"({body})"), ATOM

    def share(self, counts: Sequence[str]) -> str:
        """One part of so many, in front of a sum."""
        count = (r"\," if self.latex else "·").join(counts)
        for sign, meaning in notation.COUNTS.items():
            if sign in count:
                self.legend[sign] = meaning
        if self.latex:
            return rf"\frac{{1}}{{{count}}} "
        return f"1/({count}) " if {" ", "·"} & set(count) else f"1/{count} "

    def under(self, operator: str, domain: str) -> str:
        if self.latex:
            return f"{operator}_{{{domain}}} "
        return f"{operator}_{domain} " if len(domain) == 1 else f"{operator}_({domain}) "

    def _range(self, scope: Scope, axis: str, place: Place) -> tuple[Place, list[str], str]:
        """What a reduction runs over: the inner place, the domains of its letters, and how many terms there are."""
        own, group = place.sequence or "i", place.group or "g"
        if axis == "tokens":
            inner = self._with_token(place)
            return inner, [inner.token], self.length(own)
        inner = self._with_sequence(place, group)
        letter = inner.sequence
        if axis == "batch":
            inner = replace(inner, group=f"g({letter})")
            domain, sequences = letter, "S"
        else:
            member, without, minus = (r" \in ", r" \setminus ", " - 1") if self.latex else ("∈", "∖", " − 1")
            others = axis == "others"
            domain = f"{letter}{member}{group}" + (f"{without}{own}" if others else "")
            sequences = self.size(group) + (minus if others else "")
            inner = replace(inner, own=own) if others else inner
        if scope is not Scope.TOKEN:
            return inner, [domain], sequences
        inside = self._with_token(inner)
        tokens = "N" if axis == "batch" else self.under(r"\sum" if self.latex else "Σ", domain) + self.length(letter)
        return inside, [domain, inside.token], tokens

    def length(self, sequence: str) -> str:
        """How many tokens a completion has."""
        return rf"\left\lvert y_{{{sequence}}}\right\rvert" if self.latex else f"|y_{sequence}|"

    def size(self, group: str) -> str:
        """How many sequences a group has."""
        return rf"\left\lvert {group}\right\rvert" if self.latex else f"|{group}|"


def unsigned(expr: Expr) -> Expr:
    """A product or quotient without the minus sign in front of its first factor; itself where there is none."""
    if not isinstance(expr, Call):
        return expr
    if expr.function == "negate":
        return expr.arguments[0]
    if expr.function not in ("multiply", "divide"):
        return expr
    first, second = expr.arguments
    whole = unsigned(first)
    return expr if whole is first else expr.model_copy(update={"arguments": (whole, second)})


def tidied(expr: Call) -> Call:
    """The same with `a + -b` as `a - b`, `-a + b` as `b - a`, and `a * (1 / b)` as `a / b`."""
    match expr:
        case Call(function="add" | "subtract" as function, arguments=(a, Call(function="negate", arguments=(b,)))):
            return _made("subtract" if function == "add" else "add", a, b, expr)
        case Call(function="add", arguments=(Call(function="negate", arguments=(a,)), b)):
            return _made("subtract", b, a, expr)
        case Call(function="multiply", arguments=(a, Call(function="divide", arguments=(Number(value=1.0), b)))):
            return _made("divide", a, b, expr)
        case _:
            return expr


def _made(function: str, first: Expr, second: Expr, like: Call) -> Call:
    return like.model_copy(update={"function": function, "arguments": (first, second)})


def ratio(above: Observed, below: Observed) -> bool:
    """Whether the difference of two observables is the logarithm of a ratio of probabilities."""
    return above.name.startswith("logp") and below.name.startswith("logp") and above.name != below.name


def truth(expr: Expr, method: MethodIR) -> bool:
    """Whether an expression is 1 where something holds and 0 elsewhere, by its form."""
    match expr:
        case Call(function="and" | "or"):
            return all(truth(argument, method) for argument in expr.arguments)
        case Call(function="choose"):
            return all(truth(argument, method) for argument in expr.arguments[1:])
        case Call():
            return expr.function in _TRUTHS
        case Named():
            return truth(method.definitions[expr.name].body, method)
        case _:
            return False
