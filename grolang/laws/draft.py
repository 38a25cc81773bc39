"""Parts as a file: given statements stay as they were written, components are put in their words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap

import sympy
from sympy import Expr, Symbol

from grolang.language.components import COMPONENTS
from grolang.language.formatter import format_text
from grolang.language.functions import FUNCTIONS, LOGICAL
from grolang.language.ir import MethodIR
from grolang.language.scopes import Scope
from grolang.laws.book import LABEL, LOGP, ONE, ZERO, A, Book, Z
from grolang.laws.push import Parts
from grolang.laws.question import DEFAULTS, Question
from grolang.laws.spelling import spelled
from grolang.laws.terms import Terms

#: the order in which components are written
ORDER = ("reward", "baseline", "advantage", "credit", "measure", "anchor", "alpha")


class Taken(Exception):
    """Names of components under which the given statements, which are needed, mean something else."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(*names)
        self.names = tuple(names)


@dataclass(frozen=True)
class Draft:
    """What a file is written from.

    `parts` is None where everything is the penalty; with `curved` the advantage is looked at through a υ.
    """

    question: Question
    method: MethodIR
    book: Book
    parts: Parts | None
    aggregate: str
    penalty: str = ""
    remarks: tuple[str, ...] = ()
    curved: bool = True

    def text(self) -> str:
        """The file in canonical form, with the loss as its law. Raises Taken where names collide."""
        question = self.question
        base = question.needed(question.claim, self.penalty)
        values, functions = self._components(base)
        names = self._names(base)
        written = {name: self._statement(name, value, names) for name, value in values.items()}
        for head, (argument, body, known) in functions.items():
            word = self._free(argument.name)
            written[head] = f"{head}({word}) = {spelled(body, self.book, names | known | {argument: word})}"
        if self.penalty:
            written["penalty"] = f"penalty = {self.penalty}"
        kept = question.needed(question.claim, *written.values())
        self._unless_taken(kept, written)
        given = {name: question.statements[name] for name in kept}
        settings = [name for name in kept if given[name].split()[0] in ("param", "score")]
        plain = [
            name
            for name in kept
            if name not in {*settings, *written} and given[name] != f"{name} = {DEFAULTS.get(name)}"
        ]
        title = ' "' + question.title.replace("\\", "\\\\").replace('"', '\\"') + '"' if question.title else ""
        remarks = (line for remark in self.remarks for line in wrap(remark, 100))
        lines = [*(f"# {line}" for line in remarks), f"method {question.name}{title}"]
        lines += [f"data {question.data}", *([f"group {question.group}"] if question.group else [])]
        lines += [*(given[name] for name in settings), "", *(given[name] for name in plain)]
        said = {name: text for name, text in written.items() if text != f"{name} = {DEFAULTS.get(name)}"}
        lines += [said[name] for name in (*ORDER, "upsilon", "omega", "penalty") if name in said]
        lines += [f"aggregate = {self.aggregate}", "", f"law {question.law}: {question.claim}", ""]
        return format_text("\n".join(lines))

    def _components(
        self, base: Sequence[str]
    ) -> tuple[dict[str, Expr], dict[str, tuple[Symbol, Expr, dict[Expr, str]]]]:
        """The components that are not at their defaults, and the functions with what is named in them."""
        if self.parts is None:
            return ({"credit": ZERO} if {"reward", "advantage"} & set(base) else {"reward": ZERO}), {}
        parts = self.parts
        advantage, upsilon = increasing(parts.advantage, self.book) if self.curved else (parts.advantage, None)
        values = self._signal(advantage, base)
        if parts.credit != ONE:
            values["credit"] = parts.credit
        if parts.contrasts:
            defaults = {"measure": LOGP, "anchor": ZERO, "alpha": ONE}
            values |= {name: getattr(parts, name) for name in defaults if getattr(parts, name) != defaults[name]}
        functions: dict[str, tuple[Symbol, Expr, dict[Expr, str]]] = {}
        if upsilon is not None:
            functions["upsilon"] = (A, upsilon, {})
        if parts.omega != ONE:
            own = {} if advantage.is_number or advantage == LABEL else {advantage: "advantage"}
            functions["omega"] = (Z, parts.omega, own)
        return values, functions

    def _signal(self, advantage: Expr, base: Sequence[str]) -> dict[str, Expr]:
        """reward and baseline, where the advantage reads as their difference and the names are free for it."""
        reward, baseline = _rewarded(advantage, self.book)
        if advantage == Symbol("advantage", real=True) or reward is None or "advantage" in base:
            return {"advantage": advantage}
        values = {"reward": reward} | ({"baseline": baseline} if baseline != ZERO else {})
        fits = all(self._is_given(name, value) for name, value in values.items() if name in self.question.statements)
        return values if fits and ("baseline" in values or "baseline" not in base) else {"advantage": advantage}

    def _is_given(self, name: str, value: Expr) -> bool:
        return name in self.question.statements and value in (Symbol(name, real=True), self._reading(name))

    def _reading(self, name: str) -> Expr:
        """A given definition as a term."""
        return Terms(self.method, self.book, stopped=True)(self.method.definitions[name].body)

    def _names(self, base: Sequence[str]) -> dict[Expr, str]:
        """What the given definitions that stay in the file stand for."""
        readings = {self._reading(name): name for name in base if name in self.method.definitions}
        return {term: name for term, name in readings.items() if not term.is_Symbol and not term.is_number}

    def _statement(self, name: str, value: Expr, names: dict[Expr, str]) -> str:
        if self._is_given(name, value):
            text = self.question.statements[name]
        elif name == "anchor" and self.parts is not None and self._is_opposite(value, self.parts.measure):
            text = f"anchor = opposite({names.get(self.parts.measure, 'measure')})"
        else:
            text = f"{name} = {spelled(value, self.book, {term: word for term, word in names.items() if word != name})}"
        if not value.is_Symbol and not value.is_number:
            names.setdefault(value, name)
        return text

    def _is_opposite(self, anchor: Expr, measure: Expr) -> bool:
        return self.book.scope(measure) is Scope.SEQUENCE and anchor == self.book.away(measure)

    def _unless_taken(self, kept: Sequence[str], written: Mapping[str, str]) -> None:
        """Every given component that the file needs is written as it was, or the estimator does not look at it."""
        counts = {"credit", "penalty"}
        if self.parts is not None:
            counts |= {"advantage"} if "advantage" in written else {"advantage", "reward", "baseline"}
            counts |= {"measure", "anchor", "alpha"} if self.parts.contrasts else set()
        names = [name for name in kept if name in COMPONENTS and (name in counts or name in written)]
        if taken := [name for name in names if written.get(name) != self.question.statements[name]]:
            raise Taken(taken)

    def _free(self, wanted: str) -> str:
        """A name for an argument that means nothing else."""
        while wanted in self.question.statements:
            wanted += "_"
        return wanted


