"""Steps of a program read back as an expression, for the derivative of a penalty: only what stays in its place."""

from __future__ import annotations

from grolang.compiler.program import MAIN, Builder
from grolang.language.functions import FORMS, FUNCTIONS, OBSERVABLES
from grolang.language.ir import Call, Expr, MethodIR, Number, Observed, Parameter, Reduce
from grolang.language.scopes import REDUCED, Scope
from grolang.language.source import NOWHERE

_COUNTS = {(Scope.SEQUENCE, "token"): "length", (Scope.GROUP, "sequence"): "group_size"}


def expression(build: Builder, index: int, method: MethodIR) -> Expr | None:
    """The expression that a step computes; None where a step has no word in the language."""
    step = build[index]
    if step.world != MAIN:
        return None
    arguments = [expression(build, argument, method) for argument in step.args]
    made = tuple(argument for argument in arguments if argument is not None)
    if len(made) < len(arguments):
        return None
    word = str(step.detail[0]) if step.detail else ""
    match step.op:
        case "const":
            return Number(scope=Scope.CONST, span=NOWHERE, value=float(step.detail[0]))
        case "param":
            return Parameter(scope=Scope.CONST, span=NOWHERE, name=word)
        case "load" if word in OBSERVABLES or word in method.scores:
            return Observed(scope=step.scope, span=NOWHERE, name=word)
        case "count" if (step.scope, word) in _COUNTS:
            return Observed(scope=step.scope, span=NOWHERE, name=_COUNTS[step.scope, word])
        case "spread" | "stop":
            return made[0]
        case "chain":
            return Call(scope=step.scope, span=NOWHERE, function="multiply", arguments=made)
        case "reduce":
            axis = "others" if step.others else next(axis for axis, left in REDUCED.items() if left is step.scope)
            return Reduce(scope=step.scope, span=NOWHERE, function=word, axis=axis, arguments=made)
        case op if op in FUNCTIONS or op in FORMS:
            return Call(scope=step.scope, span=NOWHERE, function=op, arguments=made)
        case _:
            return None
