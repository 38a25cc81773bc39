"""What stands around the steps of an emitted file: its docstring, its two functions, and the helpers that they use.

The helpers are the very functions that grolang runs, copied from their source without the parts that this method
does not use, so there is no second copy of the maths to drift.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import PurePath

import grolang
from grolang.compiler.program import MISMATCHED, PAIRED, Program
from grolang.language.functions import LOG_PROBS, OBSERVABLES
from grolang.language.ir import MethodIR
from grolang.language.scopes import Scope
from grolang.language.source import heading

#: names that the file uses itself
OWN_NAMES = frozenset(  # a text, since a list would take a line a word
    """batch mask dtype number rows at other whole row slot held torch F Tensor IntEnum Scope Layout cached_property
    loss coefficients pair_rows whole_pairs float dict annotations bool ValueError Iterable _chain _sign _alike
    reduced _mean _neighbours unreduced discounted""".split()  # noqa: SIM905
)

_FILE = '''"""{name}: {title}
{about}
Written by grolang {version} from {file}; depends on torch alone.

coefficients(batch) gives [S, T], the factor in front of each ∇ log π, 0 where the mask is off; loss(batch) a scalar
whose gradient in batch["logp"] is minus that, and whose value means nothing else.{settings}
A batch is a dict of tensors, with S sequences and T token slots:

{tensors}

It is a whole optimizer step, for the divisors count all of it. In another trainer, where a step fits at once:

    loss(batch).backward()

and where it is cut into micro-batches (a trainer that averages losses or gradients over P of them needs P times it):

    c = coefficients(batch)  # with `logp` of the whole step, without gradient
    for part in micro_batches:  # rows
        logp = ...  # of these rows, with gradient
        (c[part] * -logp)[batch["mask"][part]].sum().backward()

