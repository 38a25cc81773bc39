"""A law as two programs whose coefficients must agree, tried on batches until one tells them apart."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import hypothesis
import torch
from hypothesis import strategies as st
from torch import Tensor

from grolang.compiler.batch import Batch
from grolang.compiler.execute import Run
from grolang.compiler.lowering import Lowering, estimator
from grolang.compiler.method import Method
from grolang.compiler.program import Builder, Program
from grolang.compiler.verify import verified
from grolang.language import library
from grolang.language.checker import check
from grolang.language.declarations import room_to_nest
from grolang.language.diagnostics import GroError
from grolang.language.ir import Expr, Law, MethodIR
from grolang.language.parameters import bound
from grolang.language.scopes import Scope
from grolang.language.source import Source
from grolang.laws.smaller import smaller
from grolang.laws.strategies import batches

#: agreement of two coefficients, relative to the largest of the batch: sums of a few float64 terms
TOLERANCE = 1e-9

#: seconds that are spent on making a counterexample smaller
SHRINKING = 4.0

_COMPARED = ("reward", "advantage", "upsilon", "measure", "z", "omega", "credit", "penalty")


@dataclass(frozen=True, eq=False)
class Counterexample:
    """A batch on which two sides differ: both coefficient tensors [S, T], and the first part that differs."""

    batch: Batch
    left: Tensor
    right: Tensor
    part: str = ""
    reads: frozenset[str] = frozenset()  # the tensors that the two sides use


@dataclass(frozen=True, eq=False)
class Verdict:
    """What became of a claim: "proved" (for every batch, proof.py), "held" on `tried` batches, or "failed"."""

    law: str
    outcome: str
    tried: int = 0
    counterexample: Counterexample | None = None
    error: str = ""
    claim: str = ""  # in a few words
    note: str = ""  # what else was found out about a failed one

    @property
    def good(self) -> bool:
        """Whether the claim was proved or held."""
        return self.outcome in ("proved", "held")


@dataclass(frozen=True, eq=False)
class Pair:
    """Two coefficients in one program: outputs `left` and `right`, and the parts of both where there are any."""

    program: Program
    methods: tuple[MethodIR, ...]
    proportional: bool = False
    name: str = ""
    group: int | None = None  # the size of every group of `batches`, where it is to be one

    @property
    def reads(self) -> frozenset[str]:
        """The tensors of a batch that the two coefficients use."""
        return frozenset(name for name, _ in self.program.loads("left", "right"))

    @property
    def smallest(self) -> int:
        """Rows that a group has at least, for both to have a value."""
        return smallest_group(self.program)

    def batches(self) -> st.SearchStrategy[Batch]:
        """Those that both methods accept."""
        if self.group is not None:
            return batches(*self.methods, smallest_group=self.group, largest_group=self.group)
        return batches(*self.methods, smallest_group=self.smallest)

    def tensors(self, batch: Batch, seed: int = 0) -> tuple[Tensor, Tensor, str]:
        """Both coefficients on a batch, and the first part whose values differ."""
        run = Run(self.program, batch, self.name, Arbitrary(seed))
        return run.per_slot("left"), run.per_slot("right"), self._first(run)

    def first(self, batch: Batch) -> tuple[str, Tensor, Tensor] | None:
        """The first part whose values differ on a batch, with both of its values [S, T]; None where none does."""
        run = Run(self.program, batch, self.name, Arbitrary(0))
        part = self._first(run)
        if not part:
            return None
        return part, run.per_slot(f"left {part}"), run.per_slot(f"right {part}")

    def _first(self, run: Run) -> str:
        for part in _COMPARED:
            if f"left {part}" in self.program.outputs and f"right {part}" in self.program.outputs:
                a, b = run(f"left {part}", f"right {part}")
                if a.shape != b.shape or not agree(a, b):
                    return part
        return ""

    def comparable(self, left: Tensor, right: Tensor) -> bool:
        """Whether a batch says anything: where a side is not finite it does not."""
        return bool((torch.isfinite(left) & torch.isfinite(right)).all())

    def agree(self, left: Tensor, right: Tensor) -> bool:
        """Equal, up to a positive factor where that is the claim."""
        if not self.proportional:
            return agree(left, right)
        place = int(right.abs().flatten().argmax()) if right.numel() else 0
        a, b = left.flatten()[place], right.flatten()[place]
        if b == 0:
            return agree(left, right)
        return bool(a / b > 0) and agree(left, right * (a / b))


class Compared(Protocol):
    """Two coefficient tensors that should agree on every batch of a strategy; `tensors` may raise GroError."""

    @property
    def name(self) -> str: ...
    @property
    def methods(self) -> tuple[MethodIR, ...]: ...
    @property
    def reads(self) -> frozenset[str]: ...
    @property
    def smallest(self) -> int: ...
    def batches(self) -> st.SearchStrategy[Batch]: ...
    def tensors(self, batch: Batch, seed: int = 0) -> tuple[Tensor, Tensor, str]: ...
    def comparable(self, left: Tensor, right: Tensor) -> bool: ...
    def agree(self, left: Tensor, right: Tensor) -> bool: ...


def smallest_group(program: Program) -> int:
    """Sequences that a group has at least, for the program to have a value."""
    return 2 if any(step.others for step in program.steps) else 1


def agree(left: Tensor, right: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Equal to `tolerance` of the largest entry."""
    size = max(float(left.abs().max()), float(right.abs().max()), 1e-3) if left.numel() else 1.0
    return bool(((left - right).abs() <= tolerance * size).all())


