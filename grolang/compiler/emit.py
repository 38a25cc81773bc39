"""A method as one readable Python file that depends on torch alone: to be taken into any other trainer.

The straight line of steps becomes one assignment each; the helpers below it are the very functions that grolang
runs, copied from their source, so there is no second copy of the maths to drift.
"""

from __future__ import annotations

import ast
import keyword
import math
from importlib.resources import files

from grolang.compiler.program import MISMATCHED, Program, Step
from grolang.language.ir import MethodIR
from grolang.language.scopes import Scope

_INFIX = {
    "add": "+",
    "subtract": "-",
    "multiply": "*",
    "divide": "/",
    "power": "**",
    "less": "<",
    "less_equal": "<=",
    "greater": ">",
    "greater_equal": ">=",
    "equal": "==",
    "not_equal": "!=",
}
_TRUTHS = ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal")
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
    "chain": "_chain({0}, {1})",
    "stop": "{0}",
}
_PER_TOKEN = ("logp", "logp_old", "logp_ref", "logp_sampler", "entropy")

_HEADER = '''"""{name}: {title}

Written by grolang from {file}; depends on torch alone.

coefficients(batch) gives [S, T], the factor in front of each ∇ log π, 0 where the mask is off; loss(batch) a scalar
whose gradient in batch["logp"] is minus that. A batch is a dict of tensors: {tensors}.
S sequences, T token slots; `mask` is bool, `group` the prompt's number; a row whose mask is all off is padding.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F


def loss(batch: dict, {parameters}) -> Tensor:
    """−Σ c · logp with the coefficients c held fixed."""
    c = coefficients(batch, {passed})
    return -torch.where(batch["mask"], c * batch["logp"], 0).sum()


@torch.no_grad()
def coefficients(batch: dict, {parameters}) -> Tensor:
    """[S, T]: −∂loss/∂logp."""
    mask = batch["mask"]
    dtype = torch.float64 if batch["logp"].dtype == torch.float64 else torch.float32
    rows = mask.any(1).nonzero()[:, 0]
    at = Layout(mask, batch.get("group"), rows)
'''


def emit(method: MethodIR, program: Program) -> str:
    """The file's text."""
    order = program.reachable("coefficient")
    names, arguments = _names(method, program, order), _arguments(method)
    body = [_line(program, index, names) for index in order if program.steps[index].op not in ("const", "param")]
    out = names[program.outputs["coefficient"]]
    rows = method.parameters.items()
    parameters = ", ".join(["*", *(f"{arguments[name]}: float = {_number(row.value)}" for name, row in rows)])
    passed = ", ".join(f"{name}={name}" for name in arguments.values())
    text = _HEADER.format(
        name=method.name,
        title=method.title.replace("\\", "\\\\").replace('"', '\\"'),
        file=method.file.replace("\\", "/").rsplit("/", 1)[-1],
        tensors=", ".join(_tensors(program, order)),
        parameters=parameters if method.parameters else "",
        passed=passed,
    )
    text = text.replace("dict, )", "dict)").replace("batch, )", "batch)")
    lines = _worlds(program, order) + body
    lines += [
        f"whole = {_wrapped(program, program.outputs['coefficient'], names)}.new_zeros(mask.shape)",
        "row, slot = at.places",
        f"whole[rows[row], slot] = {out}",
        "return whole",
    ]
    return text + "".join(f"    {line}\n" for line in lines) + "\n\n" + _helpers(program, order)


def _names(method: MethodIR, program: Program, order: list[int]) -> dict[int, str]:
    """A Python name for each step; parameters first, since they are the signature's."""
    taken, names, arguments = set(_OWN_NAMES.split()), dict[int, str](), _arguments(method)
    taken |= set(arguments.values())
    for index in order:
        step = program.steps[index]
        if step.op == "const":
            names[index] = _number(float(step.detail[0]))
        elif step.op == "param":
            names[index] = arguments[str(step.detail[0])]
        else:
            wanted = program.names.get(index) or (str(step.detail[0]) if step.op == "load" else f"v{index}")
            names[index] = _free(f"mismatched_{wanted}" if step.world == MISMATCHED else wanted, taken)
    return names


#: names that the file uses itself
_OWN_NAMES = """
    batch mask dtype rows at other whole row slot c torch F Tensor IntEnum Scope Layout cached_property loss
    coefficients pair_rows float dict annotations _chain _reduced _mean _neighbours _unreduced _discounted
"""


def _arguments(method: MethodIR) -> dict[str, str]:
    """The Python name of each parameter."""
    taken = set(_OWN_NAMES.split())
    return {name: _free(name, taken) for name in method.parameters}


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


def _tensors(program: Program, order: list[int]) -> list[str]:
    """What the batch must hold."""
    found = {"mask [S, T]": None, "logp [S, T]": None}
    for index in order:
        step = program.steps[index]
        if step.scope is Scope.GROUP or step.op == "opposite" or "others" in step.detail:
            found["group [S]"] = None
        if step.op in ("opposite", "chosen", "rejected"):
            found["label [S]"] = None
        if step.op == "load" and step.detail[0] not in ("position", "last token"):
            shape = "[S, T]" if step.detail[0] in _PER_TOKEN else "[S]"
            word = "mismatched: a dict with mask and " if step.world == MISMATCHED else ""
            found[f"{word}{step.detail[0]} {shape}"] = None
    return list(found)


