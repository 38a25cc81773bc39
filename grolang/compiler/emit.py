"""A method as one readable Python file that depends on torch alone: to be taken into any other trainer.

The straight line of steps becomes one assignment each; what stands around it is in standalone.py.
"""

from __future__ import annotations

import keyword
import math
from itertools import count

from grolang.compiler.lowering import lower
from grolang.compiler.program import MISMATCHED, PAIRED, Program, Step
from grolang.compiler.standalone import OWN_NAMES, file_of
from grolang.language.functions import BINARY, DENIED, LOG_PROBS
from grolang.language.ir import MethodIR
from grolang.language.scopes import Scope

_INFIX = {row.name: row.symbol for row in BINARY.values() if not row.symbol.isalpha()} | {"power": "**"}
_CALLS = {
    "negate": "-{0}",
    "not": "({0} == 0).to(dtype)",
    "and": "torch.where({0} != 0, {1}, {0})",
    "or": "torch.where({0} != 0, {0}, {1})",
    "choose": "torch.where({0} != 0, {1}, {2})",
    "logsigmoid": "F.logsigmoid({0})",
    "softplus": "-F.logsigmoid(-{0})",
    "relu": "torch.relu({0})",
    "min": "torch.minimum({0}, {1})",
    "max": "torch.maximum({0}, {1})",
    "clip": "torch.minimum(torch.maximum({0}, {1}), {2})",
    "sign": "_sign({0})",
    "chain": "_chain({0}, {1})",
    "stop": "{0}",
}


#: written where it is used, if that is one place and the line stays short
_INLINE = (*_INFIX, *_CALLS, "spread", "exp", "sigmoid", "tanh", "sqrt", "abs", "log", "log1p", "expm1")
_PREFIX = ("negate", "softplus", "not", "stop")  # their text has no parentheses around an argument
_TWICE = ("and", "or")  # their text holds an argument twice
_SHORT = 36

#: outputs of the estimator that get a name of their own
_PARTS = ("z", "omega", "upsilon")


def emit(method: MethodIR, text: str = "") -> str:
    """The file's text; the comments at the head of the method's own text say where it comes from.

    Parameters stay arguments, but for those that are 0: what they multiply is left out with all that it needs.
    """
    program = lower(method, settable=True)
    order = program.reachable("coefficient")
    arguments = _arguments(method, program, order)
    parameters = {arguments[name]: _number(method.parameters[name].value) for name in arguments}
    names = _names(program, order, arguments)
    lines = _lines(program, order, names)
    out = _wrapped(program, program.outputs["coefficient"], names)
    return file_of(method, program, [*_checks(program, order), *lines], out, parameters, text)


def _names(program: Program, order: list[int], arguments: dict[str, str]) -> dict[int, str]:
    """A Python name for each step that has one; parameters first, since they are the signature's."""
    taken, names = {*OWN_NAMES, *arguments.values()}, dict[int, str]()
    parts = {program.outputs[part]: part for part in _PARTS}
    for index in order:
        step = program.steps[index]
        if step.op == "const" or (step.op == "param" and step.detail[0] not in arguments):
            names[index] = _number(float(step.detail[-1]))
        elif step.op == "param":
            names[index] = arguments[str(step.detail[0])]
        elif wanted := program.names.get(index) or (step.detail[0] if step.op == "load" else parts.get(index)):
            names[index] = _free(f"mismatched_{wanted}" if step.world == MISMATCHED else str(wanted), taken)
    return names


def _lines(program: Program, order: list[int], names: dict[int, str]) -> list[str]:
    """An assignment for each step, but for those that stand within the one that uses them; `names` learns both."""
    users: dict[int, list[int]] = {index: [] for index in order}
    for index in order:
        for argument in program.steps[index].args:
            users[argument].append(index)
    taken, lines, numbers = {*OWN_NAMES, *names.values()}, list[str](), count(1)
    for index in order:
        step = program.steps[index]
        if step.op in ("const", "param"):
            continue
        value = _value(program, step, names)
        inline = step.op in _INLINE and index not in names and len(value) <= _SHORT
        if inline and len(users[index]) == 1 and program.steps[users[index][0]].op not in _TWICE:
            open_ended = step.op in _INFIX and step.op not in DENIED
            names[index] = f"({value})" if open_ended or value[0] == "-" else value
        else:
            names[index] = names.get(index) or _free(f"v{next(numbers)}", taken)
            lines.append(f"{names[index]} = {_bare(value)}  # {step.scope.word}")
    return lines


def _bare(text: str) -> str:
    """A text without parentheses around the whole of it."""
    depth = 0
    for place, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0 and place < len(text) - 1:
            return text
    return text[1:-1] if text[:1] == "(" else text


