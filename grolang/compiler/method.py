"""The public face of a method: load it, ask what it needs, evaluate it on a batch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from grolang.compiler.batch import PER_TOKEN, Batch
from grolang.compiler.blame import NotFinite, not_finite, supplier
from grolang.compiler.dead import live_tokens
from grolang.compiler.execute import Run
from grolang.compiler.fused import attach
from grolang.compiler.lowering import lower
from grolang.compiler.needs import Needs, needs
from grolang.compiler.on_policy import on_policy
from grolang.compiler.program import CURRENT, MAIN, MISMATCHED, Program
from grolang.compiler.schedule import Schedule, schedule
from grolang.language import library
from grolang.language.checker import check
from grolang.language.ir import MethodIR, ScoreRow
from grolang.language.parameters import bound
from grolang.language.source import Source

_PARTS = ("reward", "advantage", "measure", "z", "omega", "upsilon", "credit")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A method on a batch.

    coefficients: [S, T], the factor in front of each ∇ log π, 0 where the mask is off.
    loss: scalar, −Σ score coefficient · logp + penalty; its gradient in `batch.logp` is −coefficients.
    reports: each `report`, its mean over the batch; none where every row is padding.
    parts: reward, advantage, measure, z, omega, upsilon, credit; [S, T] each, 0 where the mask is off.
    implicit_reward: [S], alpha · label · measure, for data with labels and a measure of its own.
    """

    coefficients: Tensor
    loss: Tensor
    reports: dict[str, float]
    parts: dict[str, Tensor]
    implicit_reward: Tensor | None