def _worlds(program: Program, order: list[int]) -> list[str]:
    if not any(program.steps[index].world == MISMATCHED for index in order):
        return []
    return ['other = Layout(batch["mismatched"]["mask"], None, rows)']


def _line(program: Program, index: int, names: dict[int, str]) -> str:
    step = program.steps[index]
    return f"{names[index]} = {_value(program, step, names)}  # {step.scope.word}"


def _wrapped(program: Program, index: int, names: dict[int, str]) -> str:
    """An argument as a tensor: numbers are wrapped where torch wants tensors."""
    if program.steps[index].op in ("const", "param"):
        return f"torch.tensor({names[index]}, dtype=dtype, device=mask.device)"
    return names[index]


def _value(program: Program, step: Step, names: dict[int, str]) -> str:
    at = "other" if step.world == MISMATCHED else "at"
    tensors = [_wrapped(program, argument, names) for argument in step.args]
    match step.op:
        case "load":
            return _load(str(step.detail[0]), step.world)
        case "count" if step.scope <= Scope.BATCH:
            return f"torch.tensor({at}.size({_scope(step.detail[0])}), dtype=dtype, device=mask.device)"
        case "count":
            return f"{at}.children({_scope(step.detail[0])}, Scope.{step.scope.name})[1].sum(1).to(dtype)"
        case "spread":
            return _spread(program, step, tensors[0], at)
        case "reduce":
            tail = "" if step.scope > Scope.BATCH else ".reshape(())"
            more = f"[{', '.join(tensors[1:])}]"
            return f'_reduced("{step.detail[0]}", {tensors[0]}, *{_children(step, step.scope, at)}, {more}){tail}'
        case "unreduce":
            parent = program.steps[step.args[1]].scope
            more = f"[{', '.join(tensors[3:])}]"
            first = ", ".join(tensors[:3])
            return f'_unreduced("{step.detail[0]}", {first}, *{_children(step, parent, at)}, {more})'
        case "to_go" | "so_far":
            return f"_discounted({tensors[0]}, {tensors[1]}, {at}, backward={step.op == 'so_far'})"
        case "opposite" | "chosen" | "rejected":
            return f'{tensors[0]}[pair_rows(at, batch["label"][rows], "{step.op}")]'
        case op if op in _INFIX:
            plain = [names[argument] for argument in step.args]
            if all(program.steps[argument].op in ("const", "param") for argument in step.args):
                plain[0] = tensors[0]
            made = f"{plain[0]} {_INFIX[op]} {plain[1]}"
            return f"({made}).to(dtype)" if op in _TRUTHS else made
        case op:
            return _CALLS.get(op, f"torch.{op}({{0}})").format(*tensors)


def _load(name: str, world: str) -> str:
    at, batch = ("other", 'batch["mismatched"]') if world == MISMATCHED else ("at", "batch")
    if name in ("position", "last token"):
        return f"{at}.{name.split()[0]}.to(dtype)"
    if name in _PER_TOKEN:
        return f'{batch}["{name}"].detach()[rows][{at}.places].to(dtype)'
    return f'{batch}["{name}"][rows].to(dtype)'


def _spread(program: Program, step: Step, value: str, at: str) -> str:
    scope = program.steps[step.args[0]].scope
    if scope <= Scope.BATCH:
        return f"{value}.expand({at}.size(Scope.{step.scope.name}))"
    return f"{value}[{at}.parent(Scope.{step.scope.name}, Scope.{scope.name})]"


def _children(step: Step, parent: Scope, at: str) -> str:
    others = ", True" if step.detail[2] else ""
    return f"{at}.children({_scope(step.detail[1])}, Scope.{parent.name}{others})"


def _scope(word: object) -> str:
    return f"Scope.{str(word).upper()}"


# --- helpers, copied from the sources that grolang itself runs ------------------------------------------------

_NEEDS = {
    "reduce": ("_reduced", "_mean", "_neighbours"),
    "unreduce": ("_unreduced", "_mean", "_neighbours"),
    "to_go": ("_discounted",),
    "so_far": ("_discounted",),
    "chain": ("_chain",),
    "opposite": ("pair_rows",),
    "chosen": ("pair_rows",),
    "rejected": ("pair_rows",),
}


def _helpers(program: Program, order: list[int]) -> str:
    wanted = {name for index in order for name in _NEEDS.get(program.steps[index].op, ())}
    scopes = [text for name, text in _definitions("grolang.language", "scopes.py").items() if name == "Scope"]
    layout = [text for name, text in _definitions("grolang.compiler", "layout.py").items() if name == "Layout"]
    rest = [text for name, text in _definitions("grolang.compiler", "execute.py").items() if name in wanted]
    return "\n\n\n".join([*scopes, *layout, *rest]) + "\n"


def _definitions(package: str, file: str) -> dict[str, str]:
    """The top-level functions and classes of a source file, as text."""
    text = files(package).joinpath(file).read_text(encoding="utf-8")
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = ast.get_source_segment(text, node) or ""
    return found
