"""From a loss to its method: differentiate, factor, write the file, and hold it against the loss.

A loss is a sum of terms. The most of them that have the estimator's form become its parts; the others stay what they
are, a penalty, and the file says why. What is written is believed only after its own law was proved or tried: the
numbers of the law come from the compiler's derivative, which shares nothing with the one that found the parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import sympy

from grolang.compiler.method import from_source
from grolang.language import ir
from grolang.language.checker import check
from grolang.language.diagnostics import GroError
from grolang.language.functions import LOGICAL
from grolang.language.ir import Call, Law, MethodIR, Named, Reduce
from grolang.language.scopes import Scope, joined
from grolang.language.source import Source
from grolang.laws.book import LENGTH, Book
from grolang.laws.check import check_law
from grolang.laws.claims import Verdict
from grolang.laws.draft import Draft, Taken
from grolang.laws.parts import parts
from grolang.laws.push import Parts
from grolang.laws.question import Question
from grolang.laws.spelling import added
from grolang.laws.terms import NoForm


@dataclass(frozen=True)
class Left:
    """A term that stays a penalty, as its author wrote it, and why."""

    text: str
    why: str


@dataclass(frozen=True)
class Lifted:
    """A file's text, how its law came out ("proved" or "held"), and what stayed a penalty.

    `whole` is False where nothing of the loss has the form: all of it is the penalty then.
    """

    text: str
    verdict: Verdict
    left: tuple[Left, ...] = ()
    whole: bool = True


@dataclass(frozen=True)
class _Term:
    """A term of a loss: its sign and its expression."""

    sign: int
    body: ir.Expr
    text: str


@dataclass(frozen=True)
class _Found:
    """Terms with their parts, and the terms that are left."""

    parts: Parts | None
    left: tuple[Left, ...]


def lift(question: Question, *, examples: int = 100, seed: int = 0) -> Lifted:
    """The method of a loss, or the loss as a penalty; its coefficients are the loss's in either case.

    Raises GroError where the question itself does not check.
    """
    while True:
        source = Source("loss", question.text)
        method = check(source).unwrap()
        try:
            return _lifted(question, method, source, examples, seed)
        except Taken as taken:
            question = question.renamed(taken.names)


def _lifted(question: Question, method: MethodIR, source: Source, examples: int, seed: int) -> Lifted:
    law = method.laws[question.law]
    assert law.body is not None
    verdict = None
    for found, book, aggregate in _candidates(law, method, source):
        for curved in (True, False):
            made = _draft(question, method, book, found, aggregate, curved)
            text = made.text()
            checked = check(Source(f"{question.name}.gro", text))
            if checked.method is None or (curved and any(row.code == "W707" for row in checked.findings)):
                continue
            lifted = from_source(Source(f"{question.name}.gro", text))
            verdict = check_law(lifted.ir.laws[question.law], lifted, examples=examples, seed=seed)
            if verdict.good:
                return Lifted(text, verdict, found.left, found.parts is not None)
            break
    why = verdict.error if verdict is not None else ""
    assert why, "bug in grolang: a loss is not its own penalty"
    raise GroError.plain(f"the loss cannot be tried: {why}", help="look at its divisors and domains")


def _draft(question: Question, method: MethodIR, book: Book, found: _Found, aggregate: str, curved: bool) -> Draft:
    penalty = added(row.text for row in found.left)
    short = (row.text if len(row.text) <= 50 else row.text[:49] + "…" for row in found.left)
    remarks = tuple(f"`{text}` stays a penalty: {row.why}." for text, row in zip(short, found.left))
    return Draft(question, method, book, found.parts, aggregate, penalty, remarks, curved)


# --- which terms -----------------------------------------------------------------------------------------------


def _candidates(law: Law, method: MethodIR, source: Source) -> Iterator[tuple[_Found, Book, str]]:
    """Ways to cut the loss, the best first: all of it, its best terms, and at last none."""
    assert law.body is not None
    terms = [term for term in _terms(law.body, 1, method, source) if term.body.live]
    try:
        bodies, steps = _unwrapped(terms, law.steps, method)
    except NoForm as why:
        yield from _none(terms, law, str(why))
        return
    book = Book()
    trials = _Trials(bodies, method, book)
    for plain in (True, False):
        for chosen in (range(len(terms)), trials.best(plain)):
            made = trials(tuple(chosen))
            if isinstance(made, Parts) and (made.plain or not plain):
                aggregate, made = _aggregate(steps, bodies, made, book)
                others = [place for place in range(len(terms)) if place not in chosen]
                left = tuple(Left(terms[place].text, trials.why(tuple(chosen), place)) for place in others)
                yield _Found(made, left), book, aggregate
    reason = trials(tuple(range(len(terms))))
    yield from _none(terms, law, reason if isinstance(reason, str) else "the two responses of a pair differ in it")


class _Trials:
    """The parts of each choice of terms, or why there are none."""

    def __init__(self, bodies: Sequence[ir.Expr], method: MethodIR, book: Book) -> None:
        self.bodies, self.method, self.book = bodies, method, book
        self._done: dict[tuple[int, ...], Parts | str] = {}

    def __call__(self, chosen: tuple[int, ...]) -> Parts | str:
        if chosen not in self._done:
            try:
                self._done[chosen] = parts([self.bodies[place] for place in chosen], self.method, self.book)
            except NoForm as why:
                self._done[chosen] = str(why)
            except (sympy.PolynomialError, NotImplementedError, RecursionError):  # what sympy raises where it gives up
                self._done[chosen] = "it is too involved to be taken apart"
        return self._done[chosen]

    def best(self, plain: bool) -> tuple[int, ...]:
        """The term that says most, and what fits it: first what holds the data's verdict, then what contrasts."""
        ranked = []
        for place in range(len(self.bodies)):
            alone = self((place,))
            if isinstance(alone, Parts) and (alone.plain or not plain):
                ranked.append((bool(alone.advantage.is_number), not alone.contrasts, place))
        chosen: tuple[int, ...] = ()
        for *_, place in sorted(ranked):
            more = tuple(sorted((*chosen, place)))
            made = self(more)
            if isinstance(made, Parts) and (made.plain or not plain):
                chosen = more
        return chosen

    def why(self, chosen: tuple[int, ...], place: int) -> str:
        """Why a term is not among the chosen."""
        alone, together = self((place,)), self(tuple(sorted((*chosen, place))))
        if isinstance(alone, str):
            return alone
        return f"with the rest, {together}" if isinstance(together, str) else "it pushes only one response of a pair"


