"""A program held against its own rules after each pass that writes one: a bug in grolang is said to be one.

Every value must come before its use, have the scope that its operation gives, and be spread before it meets a finer
one. It is cheap, and it runs on every method that is lowered.
"""

from __future__ import annotations

from grolang.compiler.program import MAIN, MISMATCHED, Program, Step
from grolang.language.functions import FUNCTIONS
from grolang.language.scopes import Scope

#: what each output must be, where a program has it
_OUTPUTS = {"coefficient": Scope.TOKEN, "score_coefficient": Scope.TOKEN, "implicit_reward": Scope.SEQUENCE}


def verified(program: Program) -> Program:
    """The program; AssertionError, with the step, where it breaks the rules of steps (program.py)."""
    for index, step in enumerate(program.steps):
        assert all(0 <= argument < index for argument in step.args), _bug(index, step, "uses a later step")
        assert step.world in (MAIN, MISMATCHED), _bug(index, step, "lies in no world")
        fault = _fault(step, [program.steps[argument] for argument in step.args])
        assert fault is None, _bug(index, step, str(fault))
    for name, index in program.outputs.items():
        assert index < len(program.steps), f"bug in grolang: the output {name} is no step"
        scope = program.steps[index].scope
        assert scope == _OUTPUTS.get(name, scope), f"bug in grolang: the output {name} has scope {scope.word}"
        assert scope <= Scope.BATCH or not name.startswith("report "), f"bug in grolang: {name} is no number"
    return program


def _bug(index: int, step: Step, fault: str) -> str:
    return f"bug in grolang: step %{index} {fault}: {step}"


def _fault(step: Step, args: list[Step]) -> str | None:
    """What is wrong with a step, given those that it takes."""
    scopes = [arg.scope for arg in args]
    match step.op:
        case "const" | "param":
            return None if not args and step.scope is Scope.CONST else "is no single number"
        case "load":
            return None if not args else "takes arguments"
        case "count":
            return None if step.child > step.scope else "counts what is not inside of it"
        case "spread":
            return None if len(args) == 1 and scopes[0] < step.scope else "spreads to a scope that is not finer"
        case "reduce":
            expected = step.scope is Scope.SEQUENCE if step.others else step.scope < step.child
            return None if scopes[0] is step.child and expected else "reduces over an axis that its value lacks"
        case "unreduce":
            same = scopes[0] is step.scope and scopes[1] is scopes[2]
            return None if same else "is no adjoint of its reduction"
        case "stop":
            return None if scopes == [step.scope] else "changes scope"
        case "to_go" | "so_far":
            return (
                None if scopes[0] is step.scope is Scope.TOKEN and scopes[1] <= Scope.BATCH else "runs over no tokens"
            )
        case "opposite" | "chosen" | "rejected":
            gives = Scope.SEQUENCE if step.op == "opposite" else Scope.GROUP
            return None if scopes == [Scope.SEQUENCE] and step.scope is gives else "picks from no pair"
        case "swapped":
            return None if scopes == [step.scope] == [Scope.COMPARISON] else "swaps no comparisons"
        case "chain":
            arity = 2
        case op if op in FUNCTIONS:
            arity = len(FUNCTIONS[op].arguments)
        case _:
            return "is of no known kind"
    if len(args) != arity:
        return f"takes {arity} arguments"
    if step.scope is not max(scopes, default=Scope.CONST):
        return "has another scope than its arguments give"
    if any(Scope.BATCH < scope < step.scope for scope in scopes):
        return "meets a coarser value that is not spread"
    return None