Arithmetic is float64 where `logp` is, else float32. A comment says what has one value each: token, sequence, …
"""

from __future__ import annotations

{imports}


def loss({parameters}) -> Tensor:
    """−Σ c · logp with the coefficients c, which are held fixed."""
    held = coefficients({passed})
    return -torch.where(batch["mask"], held * batch["logp"], 0).sum()


@torch.no_grad()
def coefficients({parameters}) -> Tensor:
    """[S, T]: −∂loss/∂logp."""
    mask = batch["mask"]
    dtype = torch.float64 if batch["logp"].dtype == torch.float64 else torch.float32
    rows = mask.any(1).nonzero()[:, 0]
    at = Layout(mask, batch.get("group"), rows)

    def number(x: float) -> Tensor:
        return torch.tensor(x, dtype=dtype, device=mask.device)

{steps}


{helpers}
'''

_IMPORTS = (
    ("IntEnum", "from enum import IntEnum"),
    ("cached_property", "from functools import cached_property"),
    ("Iterable", "from collections.abc import Iterable"),
)


def file_of(
    method: MethodIR, program: Program, steps: list[str], out: str, parameters: Mapping[str, str], text: str
) -> str:
    """The whole file. `steps` are the lines of `coefficients`, `out` the name of what they end in."""
    ending = ["whole = torch.zeros(mask.shape, dtype=dtype, device=mask.device)", "row, slot = at.places"]
    lines = [*steps, *ending, f"whole[rows[row], slot] = {out}", "return whole"]
    body = "\n".join(f"    {line}" for line in lines)
    if "number(" not in body:
        frame = re.sub(r"\n    def number.*?\n\n", "", _FILE, flags=re.DOTALL)
    else:
        frame = _FILE
    helpers = _helpers(program, body)
    order = program.reachable("coefficient")
    signature = [f"{name}: float = {value}" for name, value in parameters.items()]
    used = [line for word, line in _IMPORTS if re.search(rf"\b{word}\b", helpers)]
    torches = ["import torch", "from torch import Tensor"]
    torches += ["from torch.nn import functional as F"] if re.search(r"\bF\.", body + helpers) else []
    about = "".join(f"{line}\n" for line in heading(text))
    return frame.format(
        name=method.name,
        title=_quoted(method.title),
        about=f"\n{_quoted(about)}" if about else "",
        version=grolang.__version__,
        file=_quoted(PurePath(method.file.replace("\\", "/")).name),
        settings=_settings(method, parameters),
        tensors="\n".join(_tensors(method, program, order)),
        imports="\n".join([*sorted(used), "", *torches]).strip("\n"),
        parameters=_listed(["batch: dict", *(["*"] if parameters else []), *signature]),
        passed=_listed(["batch", *(f"{name}={name}" for name in parameters)], 8),
        steps=body,
        helpers=helpers,
    )


def _listed(words: list[str], indent: int = 4) -> str:
    """Arguments on one line, or on a line each where they are many."""
    line = ", ".join(words)
    if len(line) <= 90:
        return line
    start = "\n" + " " * indent
    return "".join(f"{start}{word}," for word in words) + start[:-4]


def _settings(method: MethodIR, parameters: Mapping[str, str]) -> str:
    """What is said of parameters: those that can be set, and those that are 0 and left out."""
    zero = [name for name, row in method.parameters.items() if row.value == 0]
    words = "\nBoth take the method's parameters by name." if parameters else ""
    return words + (f"\nWritten for {', '.join(f'{name} = 0' for name in zero)}, which stays so." if zero else "")


def _quoted(text: str) -> str:
    """A text as it may stand within triple quotes."""
    return text.replace("\\", "\\\\").replace('"', '\\"')


# --- the batch ---------------------------------------------------------------------------------------------------


def _tensors(method: MethodIR, program: Program, order: list[int]) -> list[str]:
    """A line for each tensor that the batch must hold: name, shape, meaning."""
    found = {"mask": ("[S, T]", "bool: completion tokens; a row that is all off is padding")}
    found["logp"] = ("[S, T]", OBSERVABLES["logp"].help)
    for index in order:
        step = program.steps[index]
        if step.scope is Scope.GROUP or step.op == "opposite" or step.others:
            found["group"] = ("[S]", "int: rows of one prompt (or pair) have the same number")
        if step.op in PAIRED:
            found["label"] = ("[S]", OBSERVABLES["label"].help)
        if step.op == "load" and step.detail[0] not in ("position", "last token"):
            name = str(step.detail[0])
            key = f'["mismatched"]["{name}"]' if step.world == MISMATCHED else name
            found[key] = ("[S, T]" if name in LOG_PROBS else "[S]", _meaning(method, name))
            if step.world == MISMATCHED:
                found['["mismatched"]["mask"]'] = ("[S, T]", "row i: the completion of another prompt, under prompt i")
    width = max(map(len, found))
    return [f"    {name:{width}}  {shape:6}  {meaning}".rstrip() for name, (shape, meaning) in found.items()]


def _meaning(method: MethodIR, name: str) -> str:
    if name in OBSERVABLES:
        return OBSERVABLES[name].help
    score = method.scores.get(name.removeprefix("greedy "))
    help = _quoted(score.help) if score else ""
    if name.startswith("greedy "):
        return f"of the greedy completion of the same prompt: {help}" if help else "of the greedy completion"
    return help


# --- helpers -----------------------------------------------------------------------------------------------------


def _helpers(program: Program, body: str) -> str:
    """The classes and functions that the body uses, in turn with what they use, cut down to that."""
    steps = [program.steps[index] for index in program.reachable("coefficient")]
    reductions = {str(step.detail[0]) for step in steps if step.op in ("reduce", "unreduce")}
    texts = _definitions("layout.py") | _definitions("execute.py") | _definitions("reductions.py")
    whole = texts.pop("Layout")
    functions = {name: _cases(text, reductions) for name, text in texts.items()}
    wanted = _reached(functions, body)
    rest = [functions[name] for name in functions if name in wanted]
    layout = _class(whole, "\n".join([body, *rest]))
    scope = _class(_definitions("scopes.py", "grolang.language")["Scope"], "")
    return "\n\n\n".join([scope, layout, *rest])


def _reached(parts: Mapping[str, str], start: str, sign: str = "") -> set[str]:
    """The parts that a text names after a sign, and those that they name."""
    found: set[str] = set()
    texts = [start]
    while texts:
        text = texts.pop()
        new = {name for name in parts if name not in found and re.search(rf"{sign}\b{name}\b", text)}
        found |= new
        texts += [parts[name] for name in new]
    return found


def _definitions(file: str, package: str = "grolang.compiler") -> dict[str, str]:
    """The top-level functions and classes of a source file, as text."""
    text = files(package).joinpath(file).read_text(encoding="utf-8")
    nodes = [node for node in ast.parse(text).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return {node.name: _lines(text, node) for node in nodes}


def _class(text: str, used_in: str) -> str:
    """A class without the methods that nothing in a text leads to."""
    (node,) = ast.parse(text).body
    assert isinstance(node, ast.ClassDef)
    methods = {part.name: part for part in node.body if isinstance(part, ast.FunctionDef)}
    texts = {name: ast.get_source_segment(text, part) or "" for name, part in methods.items()}
    wanted = _reached(texts, used_in + texts.get("__init__", ""), r"\.")
    return _without(text, [part for name, part in methods.items() if name not in wanted | {"__init__"}])


def _cases(text: str, reductions: set[str]) -> str:
    """A function without the cases of reductions that are not used, and without the case of a bug in grolang."""
    idle: list[ast.AST] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.match_case):
            words = {str(part.value) for part in ast.walk(node.pattern) if isinstance(part, ast.Constant)}
            if not words & reductions:
                idle.append(node)
    return _without(text, idle)


def _without(text: str, nodes: Iterable[ast.AST]) -> str:
    """A text without the lines of some of its nodes, and the blank lines before them."""
    lines = text.split("\n")
    for node in nodes:
        first, last = _span(node)
        for number in range(first - 1, last):
            lines[number] = "\0"
        while lines[first - 2] in ("", "\0") and first > 1:
            first -= 1
            lines[first - 1] = "\0"
    return "\n".join(line for line in lines if line != "\0")


def _lines(text: str, node: ast.stmt) -> str:
    first, last = _span(node)
    return "\n".join(text.split("\n")[first - 1 : last])


def _span(node: ast.AST) -> tuple[int, int]:
    """First and last line of a definition with its decorators, or of a case."""
    if isinstance(node, ast.match_case):
        return node.pattern.lineno, node.body[-1].end_lineno or 0
    assert isinstance(node, ast.stmt)
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(part.lineno for part in decorators)]), node.end_lineno or 0