def _none(terms: Sequence[_Term], law: Law, why: str) -> Iterator[tuple[_Found, Book, str]]:
    """Everything a penalty."""
    left = tuple(Left(term.text, why) for term in terms)
    assert law.body is not None
    steps, scope = law.steps, law.body.scope
    words = [] if scope is Scope.TOKEN else ["sum over tokens"]
    words += ["sum over group"] if scope is Scope.GROUP and not any(step.axis == "sequences" for step in steps) else []
    words += _words(steps, scope)
    yield _Found(None, left), Book(), ", ".join(words) if len(words) > 1 or scope is Scope.TOKEN else "mean over batch"


def _terms(expr: ir.Expr, sign: int, method: MethodIR, source: Source) -> Iterator[_Term]:
    """The terms of a sum, each with its sign, in the author's words."""
    match expr:
        case Call(function="add"):
            for part in expr.arguments:
                yield from _terms(part, sign, method, source)
        case Call(function="subtract"):
            yield from _terms(expr.arguments[0], sign, method, source)
            yield from _terms(expr.arguments[1], -sign, method, source)
        case Call(function="negate"):
            yield from _terms(expr.arguments[0], -sign, method, source)
        case Named() if expr.live and _is_sum(method.definitions[expr.name].body):
            yield from _terms(method.definitions[expr.name].body, sign, method, source)
        case _:
            text = source.quoted(expr.span)
            loose = isinstance(expr, Call) and expr.function in LOGICAL
            text = f"({text})" if loose else text
            yield _Term(sign, expr, f"-{text}" if sign < 0 else text)


