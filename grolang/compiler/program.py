"""A program: a straight list of tensor steps, each used by later ones, and the builder that writes it.

A step's value is a tensor of its scope: one number for const and batch, [G] per group, [S] per sequence, [N] per
valid token. A step exists once, however often the method says it, and what the numbers 0 and 1 make vanish is
never written: `beta = 0` drops a penalty with all that only it needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from grolang.language.functions import FUNCTIONS
from grolang.language.scopes import Scope
from grolang.language.source import Span

#: what values are of: the batch itself, or the completions under another prompt
MAIN, MISMATCHED = "batch", "mismatched"

#: the greedy completion, a world of lowering only: `emit` writes MAIN. It is no row: its scores are the batch's own
GREEDY = "greedy"

#: steps that are defined only where every group is a pair, one label of each sign (E904 otherwise)
PAIRED = ("opposite", "chosen", "rejected")

#: what the current policy's pass gives
CURRENT = ("logp", "entropy")


@dataclass(frozen=True)
class Step:
    """One operation. `args` are earlier steps, `detail` what is known when the program is written.

    =========== ================================ =====================================================
    op          detail                           value
    =========== ================================ =====================================================
    const       (value,)                         the number
    param       (name, value)                    the parameter
    load        (name,)                          a tensor of the batch
    count       (child, parent)                  children of each parent: tokens of a sequence, …
    spread      ()                               a coarser value at each place of the step's scope
    reduce      (function, child, others)        over the children of each parent (`others`: but itself)
    unreduce    (function, child, others)        its adjoint: args are x, out, the adjoint of out[, q]
    stop        ()                               the argument, as a number
    chain       ()                               a * b, and 0 where a is 0 whatever b is
    to_go       ()                               sum over k >= t of g^(k-t) x_k; so_far: over k <= t
    opposite …  ()                               forms that pick rows of a pair
    swapped     ()                               of each comparison, the value of the one the other way round
    NAME        ()                               a row of the table of functions
    =========== ================================ =====================================================
    """

    op: str
    args: tuple[int, ...]
    detail: tuple[str | float, ...]
    scope: Scope
    world: str
    span: Span | None = field(compare=False, default=None)

    @property
    def child(self) -> Scope:
        """The scope that a count counts, or that a reduction or its adjoint runs over."""
        return Scope[str(self.detail[0 if self.op == "count" else 1]).upper()]

    @property
    def others(self) -> bool:
        """Whether a reduction or its adjoint leaves the sequence itself out."""
        return self.op in ("reduce", "unreduce") and bool(self.detail[2])


@dataclass(frozen=True)
class Program:
    """Steps in the order in which they run, and where each output stands."""

    steps: tuple[Step, ...]
    outputs: dict[str, int]
    names: dict[int, str] = field(default_factory=dict)  # steps that are a definition of the author's

    @cached_property
    def current(self) -> frozenset[int]:
        """The steps whose value changes with the current policy's log-probs or entropies."""
        found: set[int] = set()
        for index, step in enumerate(self.steps):
            loads = step.op == "load" and step.detail[0] in CURRENT and step.world == MAIN
            if loads or not found.isdisjoint(step.args):
                found.add(index)
        return frozenset(found)

    @property
    def reports(self) -> list[str]:
        """The outputs that are logged."""
        return [name for name in self.outputs if name.startswith("report ")]

    def loads(self, *outputs: str) -> set[tuple[str, str]]:
        """Name and world of each tensor that these outputs read; "" with each world that they have steps in."""
        steps = [self.steps[index] for index in self.reachable(*outputs)]
        return {(str(step.detail[0]) if step.op == "load" else "", step.world) for step in steps}

    def reachable(self, *outputs: str) -> list[int]:
        """The steps that these outputs need, in order."""
        wanted = {self.outputs[name] for name in outputs}
        for index in range(max(wanted, default=-1), -1, -1):
            if index in wanted:
                wanted.update(self.steps[index].args)
        return sorted(wanted)


