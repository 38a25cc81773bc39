"""A method's estimator as formulas: every part filled in, each name defined below the formula that uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from grolang.compiler.derivative import gradient
from grolang.compiler.lowering import Lowering
from grolang.compiler.program import Builder
from grolang.compiler.standalone import PAIRED
from grolang.explain.formula import Formula, Printer, unsigned
from grolang.explain.notation import BIG, OPEN, PRODUCT, SUM, named
from grolang.explain.steps import expression
from grolang.language import ir
from grolang.language.expressions import constant
from grolang.language.facts import reads
from grolang.language.scopes import Scope, joined

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


class Writer:
    """Both spellings at once."""

    def __init__(self, method: ir.MethodIR, expanded: tuple[str, ...] = ()) -> None:
        self.method = method
        self.latex = Printer(method, True, expanded)
        self.text = Printer(method, False, expanded)
        self.defined = {"omega", "upsilon"}

    def __call__(self, write: Callable[[Printer], str]) -> Formula:
        return Formula.of(write(self.latex), write(self.text))

    def exchange(self, name: str, expr: ir.Expr) -> tuple[Formula, Formula]:
        """An observable and its stand-in, as in `when NAME = EXPR` of a law."""
        return self(lambda printer: printer.observed(name, expr.scope)), self(lambda printer: printer.of(expr))

    def setting(self, name: str, value: float) -> Formula:
        """A parameter at a value: `β = 0.1`."""
        return self(lambda printer: printer.setting(name, value))

    def signs(self) -> tuple[Sign, ...]:
        """The legend of all that was written."""
        rows = zip(self.latex.legend.items(), self.text.legend.items())
        return tuple(Sign(Formula.of(latex, text), meaning) for (latex, meaning), (text, _) in rows)


@dataclass(frozen=True)
class Components:
    """The estimator's parts as expressions, names that only stand for another name followed to the end."""

    z: ir.Expr
    omega: ir.Expr
    upsilon: ir.Expr
    advantage: ir.Expr
    credit: ir.Expr
    penalty: ir.Expr


def components(method: ir.MethodIR) -> Components:
    """The parts of a method's estimator (LANGUAGE.md, 2)."""
    definitions = method.definitions
    parts = {name: followed(named_as(name, method), method) for name in ("measure", "anchor", "alpha", "credit")}
    distance = parts["measure"]
    if constant(parts["anchor"]) != 0:
        distance = _call("subtract", distance, parts["anchor"])
    z = distance if constant(parts["alpha"]) == 1 else _call("multiply", parts["alpha"], distance)
    return Components(
        z=z,
        omega=method.functions["omega"].body,
        upsilon=method.functions["upsilon"].body,
        advantage=followed(named_as("advantage", method), method),
        credit=parts["credit"],
        penalty=definitions["penalty"].body,
    )


def named_as(name: str, method: ir.MethodIR) -> ir.Expr:
    """A definition as an expression mentions it."""
    body = method.definitions[name].body
    return ir.Named(scope=body.scope, live=body.live, span=body.span, name=name)


def followed(expr: ir.Expr, method: ir.MethodIR) -> ir.Expr:
    """What a name stands for, as long as that is another name or a single value: `reward = label` is the label.

    What a pair's other response has, and `alpha` where it is a product, count as short too.
    """
    while isinstance(expr, ir.Named):
        body = plain_body(expr.name, method)
        short = isinstance(body, (ir.Number, ir.Parameter, ir.Observed, ir.Named))
        moved = isinstance(body, ir.Call) and body.function in ("opposite",) and isinstance(body.arguments[0], ir.Named)
        scaled = expr.name == "alpha" and isinstance(body, ir.Call) and body.function == "multiply"
        if not (short or moved or scaled):
            return expr
        expr = body
    return expr


def plain_body(name: str, method: ir.MethodIR) -> ir.Expr:
    """A definition's body; of the default advantage, reward − baseline, the reward alone where the baseline is 0."""
    definition = method.definitions[name]
    body = definition.body
    if not definition.given and isinstance(body, ir.Call) and body.function == "subtract":
        first, second = body.arguments
        return first if constant(followed(second, method)) == 0 else body
    return body


def _call(function: str, *arguments: ir.Expr) -> ir.Call:
    scope = joined(*(argument.scope for argument in arguments))
    return ir.Call(scope=scope, span=arguments[0].span, function=function, arguments=arguments)


# --- the whole -----------------------------------------------------------------------------------------------------


def estimator(method: ir.MethodIR) -> Estimator:
    """The formulas of a method. What stands in `[…]^sg` is a number: no gradient flows through it."""
    write, parts = Writer(method), components(method)
    whole = write(lambda printer: _gradient(printer, parts))
    coefficient = write(lambda printer: _coefficient(printer, parts))
    where = _where(write, parts)
    losses = tuple((name, write(_loss(law))) for name, law in method.laws.items() if law.claim == "loss")
    loss_where = tuple(_definitions(write))
    return Estimator(whole, where, coefficient, losses, loss_where, _parameters(write), write.signs())