def _arguments(method: MethodIR, program: Program, order: list[int]) -> dict[str, str]:
    """The Python name of each parameter that is used and not 0."""
    taken, steps = set(OWN_NAMES), [program.steps[index] for index in order]
    used = {step.detail[0] for step in steps if step.op == "param"}
    return {name: _free(name, taken) for name, row in method.parameters.items() if name in used and row.value != 0}


def _free(wanted: str, taken: set[str]) -> str:
    """A Python name that is not taken, and is from now on."""
    name = _safe(wanted)
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _number(value: float) -> str:
    """A number as Python reads it wherever it stands."""
    if math.isinf(value):
        return 'float("inf")' if value > 0 else 'float("-inf")'
    text = f"{value:g}" if value == float(f"{value:g}") else repr(value)
    return f"({text})" if value < 0 else text


def _safe(name: str) -> str:
    """A Python name."""
    name = name.replace(" ", "_")
    return f"{name}_" if keyword.iskeyword(name) else name


def _checks(program: Program, order: list[int]) -> list[str]:
    lines = []
    if any(program.steps[index].op in PAIRED for index in order):
        lines += ['if not bool(whole_pairs(at, batch["label"][rows]).all()):']
        lines += ['    raise ValueError("each group must be a pair: one row with label +1 and one with label -1")']
    if any(program.steps[index].world == MISMATCHED for index in order):
        lines += ['other = Layout(batch["mismatched"]["mask"], None, rows)']
    return lines


def _wrapped(program: Program, index: int, names: dict[int, str]) -> str:
    """An argument as a tensor: numbers are wrapped where torch wants tensors."""
    if program.steps[index].op in ("const", "param"):
        return f"number({_bare(names[index])})"
    return names[index]


def _value(program: Program, step: Step, names: dict[int, str]) -> str:
    at = "other" if step.world == MISMATCHED else "at"
    tensors = [_wrapped(program, argument, names) for argument in step.args]
    bare = [_bare(tensor) for tensor in tensors]
    match step.op:
        case "load":
            return _load(str(step.detail[0]), step.world)
        case "count" if step.scope <= Scope.BATCH:
            return f"number({at}.size({_scope(step.detail[0])}))"
        case "count":
            return f"{at}.children({_scope(step.detail[0])}, Scope.{step.scope.name})[1].sum(1).to(dtype)"
        case "spread":
            return _spread(program, step, tensors[0], at)
        case "reduce":
            tail = "" if step.scope > Scope.BATCH else ".reshape(())"
            more = "".join(f", [{q}]" for q in bare[1:])
            return f'reduced("{step.detail[0]}", {bare[0]}, *{_children(step, step.scope, at)}{more}){tail}'
        case "unreduce":
            parent = program.steps[step.args[1]].scope
            more = "".join(f", [{q}]" for q in bare[3:])
            return f'unreduced("{step.detail[0]}", {", ".join(bare[:3])}, *{_children(step, parent, at)}{more})'
        case "to_go" | "so_far":
            return f"discounted({bare[0]}, {bare[1]}, {at}, backward={step.op == 'so_far'})"
        case op if op in PAIRED:
            return f'{tensors[0]}[pair_rows(at, batch["label"][rows], "{step.op}")]'
        case "swapped":
            return f"{tensors[0]}[at.swapped]"
        case op if op in _INFIX:
            plain = [names[argument] for argument in step.args]
            if all(program.steps[argument].op in ("const", "param") for argument in step.args):
                plain[0] = tensors[0]
            made = f"{plain[0]} {_INFIX[op]} {plain[1]}"
            return f"({made}).to(dtype)" if op in DENIED else made
        case op:
            return _CALLS.get(op, f"torch.{op}({{0}})").format(*(tensors if op in _PREFIX else bare))


def _load(name: str, world: str) -> str:
    at, batch = ("other", 'batch["mismatched"]') if world == MISMATCHED else ("at", "batch")
    if name in ("position", "last token"):
        return f"{at}.{name.split()[0]}.to(dtype)"
    if name in LOG_PROBS:
        return f'{batch}["{name}"].detach()[rows][{at}.places].to(dtype)'
    return f'{batch}["{name}"][rows].to(dtype)'


def _spread(program: Program, step: Step, value: str, at: str) -> str:
    scope = program.steps[step.args[0]].scope
    if scope <= Scope.BATCH:
        return f"{value}.expand({at}.size(Scope.{step.scope.name}))"
    return f"{value}[{at}.parent(Scope.{step.scope.name}, Scope.{scope.name})]"


def _children(step: Step, parent: Scope, at: str) -> str:
    others = ", True" if step.others else ""
    return f"{at}.children({_scope(step.detail[1])}, Scope.{parent.name}{others})"


def _scope(word: object) -> str:
    return f"Scope.{str(word).upper()}"
