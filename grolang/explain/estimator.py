"""A method's estimator as formulas: every part filled in, each name defined below the formula that uses it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from grolang.compiler.derivative import gradient
from grolang.compiler.lowering import Lowering
from grolang.compiler.program import PAIRED, Builder
from grolang.explain.components import Components, argues, components, plain_body
from grolang.explain.formula import NOTHING, Formula
from grolang.explain.notation import BIG, OPEN, PRODUCT, SUM, named
from grolang.explain.printer import (
    GROUP,
    HELD,
    MEMBER,
    MINUS,
    NEGATIVE,
    SEQUENCE,
    SIGMA,
    TIMES,
    TOKEN,
    Printer,
    length,
    number,
    setting,
    size,
    under,
)
from grolang.explain.steps import expression
from grolang.explain.tidy import unsigned
from grolang.language import ir
from grolang.language.facts import reads
from grolang.language.ir import constant
from grolang.language.scopes import Scope

_SHORT = 60  # characters of LaTeX that a factor may have in the first formula


@dataclass(frozen=True)
class Sign:
    """A sign of the formulas and what it stands for."""

    sign: Formula
    meaning: str


@dataclass(frozen=True)
class Estimator:
    """What is shown of a method's maths.

    gradient: ĝ = …, ascended. where: a line `name = …` for each name in it, the names of those below.
    coefficient: c = …, the number in front of each ∇ log π. losses: what its laws say that it descends, by the law's
    name; loss_where: the names that only they mention. parameters and signs: what the rest stands for.
    """

    gradient: Formula
    where: tuple[Formula, ...]
    coefficient: Formula
    losses: tuple[tuple[str, Formula], ...]
    loss_where: tuple[Formula, ...]
    parameters: tuple[Sign, ...]
    signs: tuple[Sign, ...]


def estimator(method: ir.MethodIR) -> Estimator:
    """The formulas of a method. What stands in `[…]^sg` is a number: no gradient flows through it."""
    printer, parts = Printer(method), components(method)
    gradient, coefficient = _gradient(printer, parts), _coefficient(printer, parts)
    defined = {"omega", "upsilon"}
    where = [*_functions(printer, parts), *_definitions(printer, defined)]
    losses = tuple((name, _loss(printer, law).tight()) for name, law in method.laws.items() if law.claim == "loss")
    return Estimator(
        gradient.tight(),
        tuple(line.tight() for line in where),
        coefficient.tight(),
        losses,
        tuple(line.tight() for line in _definitions(printer, defined)),
        tuple(Sign(setting(name, row.value), row.help) for name, row in method.parameters.items()),
        tuple(Sign(sign.tight(), meaning) for sign, meaning in printer.legend.items()),
    )


NABLA = Formula(r"\nabla_\theta", "∇θ")
STOPPED = Formula(r"\left[{0}\right]^{{\mathrm{{sg}}}}", "[{0}]^sg")
SCORE = Formula(r"\, \nabla_\theta \log \pi_\theta(y_{i,t} \mid y_{i,<t}, x_i)", "∇θ log πθ(y_it | y_i<t, x_i)")


def _gradient(printer: Printer, parts: Components) -> Formula:
    """ĝ = …"""
    steps, factors = printer.method.aggregate, _factors(printer, parts)
    product = TIMES.join(factor for factor, _ in factors)
    if any(flows for _, flows in factors):
        product = STOPPED.format(product)
    whole = Formula(r"\hat g = ", "ĝ = ") + sums(printer, steps, Scope.TOKEN) + product + " " + SCORE
    if constant(parts.penalty) != 0:
        printer.mentioned["penalty"] = None
        penalty = printer.symbol("penalty", parts.penalty.scope)
        whole += MINUS + NABLA + " " + sums(printer, steps, parts.penalty.scope) + penalty
    return whole.replace("  ", Formula.plain(" "))


def _factors(printer: Printer, parts: Components) -> list[tuple[Formula, bool]]:
    """κ, ω and υ, each with whether it depends on the current policy; what is 1 is left out."""
    method, found = printer.method, list[tuple[Formula, bool]]()

    def live(*expressions: ir.Expr) -> bool:
        mentions = set().union(*(reads(expr, method) for expr in expressions))
        return bool(mentions & {("observed", "logp"), ("observed", "entropy")})

    if constant(parts.credit) != 1:
        found.append((printer.of(parts.credit, PRODUCT), live(parts.credit)))
    if constant(parts.omega) != 1:
        flows = live(parts.omega, parts.z) if argues(parts.omega) else live(parts.omega)
        found.append((_applied(printer, "omega", _z(printer, parts)), flows))
    if constant(parts.advantage) != 1 or not isinstance(parts.upsilon, ir.Argument):
        found.append((_applied(printer, "upsilon", printer.of(parts.advantage, PRODUCT)), live(parts.advantage)))
    return found


def _z(printer: Printer, parts: Components) -> Formula:
    """The argument of ω: its sign, or itself where it is a single name."""
    return printer.of(parts.z) if isinstance(parts.z, ir.Named) else printer.symbol("z", parts.z.scope)


def _applied(printer: Printer, name: str, argument: Formula) -> Formula:
    """ω or υ of its argument: written out where it is short, else by its name."""
    body = printer.method.functions[name].body
    if isinstance(body, ir.Argument):
        return argument
    arguments = {name: argument}
    shown = Printer(printer.method, arguments=arguments).of(body, PRODUCT)
    if "cases" not in shown.latex and len(shown.latex) <= _SHORT:
        printer.arguments = arguments
        return printer.of(body, PRODUCT)
    printer.mentioned[name] = None
    return printer.symbol(name, Scope.CONST) + HELD.format(argument)


def sums(printer: Printer, steps: Iterable[ir.Step], scope: Scope) -> Formula:
    """An aggregation as sums and shares in front of a value of this scope, the last step outermost."""
    whole = NOTHING
    for step, left, _ in ir.taken(steps, scope):
        whole = _sum(printer, step, left) + whole
    return whole


def _sum(printer: Printer, step: ir.Step, left: Scope) -> Formula:
    domains, count = _domain(step.axis, left)
    whole = NOTHING.join(under(SIGMA, domain) for domain in domains)
    if step.axis == "sequences" and left is Scope.GROUP:
        whole += size(GROUP) + TIMES
    counts = ([count] if step.function == "mean" else []) + _divisor(step)
    return printer.share(counts) + whole if counts else whole


_OF_GROUP = SEQUENCE + MEMBER + GROUP


def _domain(axis: str, left: Scope) -> tuple[list[Formula], Formula]:
    """What a step of an aggregation runs over, and how many terms that is."""
    match axis, left:
        case "tokens", _:
            return [TOKEN], length(SEQUENCE)
        case "group", Scope.TOKEN:
            return [_OF_GROUP, TOKEN], under(SIGMA, _OF_GROUP) + length(SEQUENCE)
        case "group", _:
            return [_OF_GROUP], size(GROUP)
        case "batch", Scope.TOKEN:
            return [SEQUENCE, TOKEN], Formula.plain("N")
        case ("sequences", _) | ("batch", Scope.SEQUENCE):
            return [SEQUENCE if left is Scope.SEQUENCE else GROUP], Formula.plain("S")
        case _:
            return [GROUP], Formula.plain("G")


def _divisor(step: ir.Step) -> list[Formula]:
    if step.divisor is None:
        return []
    return [named(step.divisor) if isinstance(step.divisor, str) else number(step.divisor).formula]


# --- the coefficient -----------------------------------------------------------------------------------------------


def _coefficient(printer: Printer, parts: Components) -> Formula:
    """c = weight · (κ ω υ − ∂P/∂log π); a penalty per sequence or coarser has a weight of its own."""
    steps, scope = printer.method.aggregate, parts.penalty.scope
    product = TIMES.join(factor for factor, _ in _factors(printer, parts))
    weight = _weight(printer, steps, Scope.TOKEN)
    head = Formula("c_{i,t} = ", "c_it = ") + weight
    one = Formula.plain("1")
    if constant(parts.penalty) == 0:
        return head + (product if product or weight else one)
    product = product or one
    fall = slope(printer.method, parts.penalty)
    if fall is None:
        sign = printer.symbol("penalty", scope)
        return head + product + MINUS + _BY_LOGP + " " + sums(printer, steps, scope) + sign
    body = unsigned(fall)
    sign = Formula.plain(" + ") if body is fall else MINUS
    if scope is Scope.TOKEN:
        whole = product + sign + printer.at(body, printer.place(Scope.TOKEN), SUM if body is fall else BIG)
        return head + (HELD.format(whole) if weight else whole)
    return head + product + sign + _weight(printer, steps, scope) + printer.of(body, BIG)


_BY_LOGP = Formula(r"\frac{\partial}{\partial \log \pi_\theta(y_{i,t})}", "∂/∂(log πθ(y_it))")


def _weight(printer: Printer, steps: Iterable[ir.Step], scope: Scope) -> Formula:
    """The factor that an aggregation gives to each value of this scope."""
    counts, times = list[Formula](), NOTHING
    for step, left, _ in ir.taken(steps, scope):
        if step.axis == "sequences" and left is Scope.GROUP:
            times = size(GROUP) + TIMES
        if step.function == "mean":
            counts.append(_domain(step.axis, left)[1])
        counts += _divisor(step)
    return printer.share(counts[::-1]) + times if counts else times


def slope(method: ir.MethodIR, penalty: ir.Expr) -> ir.Expr | None:
    """−∂P/∂log π at a token, as an expression; None where it leaves its completion, has no word, or is very long."""
    if penalty.scope < Scope.SEQUENCE:
        return None
    rows = {name: row.model_copy(update={"value": row.value or 1.0}) for name, row in method.parameters.items()}
    method = method.model_copy(update={"parameters": rows})  # a weight of 0 is still a weight
    build = Builder(settable=True)
    value = build.spread(Lowering(method, build).expression(penalty), penalty.scope)
    now = build.load("logp", Scope.TOKEN)
    live = {now}  # what depends on the log-probs, and must not leave its own completion
    for index, step in enumerate(build.steps):
        if not live.isdisjoint(step.args):
            live.add(index)
            if step.op in PAIRED or (step.op == "reduce" and (step.scope < Scope.SEQUENCE or step.others)):
                return None
    fall = build.apply("negate", gradient(build, value, build.number(1), now))
    return expression(build, fall, method) if _written_size(build, fall) <= _LONGEST else None


#: steps of a derivative that is still written out
_LONGEST = 1000


def _written_size(build: Builder, index: int) -> int:
    """How many steps an expression has where each is written as often as it is used."""
    sizes = list[int]()
    for step in build.steps[: index + 1]:
        sizes.append(1 + sum(sizes[argument] for argument in step.args))
    return sizes[index]


# --- losses and names ----------------------------------------------------------------------------------------------


def _loss(printer: Printer, law: ir.Law) -> Formula:
    """L = …, as a law states it."""
    assert law.body is not None
    plain = unsigned(law.body)
    minus = NOTHING if plain is law.body else NEGATIVE
    total = sums(printer, law.steps, law.body.scope)
    head = Formula(r"\mathcal{L} = ", "L = ") + minus + total
    return head + printer.of(plain, BIG if total or minus else OPEN)


def _functions(printer: Printer, parts: Components) -> Iterator[Formula]:
    """ω(z) = … and υ(a) = … where the estimator mentions them, and z = …"""
    for name in ("omega", "upsilon"):
        if name in printer.mentioned:
            row = printer.method.functions[name]
            printer.arguments = {name: named(row.argument)}
            yield printer.function(name) + " = " + printer.of(row.body)
    if argues(parts.omega) and not isinstance(parts.z, ir.Named):
        yield _z(printer, parts) + " = " + printer.of(parts.z)


def _definitions(printer: Printer, defined: set[str]) -> Iterator[Formula]:
    """A line for each name that was mentioned and is not defined yet; `defined` learns them."""
    while waiting := [name for name in printer.mentioned if name not in defined]:
        defined.add(waiting[0])
        scope = printer.method.definitions[waiting[0]].body.scope
        yield printer.symbol(waiting[0], scope) + " = " + printer.of(plain_body(waiting[0], printer.method))