def _parameters(write: Writer) -> tuple[Sign, ...]:
    """`ε = 0.2`, and the author's words."""
    rows = []
    for name, row in write.method.parameters.items():
        rows.append(Sign(write.setting(name, row.value), row.help))
    return tuple(rows)


def _gradient(printer: Printer, parts: Components) -> str:
    method = printer.method
    head, nabla, condition = (r"\hat g = ", r"\nabla_\theta", r"\mid y_{i,<t}, x_i")
    if not printer.latex:
        head, nabla, condition = "ĝ = ", "∇θ", "| y_i<t, x_i"
    inside = (r"\," if printer.latex else "·").join
    factors = _factors(printer, parts)
    product = inside(factor for factor, _ in factors).strip()
    if any(flows for _, flows in factors):
        product = rf"\left[{product}\right]^{{\mathrm{{sg}}}}" if printer.latex else f"[{product}]^sg"
    score = (
        rf"\, {nabla} \log \pi_\theta(y_{{i,t}} {condition})" if printer.latex else f"{nabla} log πθ(y_it {condition})"
    )
    text = f"{head}{sums(printer, method.aggregate, Scope.TOKEN)}{product} {score}"
    if constant(parts.penalty) != 0:
        printer.mentioned["penalty"] = None
        penalty = printer.symbol("penalty", parts.penalty.scope)
        minus = " - " if printer.latex else " − "
        text += f"{minus}{nabla} {sums(printer, method.aggregate, parts.penalty.scope)}{penalty}"
    return " ".join(text.split(" ")).replace("  ", " ")


def _factors(printer: Printer, parts: Components) -> list[tuple[str, bool]]:
    """κ, ω and υ, each with whether it depends on the current policy; what is 1 is left out."""
    method, found = printer.method, list[tuple[str, bool]]()

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


def _z(printer: Printer, parts: Components) -> str:
    """The argument of ω: its sign, or itself where it is a single name."""
    return printer.of(parts.z) if isinstance(parts.z, ir.Named) else printer.symbol("z", parts.z.scope)


def argues(body: ir.Expr) -> bool:
    """Whether the body of ω or υ uses its argument."""
    return any(isinstance(node, ir.Argument) for node in ir.nodes(body))


def _applied(printer: Printer, name: str, argument: str) -> str:
    """ω or υ of its argument: written out where it is short, else by its name."""
    body = printer.method.functions[name].body
    if isinstance(body, ir.Argument):
        return argument
    arguments = {name: argument}
    shown = Printer(printer.method, True, arguments=arguments, legend={}).of(body, PRODUCT)
    if "cases" not in shown and len(shown) <= _SHORT:
        printer.arguments = arguments
        return printer.of(body, PRODUCT)
    printer.mentioned[name] = None
    sign = printer.symbol(name, Scope.CONST)
    return rf"{sign}\left({argument}\right)" if printer.latex else f"{sign}({argument})"


def sums(printer: Printer, steps: Iterable[ir.Step], scope: Scope) -> str:
    """An aggregation as sums and shares in front of a value of this scope, the last step outermost."""
    text = ""
    for step, left, _ in ir.taken(steps, scope):
        text = _sum(printer, step, left) + text
    return text


def _sum(printer: Printer, step: ir.Step, left: Scope) -> str:
    sigma, member = (r"\sum", r" \in ") if printer.latex else ("Σ", "∈")
    domains, count = _domain(printer, step.axis, left)
    text = "".join(printer.under(sigma, domain.replace("∈", member)) for domain in domains)
    if step.axis == "sequences" and left is Scope.GROUP:
        text += printer.size("g") + (r"\," if printer.latex else "·")
    counts = ([count] if step.function == "mean" else []) + _divisor(printer, step)
    return (printer.share(counts) if counts else "") + text


def _domain(printer: Printer, axis: str, left: Scope) -> tuple[list[str], str]:
    """What a step of an aggregation runs over, and how many terms that is."""
    sigma = r"\sum" if printer.latex else "Σ"
    member = r"i \in g" if printer.latex else "i∈g"
    match axis, left:
        case "tokens", _:
            return ["t"], printer.length("i")
        case "group", Scope.TOKEN:
            return ["i∈g", "t"], printer.under(sigma, member) + printer.length("i")
        case "group", _:
            return ["i∈g"], printer.size("g")
        case "batch", Scope.TOKEN:
            return ["i", "t"], "N"
        case ("sequences", _) | ("batch", Scope.SEQUENCE):
            return ["i" if left is Scope.SEQUENCE else "g"], "S"
        case _:
            return ["g"], "G"