def _is_sum(expr: ir.Expr) -> bool:
    return isinstance(expr, Call) and expr.function in ("add", "subtract", "negate")


# --- aggregation -----------------------------------------------------------------------------------------------


def _unwrapped(
    terms: Sequence[_Term], steps: tuple[ir.Step, ...], method: MethodIR
) -> tuple[list[ir.Expr], tuple[ir.Step, ...]]:
    """The terms with their signs, and the steps: a mean over the batch or group around them all is one of those."""
    bodies = [_negated(term.body) if term.sign < 0 else term.body for term in terms]
    while True:
        outer = [_pulled(body, method) for body in bodies]
        found = {(pulled[0], pulled[1]) for pulled in outer if pulled is not None}
        if len(found) != 1 or None in outer:
            return bodies, steps
        ((function, axis),) = found
        bodies = [pulled[2] for pulled in outer if pulled is not None]
        if len({body.scope for body in bodies}) > 1:
            raise NoForm("its terms are averaged in different ways")
        over = "sequences" if axis == "batch" and bodies[0].scope < Scope.TOKEN else axis
        kept = tuple(step for step in steps if axis == "group" and step.axis in ("groups", "batch"))
        steps = (ir.Step(function=function, axis=over, span=bodies[0].span), *kept)


def _negated(expr: ir.Expr) -> ir.Expr:
    return Call(scope=expr.scope, live=expr.live, span=expr.span, function="negate", arguments=(expr,))


def _pulled(expr: ir.Expr, method: MethodIR) -> tuple[str, str, ir.Expr] | None:
    """factor · mean(x over axis) as mean(factor · x over axis), for the axes above a completion."""
    match expr:
        case Named() if expr.live:
            return _pulled(method.definitions[expr.name].body, method)
        case Reduce(function="sum" | "mean", axis="group" | "batch") if expr.live:
            return expr.function, expr.axis, expr.arguments[0]
        case Call(function="negate" | "multiply" | "divide") if expr.live:
            places = [place for place, argument in enumerate(expr.arguments) if argument.live]
            if len(places) != 1 or (expr.function == "divide" and places != [0]):
                return None
            inner = _pulled(expr.arguments[places[0]], method)
            if inner is None:
                return None
            arguments = tuple(inner[2] if place in places else part for place, part in enumerate(expr.arguments))
            scope = joined(*(argument.scope for argument in arguments))
            return *inner[:2], expr.model_copy(update={"arguments": arguments, "scope": scope})
    return None


def _aggregate(steps: tuple[ir.Step, ...], bodies: Sequence[ir.Expr], made: Parts, book: Book) -> tuple[str, Parts]:
    """The steps of a file whose coefficients are those of the loss, and the parts that go with them."""
    scope = max(body.scope for body in bodies)
    words = _words(steps, scope)
    first = "mean over tokens" if made.averaged else "sum over tokens"
    if scope is Scope.TOKEN:
        if made.averaged and words[0] == "sum over tokens":
            words[0] = first
        elif made.averaged:
            made = replace(made, credit=made.credit / LENGTH)
        return ", ".join(words), made
    if scope is not Scope.SEQUENCE and any(step.axis == "sequences" for step in steps):
        made = replace(made, credit=made.credit * book.symbol("group_size", Scope.GROUP))
    elif scope is not Scope.SEQUENCE:
        words.insert(0, "sum over group")
    return ", ".join([first, *words]), made


def _words(steps: Sequence[ir.Step], scope: Scope) -> list[str]:
    """The steps that a value of this scope takes, as text."""
    return [step.text for step, _, _ in ir.taken(steps, scope)]