class Builder:
    """Writes steps, each once, and leaves out what cannot matter.

    `settable`: parameters may get other values once the program is written, but for those that are 0.
    """

    def __init__(self, *, settable: bool = False) -> None:
        self.steps: list[Step] = []
        self.settable = settable
        self._known: dict[Step, int] = {}
        self.span: Span | None = None

    def __getitem__(self, index: int) -> Step:
        return self.steps[index]

    @classmethod
    def of(cls, program: Program) -> Builder:
        """A builder that goes on writing a program: its steps keep their numbers."""
        build = cls()
        build.steps = list(program.steps)
        build._known = {step: index for index, step in enumerate(program.steps)}
        return build

    def emit(
        self,
        op: str,
        args: Iterable[int] = (),
        detail: tuple[str | float, ...] = (),
        *,
        scope: Scope,
        world: str = MAIN,
    ) -> int:
        """A step, written unless it is there already; its index."""
        step = Step(op, tuple(args), detail, scope, MAIN if world == GREEDY else world, self.span)
        if step not in self._known:
            self._known[step] = len(self.steps)
            self.steps.append(step)
        return self._known[step]

    def number(self, value: float) -> int:
        """A written number."""
        return self.emit("const", detail=(float(value),), scope=Scope.CONST)

    def value(self, index: int) -> float | None:
        """The value of a step that is known before any batch."""
        step = self.steps[index]
        known = step.op == "const" or (step.op == "param" and (not self.settable or step.detail[-1] == 0))
        return float(step.detail[-1]) if known else None

    def load(self, name: str, scope: Scope, world: str = MAIN) -> int:
        """A tensor of the batch."""
        return self.emit("load", detail=(name,), scope=scope, world=world)

    def count(self, child: Scope, parent: Scope, world: str = MAIN) -> int:
        """How many children each parent has: N tokens of a batch, |y| of a sequence."""
        return self.emit("count", detail=(child.word,), scope=parent, world=world)

    def spread(self, index: int, scope: Scope, world: str = MAIN) -> int:
        """The value at each place of a finer scope."""
        if self.steps[index].scope >= scope:
            return index
        return self.emit("spread", [self.unspread(index)], scope=scope, world=world)

    def unspread(self, index: int) -> int:
        """The coarser value that a step only repeats, or the step itself."""
        step = self.steps[index]
        return step.args[0] if step.op == "spread" else index

    def apply(self, function: str, *args: int, world: str = MAIN) -> int:
        """A function of the table, at the finest scope of its arguments.

        What is the same at all places of a coarser one is computed once there and spread.
        """
        if (short := self._vanished(function, args)) is not None:
            return short
        scope = max((self.steps[index].scope for index in args), default=Scope.CONST)
        own = [self.unspread(index) for index in args]
        if max((self.steps[index].scope for index in own), default=scope) < scope:
            return self.spread(self.apply(function, *own, world=world), scope, world)
        places = [self._at(index, scope, world) for index in args]
        return self.emit(function, places, scope=scope, world=world if scope >= Scope.SEQUENCE else MAIN)

    def _at(self, index: int, scope: Scope, world: str) -> int:
        """Single numbers meet tensors as they are; the rest is spread."""
        own = self.steps[index].scope
        return index if own <= Scope.BATCH else self.spread(index, scope, world)

    def _vanished(self, function: str, args: tuple[int, ...]) -> int | None:
        """What a step is without being computed, where a 0 or a 1 decides it."""
        known = [self.value(index) for index in args]
        if (folded := self._folded(function, args)) is not None:
            return folded
        match function:
            case "multiply" | "chain" if 0.0 in known:
                return self.number(0)
            case "multiply" | "chain" if 1.0 in known:
                return args[1 - known.index(1.0)]
            case "chain" if -1.0 in known:
                return self.apply("negate", args[1 - known.index(-1.0)])
            case "chain" if known[0] is not None:
                return self.apply("multiply", *args)
            case "divide" if known[0] == 0.0:
                return args[0]
            case "divide" | "power" if known[1] == 1.0:
                return args[0]
            case "power" if known[1] == 0.0 or known[0] == 1.0:
                return self.number(1)
            case "add" if 0.0 in known:
                return args[1 - known.index(0.0)]
            case "subtract" if known[1] == 0.0:
                return args[0]
            case "subtract" if known[0] == 0.0:
                return self.apply("negate", args[1])
            case "subtract" if args[0] == args[1]:
                return self.number(0)
            case "add" if self._negated(args[0]) == args[1] or self._negated(args[1]) == args[0]:
                return self.number(0)
            case "divide" if args[0] == args[1] and self.steps[self.unspread(args[0])].op == "exp":
                return self.number(1)
            case "min" | "max" if args[0] == args[1]:
                return args[0]
            case "choose" if known[0] is not None:
                return args[1] if known[0] else args[2]
            case "and" if known[0] is not None:
                return args[1] if known[0] else args[0]
            case "or" if known[0] is not None:
                return args[0] if known[0] else args[1]
            case "choose" if args[1] == args[2]:
                return args[1]
            case "negate" if known[0] is not None:
                return self.number(0.0 if known[0] == 0 else -known[0])
            case "negate" if self.steps[args[0]].op == "negate":
                return self.steps[args[0]].args[0]
            case _:
                return None

    def _negated(self, index: int) -> int | None:
        """The step whose negative this is."""
        return self.steps[index].args[0] if self.steps[index].op == "negate" else None

    def _folded(self, function: str, args: tuple[int, ...]) -> int | None:
        """A function of written numbers, where it is defined. Parameters keep their names."""
        if function not in FUNCTIONS or any(self.steps[index].op != "const" for index in args):
            return None
        try:
            value = FUNCTIONS[function].number(*(float(self.steps[index].detail[0]) for index in args))
        except (ArithmeticError, ValueError):
            return None
        return self.number(value) if math.isfinite(value) else None

    def reduce(
        self,
        function: str,
        index: int,
        child: Scope,
        parent: Scope,
        *more: int,
        others: bool = False,
        world: str = MAIN,
    ) -> int:
        """Over the children of each parent."""
        if self.value(index) == 0.0 and function in ("sum", "mean") and not others:
            return index
        place = self.spread(index, child, world)
        detail = (function, child.word, "others" if others else "")
        return self.emit("reduce", [place, *more], detail, scope=parent, world=world)


def described(program: Program) -> str:
    """A program as text, a step a line, with its scope: what `grolang show --stage steps` prints."""
    shown = {index: f"%{index}" for index in range(len(program.steps))} | program.names
    lines = []
    order = program.reachable(*program.outputs)
    for index in order:
        step = program.steps[index]
        words = [str(part) if isinstance(part, str) else f"{part:g}" for part in step.detail if part != ""]
        world = " of the mismatched completions" if step.world == MISMATCHED and step.op == "load" else ""
        inner = ", ".join([*words, *(shown[arg] for arg in step.args)])
        lines.append(f"{shown[index]:>5} = {step.op}({inner}) : {step.scope.word}{world}")
    lines += [f"{name} → {shown[index]}" for name, index in program.outputs.items()]
    return "\n".join(lines)
