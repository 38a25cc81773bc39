"""What only the whole method shows: υ increasing, ω's range, divisors, domains, bias, dead code."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

from grolang.language.components import COMPONENTS
from grolang.language.declarations import Declarations, leaf
from grolang.language.facts import Facts, Known, key, pointwise, reads, value
from grolang.language.findings import Findings
from grolang.language.functions import FUNCTIONS, OBSERVABLES
from grolang.language.habits import DECLARED
from grolang.language.ir import Call, Expr, FunctionDefinition, MethodIR, Named, Observed, Reduce, constant
from grolang.language.scopes import Scope
from grolang.language.source import Span

#: what is the same whatever is drawn for a prompt, and what is known before a token is drawn
OF_THE_PROMPT = ("group_size", "label", "demonstration")
OF_THE_PREFIX = (*OF_THE_PROMPT, "position", "entropy")


def analyse(method: MethodIR, declared: Declarations, findings: Findings) -> None:
    """Add what a checked method's expressions show when they are seen together."""
    _Analysis(method, declared, findings).run()


class _Analysis:
    def __init__(self, method: MethodIR, declared: Declarations, findings: Findings) -> None:
        self.method = method
        self.declared = declared
        self.findings = findings
        self._dependence: dict[str, tuple[bool, bool]] = {}
        self.facts = Facts(method)
        self.typical = Facts(method, fixed=True, typical=True)
        self.fixed = Facts(method, fixed=True)

    def run(self) -> None:
        for body in self._bodies():
            self._walk(body, {}, {})
        self._steps()
        self._upsilon(self.method.functions["upsilon"])
        self._omega(self.method.functions["omega"])
        if "prompts" in self.method.data:
            self._bias()
        self._penalty()
        self._unused()

    def _bodies(self) -> Iterator[Expr]:
        for definition in self.method.definitions.values():
            if definition.given:
                yield definition.body
        for function in self.method.functions.values():
            if function.given:
                yield function.body
        for report in self.method.reports.values():
            yield report.body

    def _text(self, span: Span) -> str:
        return self.declared.sources[span.file].quoted(span)

    # --- divisors, domains, overflow ------------------------------------------------------------------------------

    def _walk(self, expr: Expr, known: Known, typically: Known) -> None:
        """Look at each operation below, with what the conditions around it tell."""
        if not isinstance(expr, (Call, Reduce)):
            return
        if isinstance(expr, Call) and expr.function == "choose":
            condition, then, otherwise = expr.arguments
            self._walk(condition, known, typically)
            for branch, holds in ((then, True), (otherwise, False)):
                told = {**known, **self.facts.assumed(condition, holds, known)}
                told_typically = {**typically, **self.typical.assumed(condition, holds, typically)}
                self._walk(branch, told, told_typically)
            return
        if isinstance(expr, Call):
            self._operation(expr, known, typically)
        elif expr.function == "quantile":
            self._share(expr.arguments[1])
        for argument in expr.arguments:
            self._walk(argument, known, typically)

    def _operation(self, expr: Call, known: Known, typically: Known) -> None:
        if expr.function == "divide" and 0.0 in self.facts.range(expr.arguments[1], known):
            divisor = expr.arguments[1]
            text = self._text(divisor.span)
            why = "a standard deviation is 0 where all values are equal" if _is_std(divisor, self.method) else ""
            help = f"write `… / x if x > 0 else 0` with x = `{text}`, or add a small number to it"
            self.findings.add("W701", f"the divisor `{text}` can be 0", divisor.span, label=why, help=help)
        if expr.function == "power":
            self._power(expr, known)
        row = FUNCTIONS.get(expr.function)
        for place, domain, what in row.domain if row else ():
            argument = expr.arguments[place]
            found = self.facts.range(argument, known)
            inside = found.low >= domain.low and (found.low > domain.low or found.low_open or not domain.low_open)
            if not inside:
                text = self._text(argument.span)
                help = f"keep it there, for example with `max({text}, 1e-6)`"
                message = f"`{expr.function}` is {what}, and `{text}` can be {_worst(found.low, domain.low)}"
                self.findings.add("W705", message, argument.span, help=help)
        if expr.function == "exp":
            found = self.typical.range(expr.arguments[0], typically)
            if found.high > 88:
                text = self._text(expr.arguments[0].span)
                help = f"bound it, for example `exp(min({text}, 20))`, or average instead of summing"
                message = f"`exp` can overflow: nothing bounds `{text}` from above"
                self.findings.add("W706", message, expr.arguments[0].span, help=help)

    def _power(self, expr: Call, known: Known) -> None:
        """x ^ -1 divides by x, and x ^ 0.5 is a root."""
        base, exponent = (self.facts.range(argument, known) for argument in expr.arguments)
        shown, text = expr.arguments[0], self._text(expr.arguments[0].span)
        if exponent.high < 0 and 0.0 in base:
            help = f"write `… if x > 0 else 0` around it with x = `{text}`, or add a small number to it"
            self.findings.add("W701", f"a negative power divides by `{text}`, which can be 0", shown.span, help=help)
        elif exponent.low == exponent.high and exponent.low % 1 and base.low < 0:
            message = f"a power that is not whole is not defined below 0, and `{text}` can be {_worst(base.low, 0)}"
            help = f"keep it there, for example with `max({text}, 1e-6)`"
            self.findings.add("W705", message, shown.span, help=help)

    def _share(self, q: Expr) -> None:
        """The `q` of a quantile, with the parameters at their values."""
        found = self.fixed.range(q)
        if found.high < 0 or found.low > 1:
            message = f"the `q` of a quantile lies between 0 and 1, and `{self._text(q.span)}` is {found.low:g}"
            self.findings.add("E505", message, q.span, help="change the parameter's value: 0.5 is the median")

    def _steps(self) -> None:
        """An aggregation divides by a parameter."""
        for step in self.method.aggregate:
            if isinstance(step.divisor, str) and 0.0 in self.facts.parameter(step.divisor):
                message = f"the divisor `{step.divisor}` can be 0"
                help = f"exclude 0 from its bounds: `param {step.divisor} = … in (0, inf)`"
                self.findings.add("W701", message, step.span, help=help)

    # --- upsilon and omega ------------------------------------------------------------------------------------------

    def _upsilon(self, upsilon: FunctionDefinition) -> None:
        """υ must be increasing: proved by composition, or refuted by two inputs, or said to be unknown."""
        if not upsilon.given or self.facts.slope(upsilon.body, "upsilon") in ("+", "="):
            return
        if (pair := refuted(self.method, self.facts)) is not None:
            help = "a larger advantage must never count for less; put a sign or a gate into `omega`"
            label = f"falls in `{upsilon.argument}`"
            self.findings.add("E503", falling(upsilon, pair), upsilon.body.span, label=label, help=help)
            return
        message = f"cannot tell whether `{upsilon.spelled}` is increasing; no pair of inputs was found that refutes it"
        help = "write it with increasing functions only, such as `max(a, 0.5 * a)` for two slopes"
        self.findings.add("W707", message, upsilon.body.span, help=help)

    def _omega(self, omega: FunctionDefinition) -> None:
        """ω weighs a sample: below 0 it turns the sign of the advantage around, and without bound it explodes."""
        if not omega.given:
            return
        signed, sized = self.facts.range(omega.body), self.fixed.range(omega.body)
        if signed.low < 0:
            message = f"`{omega.spelled}` can be negative (its range is {signed}): it would turn good into bad"
            help = "keep the sign in `alpha` or the reward, and a weight of 0 or more here"
            self.findings.add("W703", message, omega.body.span, help=help)
        elif sized.high == math.inf:
            message = f"`{omega.spelled}` has no upper bound (its range is {sized}): one token can rule the step"
            help = "bound it, for example `min(…, 10)`, if that is not what the paper wants"
            self.findings.add("W703", message, omega.body.span, help=help)

    # --- bias ---------------------------------------------------------------------------------------------------------

    def _bias(self) -> None:
        """Eq. 7: an estimate stays unbiased as long as the baseline (and the divisor) leave the own sample out."""
        seen: set[object] = set()
        for name in ("baseline", "advantage"):
            for node in self._own(self.method.definitions[name].body, name == "baseline"):
                if key(node) in seen:
                    continue
                seen.add(key(node))
                text = self._text(node.span)
                if isinstance(node, Reduce) and node.axis in ("group", "batch"):
                    message = f"the {name} is biased: `{text}` uses the sequence's own sample (Eq. 7)"
                    help = "the unbiased form is `over others`, with a group of 2 or more; or keep the published form"
                else:
                    message = f"the {name} is biased: `{text}` is the sequence's own sample (Eq. 7)"
                    help = f"use the other samples of the group: `mean({text} over others)`"
                self.findings.add("W702", message, node.span, help=help)

    def _own(self, expr: Expr, in_baseline: bool) -> Iterator[Expr]:
        """The outermost expressions below that use the sequence's own sample; in an advantage its reward may."""
        stack, seen = [expr], set[str]()
        while stack:
            node = stack.pop()
            drawn = isinstance(node, Observed) and node.name not in OF_THE_PREFIX
            if drawn or (isinstance(node, Named) and node.name == "reward"):
                if in_baseline:
                    yield node
            elif isinstance(node, Named):
                if node.name != "baseline" and node.name not in seen:
                    seen.add(node.name)
                    stack.append(self.method.definitions[node.name].body)
            elif isinstance(node, Reduce):
                if self._depends(node)[0]:
                    yield node
            elif self._left_out(node):
                continue
            elif isinstance(node, Call) and node.function not in ("greedy", "mismatched"):
                stack += node.arguments

    def _left_out(self, expr: Expr) -> bool:
        """Whether this is `sum(x over group) - x`, which says `sum(x over others)`; `over batch` likewise."""
        if not (isinstance(expr, Call) and expr.function == "subtract"):
            return False
        total, own = (self._said(argument) for argument in expr.arguments)
        if not (isinstance(total, Reduce) and total.function == "sum" and total.axis in ("group", "batch")):
            return False
        summed = self._said(total.arguments[0])
        return key(summed) == key(own) and summed.scope is Scope.SEQUENCE and not self._depends(summed)[1]

    def _said(self, expr: Expr) -> Expr:
        """What a name stands for."""
        while isinstance(expr, Named):
            expr = self.method.definitions[expr.name].body
        return expr

    def _depends(self, expr: Expr) -> tuple[bool, bool]:
        """Whether a sequence's value depends on its own sample, and on those of the others of its group or batch."""
        match expr:
            case Observed():
                return expr.name not in OF_THE_PROMPT, False
            case Named():
                if expr.name not in self._dependence:
                    self._dependence[expr.name] = self._depends(self.method.definitions[expr.name].body)
                return self._dependence[expr.name]
            case Reduce():
                own, cross = self._depends(expr.arguments[0])
                if expr.axis == "tokens":
                    return own, cross
                return (cross, own or cross) if expr.axis == "others" else (own or cross, own or cross)
            case Call(function="greedy"):
                return False, False
            case Call(function="mismatched"):
                return False, True
            case Call(function="own"):
                # Seen from the others: `over others` turns it round.
                return False, any(self._depends(expr.arguments[0]))
            case Call() if self._left_out(expr):
                return False, True
            case Call():
                parts = [self._depends(argument) for argument in expr.arguments]
                return any(own for own, _ in parts), any(cross for _, cross in parts)
            case _:
                return False, False

    # --- penalty and dead code ----------------------------------------------------------------------------------------

    def _penalty(self) -> None:
        penalty = self.method.definitions["penalty"]
        if penalty.given and not penalty.body.live and constant(penalty.body) != 0:
            message = "the penalty has no gradient: nothing in it is differentiated in `logp`"
            if ("observed", "entropy") in reads(penalty.body, self.method):
                message += "; `entropy` is a number here"
            help = "use `logp` in it, move it into the reward, or delete it"
            self.findings.add("W708", message, penalty.body.span, help=help)

    def _unused(self) -> None:
        """What this file declares and nothing uses. What it inherits is its parents' business."""
        used = self._mentions()
        for kind, word in (("param", "parameter"), ("score", "score"), ("definition", "definition")):
            for name, statement in self.declared.of_kind(kind):
                if name in used or statement.source.name != self.method.file:
                    continue
                span = statement.span_of(leaf(statement))
                message = f"the {word} `{leaf(statement)}` is used by nothing"
                if name in COMPONENTS:
                    reader = COMPONENTS[name].reader
                    message = f"the component `{leaf(statement)}` is used by nothing: only {reader} would use it"
                self.findings.add("W704", message, span, help=DECLARED.get(name, "delete it, or use it"))

    def _mentions(self) -> set[str]:
        """Every name that some expression uses, and the components that the estimator itself uses."""
        bodies = [*self._bodies(), *(law.body for law in self.method.laws.values() if law.body is not None)]
        bodies += [body for law in self.method.laws.values() for body in law.exchanges.values()]
        used = {name for body in bodies for _, name in reads(body, self.method, into=False)}
        steps = [*self.method.aggregate, *(s for law in self.method.laws.values() for s in law.aggregate or ())]
        used |= {step.divisor for step in steps if isinstance(step.divisor, str)}
        used |= {"advantage", "credit", "penalty", "reward"}  # the reward is logged at every step
        if not self.method.definitions["advantage"].given:
            used.add("baseline")
        if ("argument", "omega") in reads(self.method.functions["omega"].body, self.method):
            used |= {"measure", "anchor", "alpha"}
        return used


