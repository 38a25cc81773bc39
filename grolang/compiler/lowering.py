"""IR to a program: the estimator of LANGUAGE.md, 2 and 6, written out step by step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from grolang.compiler.derivative import gradient
from grolang.compiler.program import GREEDY, MAIN, MISMATCHED, Builder, Program
from grolang.compiler.verify import verified
from grolang.language import ir
from grolang.language.declarations import room_to_nest
from grolang.language.scopes import REDUCED, Scope


class Lowering:
    """Writes the steps of one method's expressions, each definition once.

    `exchanges` holds expressions that stand in for observables (`when X = EXPR` in a law); `owner` reads them.
    """

    def __init__(
        self,
        method: ir.MethodIR,
        builder: Builder | None = None,
        exchanges: Mapping[str, ir.Expr] | None = None,
        owner: Lowering | None = None,
    ) -> None:
        self.method = method
        self.builder = builder or Builder()
        self.exchanges = exchanges or {}
        self.owner = owner or self
        self._done: dict[tuple[str, str], int] = {}
        self._arguments: dict[str, int] = {}

    def component(self, name: str, world: str = MAIN) -> int:
        """A definition or component."""
        key = (name, world)
        if key not in self._done:
            self._done[key] = self.expression(self.method.definitions[name].body, world)
        return self._done[key]

    def names(self) -> dict[int, str]:
        """The steps that are a definition, by its name; an alias keeps the first."""
        found: dict[int, str] = {}
        for (name, world), index in self._done.items():
            own = world == MAIN and self.method.definitions[name].given
            if own and self.builder[index].op not in ("const", "param", "load"):
                found.setdefault(index, name)
        return found

    def function(self, name: str, argument: int) -> int:
        """omega or upsilon of a step."""
        self._arguments[name] = argument
        return self.expression(self.method.functions[name].body, MAIN)

    def expression(self, expr: ir.Expr, world: str = MAIN) -> int:
        """The step of an expression's value, at its own scope or a coarser one that decides it."""
        before, self.builder.span = self.builder.span, expr.span
        try:
            return self._expression(expr, world)
        finally:
            self.builder.span = before

    def _expression(self, expr: ir.Expr, world: str) -> int:
        build = self.builder
        match expr:
            case ir.Number():
                return build.number(expr.value)
            case ir.Parameter():
                value = self.method.parameters[expr.name].value
                return build.emit("param", detail=(expr.name, value), scope=Scope.CONST)
            case ir.Observed():
                return self._observed(expr, world)
            case ir.Named():
                return self.component(expr.name, world)
            case ir.Argument():
                return self._arguments[expr.name]
            case ir.Arbitrary() if world == GREEDY and expr.scope is Scope.SEQUENCE:
                return build.load(f"any {expr.span.start} greedy", Scope.GROUP)  # the greedy completion is no row
            case ir.Arbitrary():
                return build.load(f"any {expr.span.start}", expr.scope, world)
            case ir.Reduce():
                return self._reduce(expr, world)
            case ir.Call():
                return self._call(expr, world)

    def _observed(self, expr: ir.Observed, world: str) -> int:
        build = self.builder
        match expr.name:
            case name if name in self.exchanges:
                return self._exchanged(self.exchanges[name], world)
            case "length":
                return build.count(Scope.TOKEN, Scope.SEQUENCE, world)
            case "group_size":
                return build.count(Scope.SEQUENCE, Scope.GROUP)
            case "logp_old" if world != MISMATCHED and "demonstrations" in self.method.data:
                return self._old_policy()
            case name if world == GREEDY and name in self.method.scores:
                return build.load(f"greedy {name}", Scope.SEQUENCE)
            case name:
                return build.load(name, expr.scope, world)

    def _exchanged(self, expr: ir.Expr, world: str) -> int:
        """An observable's stand-in, made of the batch's own observables."""
        build, made = self.builder, self.owner.expression(expr, world)
        # A stand-in is a number: `logp` is live in penalties and losses only.
        return build.emit("stop", [made], scope=build[made].scope, world=world) if expr.live else made

    def _old_policy(self) -> int:
        """For a demonstration `logp_old` is `logp`, as a number: nobody drew it."""
        build = self.builder
        now = build.emit("stop", [build.load("logp", Scope.TOKEN)], scope=Scope.TOKEN)
        if self.method.data == ("demonstrations",):
            return now
        shown = build.load("demonstration", Scope.SEQUENCE)
        return build.apply("choose", shown, now, build.load("logp_old", Scope.TOKEN))

    def _reduce(self, expr: ir.Reduce, world: str) -> int:
        if expr.arguments[0].scope is Scope.COMPARISON:
            return self._compare(expr, world)
        value, *more = (self.expression(argument, world) for argument in expr.arguments)
        # A group's value over the batch counts once for each of the group's sequences.
        child = max(expr.arguments[0].scope, Scope.SEQUENCE)
        parent = REDUCED[expr.axis]
        return self.builder.reduce(
            expr.function, value, child, parent, *more, others=expr.axis == "others", world=world
        )

    def _compare(self, expr: ir.Reduce, world: str) -> int:
        """Over the others of a value that `own` is part of."""
        value, *more = self._versus(expr.arguments[0], world), *(self.expression(q) for q in expr.arguments[1:])
        return self.builder.reduce(expr.function, value, Scope.COMPARISON, Scope.SEQUENCE, *more, others=True)

    def _versus(self, expr: ir.Expr, world: str) -> int:
        """At each comparison: what is `own` is that of the sequence itself, the rest that of the other one."""
        build = self.builder
        before, build.span = build.span, expr.span
        try:
            if expr.scope < Scope.COMPARISON:
                value = self.expression(expr, world)
                if build[value].scope < Scope.SEQUENCE:
                    return value
                return build.emit("swapped", [build.spread(value, Scope.COMPARISON)], scope=Scope.COMPARISON)
            assert isinstance(expr, ir.Call), "bug in grolang: no comparison is a name"
            if expr.function == "own":
                return build.spread(self.expression(expr.arguments[0], world), Scope.COMPARISON)
            args = [self._versus(argument, world) for argument in expr.arguments]
            if expr.function == "sg":
                return build.emit("stop", args, scope=Scope.COMPARISON)
            return build.apply(expr.function, *args)
        finally:
            build.span = before

    def _call(self, expr: ir.Call, world: str) -> int:
        build = self.builder
        match expr.function:
            case "mismatched":
                value = self.expression(expr.arguments[0], MISMATCHED)
                return build.spread(value, Scope.SEQUENCE)
            case "greedy":
                return self.expression(expr.arguments[0], GREEDY)
        args = [self.expression(argument, world) for argument in expr.arguments]
        match expr.function:
            case "sg":
                return build.emit("stop", args, scope=build[args[0]].scope, world=world)
            case "terminal":
                last = build.load("last token", Scope.TOKEN, world)
                return build.apply("choose", last, args[0], build.number(0), world=world)
            case "to_go":
                place = build.spread(args[0], Scope.TOKEN, world)
                return build.emit("to_go", [place, args[1]], scope=Scope.TOKEN, world=world)
            case "opposite" | "chosen" | "rejected":
                place = build.spread(args[0], Scope.SEQUENCE)
                return build.emit(expr.function, [place], scope=expr.scope)
            case function:
                return build.apply(function, *args, world=world)

    # --- the estimator ------------------------------------------------------------------------------------------

    def weight(self, steps: Iterable[ir.Step], scope: Scope) -> int:
        """The factor that an aggregation gives to each value of this scope, so that it is Σ weight · value.

        `over sequences` of a group value counts it once for each of its sequences (LANGUAGE.md, 6).
        """
        build, weight = self.builder, self.builder.number(1)
        for step, left, after in ir.taken(steps, scope):
            build.span = step.span
            if step.axis == "sequences" and left is Scope.GROUP:
                weight = build.apply("multiply", weight, build.count(Scope.SEQUENCE, Scope.GROUP))
                left = Scope.SEQUENCE
            if step.function == "mean":
                weight = build.apply("divide", weight, build.count(left, after))
            if step.divisor is not None:
                weight = build.apply("divide", weight, self._divisor(step.divisor))
        return weight

    def _divisor(self, divisor: float | str) -> int:
        if isinstance(divisor, float):
            return self.builder.number(divisor)
        value = self.method.parameters[divisor].value
        return self.builder.emit("param", detail=(divisor, value), scope=Scope.CONST)

    def _at(self, index: int, scope: Scope) -> int:
        """A group's value that was computed for each of its sequences (`greedy` is), once for the group."""
        build = self.builder
        return index if build[index].scope <= scope else build.reduce("mean", index, build[index].scope, scope)

    def total(self, expr: ir.Expr, steps: Iterable[ir.Step]) -> tuple[int, int]:
        """An expression aggregated to one number, and the coefficients that descend it: −∂total/∂logp."""
        build = self.builder
        value = build.spread(self._at(self.expression(expr), expr.scope), expr.scope)
        weight = self.weight(steps, expr.scope)
        product = build.apply("multiply", weight, value)
        total = product if expr.scope <= Scope.BATCH else build.reduce("sum", product, expr.scope, Scope.BATCH)
        slope = gradient(build, value, weight, build.load("logp", Scope.TOKEN))
        return total, build.apply("negate", slope)