def increasing(advantage: Expr, book: Book) -> tuple[Expr, Expr | None]:
    """An advantage that functions of the table make of another: that one, and υ in its argument `a`."""
    inner = advantage
    while (step := _inside(inner, book)) is not None:
        inner = step
    functions = {str(part.func) for part in advantage.atoms(sympy.Function)} & set(FUNCTIONS)
    if inner == advantage or not functions - LOGICAL:
        return advantage, None
    return inner, advantage.xreplace({inner: A})


def _inside(expr: Expr, book: Book) -> Expr | None:
    """The one part of a product or of a function's arguments that differs between sequences."""
    if not (expr.is_Mul or str(expr.func) in set(FUNCTIONS) - LOGICAL):
        return None
    moving = [argument for argument in expr.args if book.scope(argument) > Scope.CONST]
    return moving[0] if len(moving) == 1 else None


def _rewarded(advantage: Expr, book: Book) -> tuple[Expr | None, Expr]:
    """reward and baseline of an advantage that is their difference: a baseline is what other rewards make."""
    axes = ("group", "others", "batch")
    others = {symbol for symbol, form in book.applied.items() if form.axis in axes or form.word == "greedy"}
    others.add(Symbol("baseline", real=True))
    if not advantage.free_symbols & others:
        return advantage, ZERO
    minus = [term for term in sympy.Add.make_args(advantage) if term.free_symbols & others]
    falls = all(bool(term.as_coeff_Mul()[0] < 0) for term in minus)
    if not falls or len(minus) == len(sympy.Add.make_args(advantage)):
        return None, ZERO
    return advantage - sympy.Add(*minus), -sympy.Add(*minus)
