"""The first update after a draw: `logp_old` is `logp`, and what only their difference decides is known.

A program is written anew with the one in place of the other, so that what the builder sees to vanish does: a ratio
is 1, a clip of it a number, a coefficient often a constant. Derivatives were taken before, while `logp_old` was a
number, so the language's conventions at a kink hold: they are steps of the program like any other.
"""

from __future__ import annotations

from grolang.compiler.program import Builder, Program, Step
from grolang.compiler.verify import verified
from grolang.language.scopes import Scope


def on_policy(program: Program) -> Program:
    """The program where `logp_old` is `logp`, of the batch and of the mismatched completions alike."""
    build, place = Builder(), dict[int, int]()
    for index, step in enumerate(program.steps):
        build.span = step.span
        place[index] = _written(build, step, [place[argument] for argument in step.args], program)
    outputs = {}
    for name, index in program.outputs.items():
        scope = program.steps[index].scope
        outputs[name] = build.spread(place[index], scope) if scope > Scope.BATCH else place[index]
    names = {place[index]: name for index, name in program.names.items() if build[place[index]].op != "const"}
    return verified(Program(tuple(build.steps), outputs, names))


def _written(build: Builder, step: Step, args: list[int], program: Program) -> int:
    def at(number: int) -> int:
        """An argument at the scope that the step was written for, where it has become simpler since."""
        return build.spread(args[number], program.steps[step.args[number]].scope, step.world)

    match step.op:
        case "load" if step.detail[0] == "logp_old":
            return build.load("logp", step.scope, step.world)
        case "const" | "param" | "load" | "count":
            return build.emit(step.op, (), step.detail, scope=step.scope, world=step.world)
        case "stop":  # nothing is differentiated any more
            return args[0]
        case "spread":
            return build.spread(args[0], step.scope, step.world)
        case "reduce":
            function, (value, *more) = str(step.detail[0]), args
            return build.reduce(function, value, step.child, step.scope, *more, others=step.others, world=step.world)
        case "opposite" | "chosen" | "rejected" | "swapped" if build[build.unspread(args[0])].scope <= Scope.GROUP:
            return build.spread(build.unspread(args[0]), step.scope)
        case "to_go" | "so_far" if build.value(args[0]) == 0.0:
            return args[0]
        case "unreduce" if build.value(args[2]) == 0.0:
            return args[2]
        case "opposite" | "chosen" | "rejected" | "swapped" | "to_go" | "so_far" | "unreduce":
            moved = [at(number) for number in range(len(args))]
            return build.emit(step.op, moved, step.detail, scope=step.scope, world=step.world)
    return build.apply(step.op, *args, world=step.world)