@dataclass(frozen=True)
class Arbitrary:
    """The values of `any(scope)`: drawn once per place in a law, the same wherever that place is read."""

    seed: int

    def __call__(self, name: str, size: int) -> Tensor:
        generator = torch.Generator().manual_seed(
            self.seed + sum(ord(char) * 31**k for k, char in enumerate(name)) % 2**31
        )
        return torch.randint(-8, 9, (size,), generator=generator).double() / 4


def pair_of(law: Law, method: Method) -> Pair:
    """The two sides of a law; a parameter that neither method has is a GroError."""
    if law.claim == "loss":
        return _loss_pair(law, method.ir)
    if law.claim == "invariant":
        left = _Side(method.ir, {})
        return paired(left, _Side(method.ir, law.exchanges), method.ir, name=law.name)
    assert law.method is not None
    return claimed(law, method, other_method(law.method, method))


def claimed(law: Law, method: Method, other: MethodIR) -> Pair:
    """The two sides of `equals` or `proportional to`, with the law's parameters and exchanges on both."""
    settings = law.settings
    _known(settings, (method.ir, other), law.name)
    left, right = (_Side(_set(ir, settings), law.exchanges) for ir in (method.ir, other))
    return paired(left, right, method.ir, proportional=law.claim == "proportional", name=law.name)


def other_method(name: str, of: Method) -> MethodIR:
    """The method that a law names: a file in the same folder, else a built-in one."""
    if name == of.name:
        return of.ir
    source: Source | None = library.sibling(name, of.sources[of.ir.file])
    if source is None:
        raise GroError.plain(f"there is no method `{name}`", help=f"put `{name}.gro` into the same folder", code="E601")
    return check(source).unwrap()


def _known(settings: Mapping[str, float], methods: tuple[MethodIR, ...], law: str) -> None:
    for name in settings:
        if not any(name in method.parameters for method in methods):
            names = " and ".join(f"`{method.name}`" for method in methods)
            raise GroError.plain(f"law `{law}`: neither of {names} has a parameter `{name}`", code="E208")


def _set(method: MethodIR, settings: Mapping[str, float]) -> MethodIR:
    """Each side takes the parameters that it has."""
    return bound(method, {name: value for name, value in settings.items() if name in method.parameters})


@dataclass(frozen=True)
class _Side:
    method: MethodIR
    exchanges: Mapping[str, Expr] = field(default_factory=dict)


def paired(left: _Side, right: _Side, owner: MethodIR, *, proportional: bool = False, name: str = "") -> Pair:
    """Two methods in one program. `owner` is the method in whose words the exchanges are written."""
    build = Builder()
    reader = Lowering(owner, build)
    outputs: dict[str, int] = {}
    for word, side in (("left", left), ("right", right)):
        low = Lowering(side.method, build, side.exchanges, reader)
        with room_to_nest():
            parts = estimator(low)
        outputs |= {f"{word} {part}": index for part, index in parts.items()}
        outputs[word] = parts["coefficient"]
    return Pair(verified(Program(tuple(build.steps), outputs)), (left.method, right.method), proportional, name)


def _loss_pair(law: Law, method: MethodIR) -> Pair:
    build = Builder()
    low = Lowering(method, build)
    assert law.body is not None
    with room_to_nest():
        left = estimator(low)["coefficient"]
        _, right = low.total(law.body, law.steps)
    outputs = {"left": left, "right": build.spread(right, Scope.TOKEN)}
    return Pair(verified(Program(tuple(build.steps), outputs)), (method,), name=law.name)


def search(pair: Compared, *, examples: int, seed: int) -> Verdict:
    """Try batches; a small one that tells the two sides apart, if there is one."""
    found: list[tuple[Batch, int]] = []
    broken: list[Exception] = []
    tried, first = 0, math.inf

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        print_blob=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        verbosity=hypothesis.Verbosity.quiet,
    )
    @hypothesis.given(pair.batches(), st.integers(0, 9))
    def trial(batch: Batch, draw: int) -> None:
        nonlocal tried, first
        if time.monotonic() - first > SHRINKING:
            raise _Enough
        try:
            left, right, _ = pair.tensors(batch, draw)
        except Exception as error:  # told at once, as it is: a smaller batch would not say more
            broken.append(error)
            raise _Enough from error
        hypothesis.assume(pair.comparable(left, right))
        tried += 1
        if not pair.agree(left, right):
            found.append((batch, draw))
            first = min(first, time.monotonic())
            raise _Different

    try:
        trial()
    except (_Different, _Enough):
        if not found:
            raise broken[0] from None
        return Verdict(pair.name, "failed", tried, _smallest(pair, *found[-1]))
    except hypothesis.errors.Unsatisfiable:
        return Verdict(pair.name, "failed", tried, error="no batch gave finite coefficients on both sides")
    return Verdict(pair.name, "held", tried)


def _smallest(pair: Compared, batch: Batch, draw: int) -> Counterexample:
    """What Hypothesis had found by then, made smaller still."""

    def fails(batch: Batch) -> bool:
        try:
            left, right, _ = pair.tensors(batch, draw)
        except Exception:  # a group of one, a shape that a loss cannot take: no batch of these two
            return False
        return pair.comparable(left, right) and not pair.agree(left, right)

    pairs = any("preference" in method.data for method in pair.methods)
    batch = smaller(batch, fails, pair.reads, pairs=pairs, group=pair.smallest)
    return Counterexample(batch, *pair.tensors(batch, draw), pair.reads)


class _Different(Exception):
    pass


class _Enough(BaseException):
    """The smallest that was found by now is told. No Exception, so that Hypothesis does not take it for another."""