@dataclass(frozen=True, eq=False, repr=False)
class Method:
    """A checked method with its parameters set."""

    ir: MethodIR
    sources: Mapping[str, Source]
    drawn_now: bool = False

    def __repr__(self) -> str:
        words = [self.name, " + ".join(self.data), *(f"{name}={value:g}" for name, value in self.params.items())]
        return f"Method({', '.join(words)})"

    @property
    def name(self) -> str:
        """What stands after `method` in its file."""
        return self.ir.name

    @property
    def title(self) -> str:
        """Its title, blank where it has none."""
        return self.ir.title

    @property
    def path(self) -> str:
        """Where its file is; for a built-in method its file's name."""
        return self.ir.file

    @property
    def text(self) -> str:
        """The text of its file."""
        return self.sources[self.ir.file].text

    @property
    def data(self) -> tuple[str, ...]:
        """The kinds of data that it learns from: preference, unpaired, prompts, demonstrations."""
        return self.ir.data

    @property
    def group(self) -> int:
        """Completions drawn for each prompt."""
        return self.ir.group or 1

    @property
    def params(self) -> dict[str, float]:
        """Its hyper-parameters with the values that they are set to."""
        return {name: row.value for name, row in self.ir.parameters.items()}

    @property
    def scores(self) -> dict[str, ScoreRow]:
        """The numbers per completion that it is given from outside, by name."""
        return self.ir.scores

    @cached_property
    def program(self) -> Program:
        """The tensor steps that compute it."""
        return on_policy(lower(self.ir)) if self.drawn_now else lower(self.ir)

    @cached_property
    def on_policy(self) -> Method:
        """The method in the first update after a draw, where `logp_old` is `logp`: the same numbers, fewer needs.

        Its coefficients are those of the method on `batch.replace(logp_old=batch.logp)`; `batch.logp_old` is not
        read. A probability ratio is 1 then, so that the coefficients of PPO are known before the policy runs.
        """
        return dataclasses.replace(self, drawn_now=True)

    @cached_property
    def schedule(self) -> Schedule:
        """How its gradient is formed from hidden states."""
        return schedule(self.program)

    @cached_property
    def needs(self) -> Needs:
        """The models and passes it takes, and how much of a step must be there before a coefficient is known."""
        return needs(self.program, tuple(self.ir.scores))

    def replace(self, /, **params: float) -> Method:
        """The same method with other parameter values; a wrong name or value is a GroError."""
        return dataclasses.replace(self, ir=bound(self.ir, params))

    def coefficients(self, batch: Batch) -> Tensor:
        """[S, T]: −∂loss/∂logp, 0 where the mask is off.

        Raises GroError where the batch lacks a tensor that the method uses (it says which, and what supplies it),
        and where a coefficient is not finite (it says which expression made it so).
        """
        return self._coefficients(self._run(batch))

    def dead(self, batch: Batch) -> Tensor:
        """[S] bool: sequences that no pass of the policy is needed for, since they cannot matter.

        Their coefficients are 0 whatever the policy says, and neither another coefficient nor the penalty's value
        nor a report (or implicit reward) depends on their log-probs. `logp` and `entropy` count as not known yet, and
        so does each tensor [S, T] that the batch lacks; padding is not dead.
        """
        parts = {MAIN: batch, MISMATCHED: batch.mismatched or Batch(mask=batch.mask)}

        def unknown(name: str, world: str) -> bool:
            return name in CURRENT or (name in PER_TOKEN and getattr(parts[world], name) is None)

        def filled(part: Batch, world: str) -> Batch:
            filler = torch.full(part.mask.shape, -1.0, dtype=batch.dtype, device=batch.mask.device)
            return part.replace(**{name: filler for name in PER_TOKEN if unknown(name, world)})

        run = self._run(filled(batch, MAIN).replace(mismatched=filled(parts[MISMATCHED], MISMATCHED)))
        if not run.layout.rows.numel():
            return torch.zeros_like(batch.mask[:, 0])
        shown = (name for name in (*self.program.reports, "implicit_reward") if name in self.program.outputs)
        live = live_tokens(run, unknown, tuple(shown))
        return batch.mask.any(1) & ~run.to_slots(live).any(1)

    def loss(self, batch: Batch) -> Tensor:
        """A scalar whose gradient in `batch.logp` is −coefficients: −Σ score coefficient · logp + penalty."""
        run = self._run(batch)
        return self._loss(run, self._coefficients(run))

    def evaluate(self, batch: Batch) -> Evaluation:
        """Coefficients, loss, reports and parts in one go."""
        run = self._run(batch)
        coefficients = self._coefficients(run)
        loss = self._loss(run, coefficients)
        if not run.layout.rows.numel():
            return Evaluation(coefficients, loss, {}, {}, None)
        reports = self.program.reports
        known = self.program.loads("coefficient", "penalty", *reports) | {("logp", MAIN)}
        there = [name for name in self.program.outputs if self.program.loads(name) <= known]  # nothing is run for show
        parts = {name: run.per_slot(name) for name in _PARTS if name in there}
        implicit = run.to_rows(run("implicit_reward")[0]) if "implicit_reward" in there else None
        values = {name.removeprefix("report "): float(run(name)[0]) for name in reports}
        return Evaluation(coefficients, loss, values, parts, implicit)

    def _run(self, batch: Batch) -> Run:
        return Run(self.program, batch, self.name)

    def _coefficients(self, run: Run) -> Tensor:
        if not run.layout.rows.numel():
            return torch.zeros(run.batch.mask.shape, dtype=run.dtype, device=run.device)
        (value,) = run("coefficient")
        if not bool(torch.isfinite(value).all()):
            raise not_finite(run, "coefficient", self.sources)
        return run.to_slots(value)

    def _loss(self, run: Run, coefficients: Tensor) -> Tensor:
        logp = run.batch.logp
        if logp is None:
            raise run.missing("logp")
        if not run.layout.rows.numel():
            return attach(torch.zeros((), dtype=run.dtype, device=run.device), (logp,), (-coefficients,))
        score, penalty = run("score_coefficient", "penalty")
        row, slot = run.layout.places
        now = logp.detach()[run.layout.rows[row], slot].to(run.dtype)
        if not bool(torch.isfinite(now).all()):
            place = int((~torch.isfinite(now)).nonzero()[0, 0])
            message = f"`logp` is {float(now[place]):g} in row {int(run.layout.rows[row[place]])}"
            raise NotFinite.plain(message, help=supplier("logp"), code="E902")
        if not bool(torch.isfinite(penalty)):
            raise not_finite(run, "penalty", self.sources)
        return attach(penalty - (score * now).sum(), (logp,), (-coefficients,))


def load(name_or_path: str | os.PathLike[str], /, **params: float) -> Method:
    """A method from a `.gro` file or from the built-in ones, with parameters set.

    >>> load("dpo", beta=0.2).params
    {'beta': 0.2}

    Raises GroError with every error of the file, or for a parameter that it does not have.
    """
    return from_source(library.find(name_or_path), **params)


def from_source(source: Source, /, **params: float) -> Method:
    """The same from a text."""
    checked = check(source)
    return Method(bound(checked.unwrap(), params), dict(checked.sources))
