"""A peer's losses against methods, in numbers: equal, proportional, or different, and where first.

A verdict is made of gradients alone. What a row claims (its method, its changes) is tried, never believed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from grolang.compiler.batch import Batch
from grolang.compiler.method import Method, load
from grolang.integrations.cases import CUT, case, cases, on_policy
from grolang.integrations.peer import Loss, Peer
from grolang.language import library
from grolang.language.diagnostics import GroError
from grolang.laws.equivalence import asked


@dataclass(frozen=True)
class Comparison:
    """Two gradients on several batches.

    word: "equal"; "proportional", one positive factor for all batches; "scaled", a positive factor that depends on
    the batch; "different".
    factors: least and largest, theirs / ours, where there are any.
    first: the index of the first batch on which they are not equal; None where there is none.
    """

    word: Literal["equal", "proportional", "scaled", "different"]
    factors: tuple[float, float] = (1.0, 1.0)
    first: int | None = None


def compared(theirs: Sequence[Tensor], ours: Sequence[Tensor], tolerance: float) -> Comparison:
    """Compare gradients batch by batch; `tolerance` is relative to the largest entry of a batch."""
    pairs = [(a.double(), b.double()) for a, b in zip(theirs, ours)]
    unequal = [index for index, (a, b) in enumerate(pairs) if not close(a, b, tolerance)]
    if not unequal:
        return Comparison("equal")
    told = [(a, b) for a, b in pairs if bool(a.any()) or bool(b.any())]  # a batch of zeros tells no factor
    factors = [float((a * b).sum() / (b * b).sum()) if bool(b.any()) else 0.0 for a, b in told]
    if min(factors) <= 0 or not all(close(a, factor * b, tolerance) for factor, (a, b) in zip(factors, told)):
        return Comparison("different", first=unequal[0])
    least, largest = min(factors), max(factors)
    word: Literal["proportional", "scaled"] = "proportional" if largest - least <= tolerance * largest else "scaled"
    return Comparison(word, (least, largest), unequal[0])


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Equal up to rounding."""
    size = max(float(a.abs().max()), float(b.abs().max()), 1e-12)
    return bool((a - b).abs().max() <= tolerance * size)


@dataclass(frozen=True, eq=False)
class Difference:
    """A small batch that tells a loss from a method, and what is told there.

    part: the first part of the method whose value is another in its changed form (which equals the loss); "gradient"
    where the parts are the same (the aggregation differs), or where there is no changed form.
    theirs, ours: the entry that differs most, of that part, or of the gradients.
    """

    batch: Batch
    part: str
    theirs: float
    ours: float


@dataclass(frozen=True, eq=False)
class Finding:
    """What became of a row.

    claim: against the method of the row; None where it has none.
    first_step: the same on batches with `logp_old = logp`, for drawn completions and a method that is not equal.
    exact: against the method with the row's changes; None without any.
    equal, proportional: every built-in method of this data for which that holds, with the row's parameters.
    cut: the loss in one piece against two micro-batches; None where the rows cannot be cut.
    outside: the largest gradient on tokens that are in no completion, as a share of the largest on completions.
    """

    loss: Loss
    claim: Comparison | None
    first_step: Comparison | None
    exact: Comparison | None
    difference: Difference | None
    equal: tuple[str, ...]
    proportional: tuple[str, ...]
    cut: Comparison | None
    outside: float

    @property
    def holds(self) -> bool:
        """Whether the numbers bear out the row: its method, changed as it says, is the loss."""
        told = self.exact or self.claim
        if told is None or self.loss.beyond:
            return told is None or told.word == "different"
        return told.word != "different"