def lower(method: ir.MethodIR, *, settable: bool = False) -> Program:
    """The program of a method; `settable`: one in which parameters that are not 0 may get other values.

    Outputs: `coefficient` [N], −∂loss/∂logp of each valid token; `score_coefficient`, the same without the
    penalty; `penalty`, its aggregated value; the components; each report as `report NAME`, one number; and
    `implicit_reward` [S], alpha · label · measure, where the data has labels.
    """
    low = Lowering(method, Builder(settable=settable))
    with room_to_nest():
        outputs = estimator(low)
        outputs |= {f"report {name}": _mean(low, report.body) for name, report in method.reports.items()}
    if set(method.data) & {"preference", "unpaired"} and method.definitions["measure"].given:
        outputs["implicit_reward"] = _implicit_reward(low, outputs["measure"])
    return verified(Program(tuple(low.builder.steps), outputs, low.names()))


def estimator(low: Lowering) -> dict[str, int]:
    """Write a method's coefficient and its parts; where each of them stands."""
    build, method = low.builder, low.method
    outputs = {name: low.component(name) for name in ("advantage", "measure", "credit")}
    if "reward" in method.definitions:
        outputs["reward"] = low.component("reward")
    distance = build.apply("subtract", low.component("measure"), low.component("anchor"))
    outputs["z"] = build.apply("multiply", low.component("alpha"), distance)
    outputs["omega"] = low.function("omega", outputs["z"])
    outputs["upsilon"] = low.function("upsilon", outputs["advantage"])
    # Where the advantage counts for nothing the coefficient is 0, whatever omega is: such a sample may be skipped.
    push = build.apply("multiply", outputs["credit"], outputs["omega"])
    push = build.apply("chain", outputs["upsilon"], push)
    product = build.apply("multiply", push, low.weight(method.aggregate, Scope.TOKEN))
    outputs["score_coefficient"] = build.spread(product, Scope.TOKEN)
    outputs["penalty"], slope = low.total(method.definitions["penalty"].body, method.aggregate)
    outputs["coefficient"] = build.spread(build.apply("add", product, slope), Scope.TOKEN)
    return outputs


def _mean(low: Lowering, expr: ir.Expr) -> int:
    """The mean over the batch: over all tokens of a token value, over all sequences of the rest."""
    value = low.expression(expr)
    if expr.scope <= Scope.BATCH:
        return value
    return low.builder.reduce("mean", value, max(expr.scope, Scope.SEQUENCE), Scope.BATCH)


def _implicit_reward(low: Lowering, measure: int) -> int:
    build = low.builder
    signed = build.apply("multiply", low.component("alpha"), build.load("label", Scope.SEQUENCE))
    reward = build.apply("multiply", signed, measure)
    if build[reward].scope is Scope.TOKEN:
        return build.reduce("sum", reward, Scope.TOKEN, Scope.SEQUENCE)
    return build.spread(reward, Scope.SEQUENCE)