_Pair = tuple[tuple[float, float], tuple[float, float]]


def falling(upsilon: FunctionDefinition, pair: _Pair) -> str:
    """The message that υ falls, with the two inputs that show it."""
    (a, fa), (b, fb) = pair
    u = upsilon.spelled
    return f"`{u}` must be increasing, and it falls: {u}({a:g}) = {fa:g}, but {u}({b:g}) = {fb:g}"


def refuted(method: MethodIR, facts: Facts) -> _Pair | None:
    """Two inputs of υ of which the larger gives less: a search over a grid, other values drawn from their ranges."""
    upsilon = method.functions["upsilon"]
    if not pointwise(upsilon.body, method):
        return None
    inside = facts.arguments["upsilon"]
    draw = random.Random(0)
    places = sorted({0.0, *(s * 2.0**k for k in range(-12, 5) for s in (-1, 1)), *(k / 4 for k in range(-40, 41))})
    places = [x for x in places if x in inside]
    free = sorted(name for kind, name in reads(upsilon.body, method) if kind == "observed")
    found: list[_Pair] = []
    for _ in range(16 if free else 1):
        given = {("observed", name): _drawn(name, draw) for name in free}
        last: tuple[float, float] | None = None
        for x in places:
            y = value(upsilon.body, method, given | {("argument", "upsilon"): x})
            if math.isnan(y):
                continue
            if last is not None and y < last[1] - 1e-12 * max(1.0, abs(last[1])):
                found.append((last, (x, y)))
            last = (x, y)
    # The pair that is easiest to check by hand: about 1 in size.
    return min(found, key=lambda pair: abs(math.log(max(abs(pair[0][0]), abs(pair[1][0])))), default=None)


def _drawn(name: str, draw: random.Random) -> float:
    """A value that an observable or a score can have."""
    if name in ("length", "group_size", "position"):
        return float(draw.randint(0 if name == "position" else 1, 9))
    if name in ("label", "demonstration"):
        return draw.choice((-1.0, 1.0) if name == "label" else (0.0, 1.0))
    row = OBSERVABLES.get(name)
    if row is None:
        return draw.choice((-1.0, 0.0, 1.0, draw.uniform(-3, 3)))
    return draw.uniform(-8, 0) if row.range.nonpositive else draw.uniform(0, 8)


def _is_std(expr: Expr, method: MethodIR) -> bool:
    if isinstance(expr, Named):
        return _is_std(method.definitions[expr.name].body, method)
    return isinstance(expr, Reduce) and expr.function in ("std", "sample_std")


def _worst(low: float, bound: float) -> str:
    return f"{bound:g}" if low == bound else "below it" if math.isinf(low) else f"{low:g}"