def run(peer: Peer, only: Method | None = None, containing: str = "") -> dict[str, list[Finding]]:
    """A finding for each row whose name contains a text, under the peer's headings.

    With `only`, that method is what every loss of its data is compared with.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the batches are tiny: handing them around would take most of the time
    try:
        made = {
            heading: [
                finding(peer, loss) if only is None else against(peer, loss, only)
                for loss in losses
                if containing in loss.name and (only is None or only.data == (loss.kind,))
            ]
            for heading, losses in peer.losses.items()
        }
    finally:
        torch.set_num_threads(threads)
    return {heading: found for heading, found in made.items() if found}


def finding(peer: Peer, loss: Loss) -> Finding:
    """Run a loss on every batch of its kind, and compare."""
    batches = cases(loss.kind)
    made = [loss.run(batch, 1) for batch in batches]
    theirs = [gradient.of for gradient in made]

    def compare(method: Method) -> Comparison:
        return compared(theirs, [peer.ours(method, batch) for batch in batches], peer.tolerance)

    named = load(loss.method, **loss.params) if loss.method else None
    claim = compare(named) if named else None
    exact = compare(loss.exact()) if loss.changes else None
    first_step = None
    if named and claim and claim.word != "equal" and loss.kind == "prompts":
        first_step = _first_step(peer, loss, named, batches)
    found = {method.name: compare(method).word for method in candidates(loss)}
    difference = None
    if named and claim and claim.first is not None:
        difference = _difference(peer, loss, named, batches[claim.first], theirs[claim.first])
    return Finding(
        loss,
        claim,
        first_step,
        exact,
        difference,
        tuple(name for name, word in found.items() if word == "equal"),
        tuple(name for name, word in found.items() if word == "proportional"),
        _cut(peer, loss),
        max(gradient.outside / max(float(gradient.of.abs().max()), 1e-12) for gradient in made),
    )


def against(peer: Peer, loss: Loss, method: Method) -> Finding:
    """The same for one method of the user's choice, with the row's parameters where it has them."""
    batches = cases(loss.kind)
    method = method.replace(**{name: value for name, value in loss.params.items() if name in method.params})
    made = [loss.run(batch, 1) for batch in batches]
    theirs = [gradient.of for gradient in made]
    claim = compared(theirs, [peer.ours(method, batch) for batch in batches], peer.tolerance)
    difference = None
    if claim.first is not None:
        batch = batches[claim.first]
        difference = _largest(batch, "gradient", theirs[claim.first], peer.ours(method, batch))
    equal = (method.name,) if claim.word == "equal" else ()
    return Finding(loss, claim, None, None, difference, equal, (), None, 0.0)


def candidates(loss: Loss) -> Iterator[Method]:
    """Every built-in method of this data, with the row's parameters where it has them."""
    for method in _built_in(loss.kind):
        try:
            yield method.replace(**{name: value for name, value in loss.params.items() if name in method.params})
        except GroError:  # a value that this method does not take
            continue


@cache
def _built_in(kind: str) -> tuple[Method, ...]:
    every = [load(name) for name in sorted(library.built_in())]
    return tuple(method for method in every if method.data == (kind,) and set(method.scores) <= {"correct"})


def _first_step(peer: Peer, loss: Loss, method: Method, batches: Sequence[Batch]) -> Comparison:
    fresh = [on_policy(batch) for batch in batches]
    return compared(
        [loss.run(batch, 1).of for batch in fresh], [peer.ours(method, batch) for batch in fresh], peer.tolerance
    )


def _difference(peer: Peer, loss: Loss, method: Method, batch: Batch, theirs: Tensor) -> Difference:
    if loss.changes and (told := asked(method, loss.exact()).first(batch)):
        part, ours, changed = told
        return _largest(batch, part, changed, ours)
    return _largest(batch, "gradient", theirs, peer.ours(method, batch))


def _largest(batch: Batch, part: str, theirs: Tensor, ours: Tensor) -> Difference:
    """The entry that differs most."""
    a, b = theirs.double().flatten(), ours.double().flatten()
    place = int((a - b).abs().argmax())
    return Difference(batch, part, float(a[place]), float(b[place]))


def _cut(peer: Peer, loss: Loss) -> Comparison:
    """One micro-batch against two, on several batches."""
    batches = [case(loss.kind, CUT, seed) for seed in range(1, 4)]
    halves, wholes = ([loss.run(batch, parts).of for batch in batches] for parts in (2, 1))
    return compared(halves, wholes, peer.tolerance)
