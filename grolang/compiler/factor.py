"""Whether a coefficient is s · w, with w known before the policy runs and one number s for many tokens.

Then gradients can be formed with w while a chunk of logits lives, and scaled by s once it is known: nothing is
recomputed, however many tokens s waits for. The analysis reads the program alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from grolang.compiler.program import PAIRED, Builder, Program
from grolang.compiler.verify import verified
from grolang.language.scopes import Scope


def in_pairs(program: Program) -> bool:
    """Whether a coefficient exists only where groups are pairs."""
    return any(program.steps[index].op in PAIRED for index in program.reachable("coefficient"))


def factored(program: Program, part: Scope) -> Program | None:
    """The program with the outputs `scale` and `weight`, or None where the coefficient is not seen to factor.

    coefficient = scale · weight, and 0 where weight is. `scale` has one value within each `part` (the batch, a
    group, a sequence); `weight` does not change with the current policy.
    """
    search = _Search(program, part)
    found = search.product(program.outputs["coefficient"])
    if found is None:
        return None
    build = search.build
    outputs = program.outputs | {"scale": found.scale, "weight": build.spread(found.weight, Scope.TOKEN)}
    return verified(Program(tuple(build.steps), outputs, program.names))


@dataclass(frozen=True)
class _Product:
    """scale · weight, each a step."""

    scale: int
    weight: int


class _Search:
    def __init__(self, program: Program, part: Scope) -> None:
        self.build, self.part = Builder.of(program), part
        self.known = frozenset(range(len(program.steps))) - program.current
        self.pairs = in_pairs(program)
        self.one = self.build.number(1)
        self._found: dict[int, _Product | None] = {}
        self._signs: dict[int, int | None] = {}

    def product(self, index: int) -> _Product | None:
        if index not in self._found:
            self._found[index] = self._product(index)
        return self._found[index]

    def _product(self, index: int) -> _Product | None:
        if self._constant(index):
            return _Product(self.build.unspread(index), self.one)
        if (found := self._by_parts(index)) is not None:
            return found
        return _Product(self.one, index) if index in self.known else None

    def _by_parts(self, index: int) -> _Product | None:
        build, step = self.build, self.build[index]
        match step.op:
            case "choose":
                return self._choice(*step.args)
            case "spread" | "stop" | "negate" | "to_go" | "so_far":
                inner = self.product(step.args[0])
                if inner is None or step.op in ("spread", "stop"):
                    return inner
                if step.op == "negate":
                    return _Product(build.apply("negate", inner.scale), inner.weight)
                place = build.spread(inner.weight, Scope.TOKEN, step.world)  # linear, within a completion
                moved = build.emit(step.op, [place, step.args[1]], scope=Scope.TOKEN, world=step.world)
                return _Product(inner.scale, moved)
            case "multiply" | "chain" | "divide" | "add" | "subtract":
                left, right = (self.product(argument) for argument in step.args)
                if left is None or right is None:
                    return None
                scale = build.apply(step.op, left.scale, right.scale)
                if step.op in ("add", "subtract"):
                    return _Product(scale, left.weight) if left.weight == right.weight else None
                return _Product(scale, build.apply(step.op, left.weight, right.weight))
        return None

    def _choice(self, condition: int, then: int, otherwise: int) -> _Product | None:
        """Of two products that share a factor; 0 shares both."""
        build, zero = self.build, self.build.number(0)
        one, other = self.product(then), self.product(otherwise)
        if one is None or other is None:
            return None
        if self._is_zero(then):
            scales, weights, one = (zero, other.scale), (zero, other.weight), other
        elif self._is_zero(otherwise):
            scales, weights, other = (one.scale, zero), (one.weight, zero), one
        else:
            scales, weights = (one.scale, other.scale), (one.weight, other.weight)
        if self._constant(condition) and one.weight == other.weight:
            return _Product(build.apply("choose", build.unspread(condition), *scales), one.weight)
        if condition in self.known and one.scale == other.scale:
            return _Product(one.scale, build.apply("choose", condition, *weights))
        return None

    def _is_zero(self, index: int) -> bool:
        return self.build.value(self.build.unspread(index)) == 0.0

    def _constant(self, index: int) -> bool:
        """Whether a step has one value within each part."""
        index = self.build.unspread(index)
        if self.build[index].scope <= self.part:
            return True
        return self.part is Scope.GROUP and self.pairs and self._sign(index) == 1

    def _sign(self, index: int) -> int | None:
        """1 where a value is that of the pair's other response, −1 where it is its negative, None if not known."""
        if index not in self._signs:
            self._signs[index] = self._signed(index)
        return self._signs[index]

    def _signed(self, index: int) -> int | None:
        step = self.build[index]
        if step.scope <= Scope.GROUP:
            return 1
        if step.scope > Scope.SEQUENCE:
            return None
        signs = [self._sign(argument) for argument in step.args]
        match step.op:
            case "load":
                return -1 if step.detail[0] == "label" else None
            case "count" | "reduce":
                return None
            case "add" | "subtract" | "multiply" | "min" | "max" if self._are_opposite(*step.args):
                return -1 if step.op == "subtract" else 1
            case "add" | "subtract":
                return signs[0] if signs[0] == signs[1] else None
            case "multiply" | "chain" | "divide":
                return None if None in signs else 1 if signs[0] == signs[1] else -1
            case "spread" | "stop" | "opposite" | "negate" | "tanh" | "sign":
                return signs[0]
            case "abs":
                return None if signs[0] is None else 1
        return 1 if all(sign == 1 for sign in signs) else None

    def _are_opposite(self, one: int, other: int) -> bool:
        return any(
            self.build[a].op == "opposite" and self.build[a].args[0] == b for a, b in ((one, other), (other, one))
        )