def _divisor(printer: Printer, step: ir.Step) -> list[str]:
    if step.divisor is None:
        return []
    if isinstance(step.divisor, str):
        return [named(step.divisor, "", printer.latex)]
    return [printer.number(step.divisor)[0]]


# --- the coefficient -----------------------------------------------------------------------------------------------


def _coefficient(printer: Printer, parts: Components) -> str:
    """c = weight · (κ ω υ − ∂P/∂log π); a penalty per sequence or coarser has a weight of its own."""
    method = printer.method
    inside = (r"\," if printer.latex else "·").join
    product = inside(factor for factor, _ in _factors(printer, parts))
    weight = _weight(printer, method.aggregate, Scope.TOKEN)
    head = (r"c_{i,t} = " if printer.latex else "c_it = ") + weight
    if constant(parts.penalty) == 0:
        return head + (product if product or weight else "1")
    product = product or "1"
    scope, fall = parts.penalty.scope, slope(printer.method, parts.penalty)
    if fall is None:
        sign = printer.symbol("penalty", scope)
        logp = r"\log \pi_\theta(y_{i,t})" if printer.latex else "log πθ(y_it)"
        total = sums(printer, method.aggregate, scope)
        if printer.latex:
            return rf"{head}{product} - \frac{{\partial}}{{\partial {logp}}} {total}{sign}"
        return f"{head}{product} − ∂/∂({logp}) {total}{sign}"
    body = unsigned(fall)
    minus = body is not fall
    sign = (" - " if printer.latex else " − ") if minus else " + "
    if scope is Scope.TOKEN:
        tail = printer.at(body, printer.place(Scope.TOKEN), BIG if minus else SUM)
        if weight:
            return rf"{head}\left({product}{sign}{tail}\right)" if printer.latex else f"{head}({product}{sign}{tail})"
        return f"{head}{product}{sign}{tail}"
    return f"{head}{product}{sign}{_weight(printer, method.aggregate, scope)}{printer.of(body, BIG)}"


def _weight(printer: Printer, steps: Iterable[ir.Step], scope: Scope) -> str:
    """The factor that an aggregation gives to each value of this scope."""
    counts, times = list[str](), ""
    for step, left, _ in ir.taken(steps, scope):
        if step.axis == "sequences" and left is Scope.GROUP:
            times = printer.size("g") + (r"\," if printer.latex else "·")
        if step.function == "mean":
            counts.append(_domain(printer, step.axis, left)[1])
        counts += _divisor(printer, step)
    return (printer.share(counts[::-1]) if counts else "") + times


def slope(method: ir.MethodIR, penalty: ir.Expr) -> ir.Expr | None:
    """−∂P/∂log π at a token, as an expression; None where it reaches beyond its own completion, or has no word."""
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
    rise = gradient(build, value, build.number(1), now)
    return expression(build, build.apply("negate", rise), method)


# --- losses and names ----------------------------------------------------------------------------------------------


def _loss(law: ir.Law) -> Callable[[Printer], str]:
    """L = …, as a law states it."""
    assert law.body is not None
    body, scope = law.body, law.body.scope

    def written(printer: Printer) -> str:
        plain = unsigned(body)
        minus = ("-" if printer.latex else "−") if plain is not body else ""
        head = r"\mathcal{L} = " if printer.latex else "L = "
        total = sums(printer, law.steps, scope)
        return head + minus + total + printer.of(plain, BIG if total or minus else OPEN)

    return written


def _where(write: Writer, parts: Components) -> tuple[Formula, ...]:
    """A line for each name that the estimator mentions, until every name is defined."""
    lines = []
    for name in ("omega", "upsilon"):
        if name in write.latex.mentioned:
            lines.append(write(_function(name)))
    if argues(parts.omega) and not isinstance(parts.z, ir.Named):
        lines.append(write(lambda printer: f"{_z(printer, parts)} = {printer.of(parts.z)}"))
    return (*lines, *_definitions(write))


def _definitions(write: Writer) -> Iterator[Formula]:
    """A line for each name that was mentioned and is not defined yet."""
    while waiting := [name for name in write.latex.mentioned if name not in write.defined]:
        write.defined.add(waiting[0])
        yield write(_definition(waiting[0], write.method))


def _definition(name: str, method: ir.MethodIR) -> Callable[[Printer], str]:
    """`name = …`"""
    scope, body = method.definitions[name].body.scope, plain_body(name, method)
    return lambda printer: f"{printer.symbol(name, scope)} = {printer.of(body)}"


def _function(name: str) -> Callable[[Printer], str]:
    """`ω(z) = …`"""

    def written(printer: Printer) -> str:
        row = printer.method.functions[name]
        printer.arguments = {name: named(row.argument, "", printer.latex)}
        return f"{printer.function(name)} = {printer.of(row.body)}"

    return written
