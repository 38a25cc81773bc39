"""One optimizer step: the same gradient however its sequences are cut into processes and micro-batches.

Every process knows every sequence of the step and keeps full [S, T] buffers, so that the method is always
evaluated on the whole step; only the model runs on a part. Where a coefficient can be known from its own
micro-batch one pass is enough; else a first pass without gradient fills the log-probs of the whole step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from grolang import Batch, Method
from grolang.compiler.forming import Forming
from grolang.compiler.fused import Head, Pass
from grolang.language.diagnostics import GroError
from grolang.runtime.passes import Passes, out_of_memory
from grolang.runtime.policy import given
from grolang.runtime.processes import add_up, anywhere
from grolang.runtime.reference import Store
from grolang.runtime.sequences import Sample, Step, mask_of
from grolang.runtime.split import Split


@dataclass(kw_only=True)
class Engine(Passes):
    """Everything that turns sequences into gradients."""

    method: Method
    reference: Any  # as the policy, or None
    window: int | None = None
    kernels: bool = False  # Triton's, where the passes can take them
    every: bool = False  # whether also what cannot matter is run: what is kept for later steps may matter there
    known: Store | None = None  # log-probs under the reference, where the data stays the same
    apart: bool = False  # whether log-probs are always found first: the one pass took memory that is not there
    seen: Batch | None = None  # the last batch that was made for the method to evaluate

    def prepare(self, samples: Sequence[Sample]) -> Step:
        """Buffers of the step; reference log-probs and crossed pairs where the method needs them."""
        needs, method = self.method.needs, self.method
        if needs.mismatched and len(samples) < 2:
            message = f"a step of one row: `{method.name}` compares with the completion of another prompt"
            raise GroError.plain(message, help="give --batch 2 or more")
        mask = mask_of([len(sample.completion) for sample in samples], self.device)

        def numbers(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=self.dtype, device=self.device)

        batch = Batch(
            mask=mask,
            group=torch.tensor([sample.group for sample in samples], device=self.device),
            label=numbers([sample.label for sample in samples]),
            demonstration=numbers([sample.demonstration for sample in samples]),
            scores={name: numbers([sample.scores[name] for sample in samples]) for name in method.scores},
        )
        if needs.greedy:
            greedy = {name: numbers([sample.greedy_scores[name] for sample in samples]) for name in method.scores}
            batch = batch.replace(greedy_scores=greedy)
        if needs.sampler and all(sample.logp_sampler or sample.demonstration for sample in samples):
            # a demonstration was given, not drawn: its tokens have probability 1
            told = self._put([sample.logp_sampler for sample in samples], self.buffer(mask))
            batch = batch.replace(logp_sampler=told)
        step = Step(tuple(samples), batch, self._dead(batch))
        if self.reference is not None:
            step = replace(step, batch=batch.replace(logp_ref=self._of_reference(step)))
        if any(sample.logp_old for sample in samples):
            step = replace(step, batch=step.batch.replace(logp_old=self._recorded(step)))
        return self._with_crossed(step) if needs.mismatched else step

    def _recorded(self, step: Step) -> Tensor:
        """`logp_old` where sequences bring theirs; the others' is that of the policy as it is now."""
        found, rows = self.buffer(step.batch.mask), [row for row in step.alive if not step.samples[row].logp_old]
        if rows:
            found, _ = self.log_probs(self.policy, step.pairs, step.batch.mask, step.groups, rows)
        return step.filled(self._put([sample.logp_old for sample in step.samples], found))

    def _put(self, rows: Sequence[Sequence[float]], into: Tensor) -> Tensor:
        """`into` [S, T] with these numbers at the beginning of each row."""
        for row, values in enumerate(rows):
            into[row, : len(values)] = torch.tensor(values, dtype=self.dtype)
        return into

    def _dead(self, batch: Batch) -> tuple[bool, ...]:
        """Sequences that need not be run."""
        if self.every:
            return ()
        try:
            return tuple(self.method.dead(batch).tolist())
        except GroError:  # whoever needs what is wrong says so
            return ()

    def _of_reference(self, step: Step) -> Tensor:
        """Log-probs [S, T] under the reference model: those that are known from before, if all of them are.

        Of a step in which only some are known, as where an epoch begins in its midst, these stay as they were: so they
        are the same bits whether a run has computed them itself or found them on the disk. Computing them takes every
        process, of which those on another machine may have found no file.
        """
        store = None if any(step.dead) else self.known
        if store is not None:
            known = store.get(step.pairs, self.buffer(step.batch.mask))
            if not anywhere(self.accelerator, known is None) and known is not None:
                return known
        logp, _ = self.log_probs(self.reference, step.pairs, step.batch.mask, step.groups, step.alive)
        found = step.filled(logp)
        if store is None:
            return found
        store.put(step.pairs, found)
        kept = store.get(step.pairs, found)
        assert kept is not None  # all of them are there now
        return kept

    def _with_crossed(self, step: Step) -> Step:
        """A crossed completion that would leave the model's window is cut there."""
        pairs = []
        for row, sample in enumerate(step.samples):
            other = step.samples[(row + 1) % len(step.samples)].completion
            room = None if self.window is None else max(1, self.window - len(sample.prompt))
            pairs.append((sample.prompt, other[:room]))
        mask = mask_of([len(completion) for _, completion in pairs], self.device)
        crossed = Batch(mask=mask, group=step.batch.group)
        if self.reference is not None:
            crossed = crossed.replace(logp_ref=self.log_probs(self.reference, pairs, mask, step.groups)[0])
        return replace(step, batch=step.batch.replace(mismatched=crossed), crossed=tuple(pairs))

    def backward(self, step: Step, *, entropy: bool = False) -> Batch:
        """Add the gradient of the step to the parameters; give the whole step's batch as it was evaluated.

        The scope says what must be known together. In the first update `logp_old` is `logp` itself.
        """
        self.seen = None
        method = self.method if step.batch.logp_old is not None else self.method.on_policy
        batch = self.fitting(lambda: self._gradient(step, method, entropy or method.needs.entropy))
        add_up(self.policy.parameters(), 1 if self.sharded else self.accelerator.num_processes)
        return batch

    def _gradient(self, step: Step, method: Method, entropy: bool) -> Batch:
        """This process's part of the gradient."""
        if not self.apart and self._cut(step).knows(method.needs.scope):
            crossed = self._with_crossed_now(step)
            cut = self._cut(step)  # a finer one where that ran out of memory
            batch = self._one_pass(crossed, cut, method, entropy) if cut.knows(method.needs.scope) else None
            if batch is not None:
                return batch
            self.clear()
        batch = self.current(step, entropy=entropy)
        mask, known = step.batch.mask, self.method.coefficients(batch)

        def turns() -> bool:
            for part in map(list, self._cut(step).parts):
                form = given(known[part][mask[part]] if part else None, kernels=self.kernels)
                self.turn(step, part, form)
            return True

        self.alone(turns)
        return batch

    def _cut(self, step: Step) -> Split:
        return self.cut(step.pairs, step.groups, step.alive)

    def current(self, step: Step, *, entropy: bool = False) -> Batch:
        """The step's batch under the policy as it is now, without gradient."""
        step = self._with_crossed_now(step)
        entropy = entropy or self.method.needs.entropy
        pairs, mask = step.pairs, step.batch.mask
        return self._filled(step, *self.log_probs(self.policy, pairs, mask, step.groups, step.alive, entropy=entropy))

    def _with_crossed_now(self, step: Step) -> Step:
        crossed = step.batch.mismatched
        if crossed is None:
            return step
        logp, _ = self.log_probs(self.policy, step.crossed, crossed.mask, step.groups)
        old = logp if crossed.logp_old is None else crossed.logp_old
        return replace(step, batch=step.batch.replace(mismatched=crossed.replace(logp=logp, logp_old=old)))

    def _filled(self, step: Step, logp: Tensor, entropy: Tensor | None) -> Batch:
        logp = step.filled(logp)
        old = logp if step.batch.logp_old is None else step.batch.logp_old
        self.seen = step.batch.replace(logp=logp, logp_old=old, entropy=entropy)
        return self.seen

    def _one_pass(self, step: Step, cut: Split, method: Method, entropy: bool) -> Batch | None:
        """Each micro-batch by the method's schedule, on its own log-probs; fillers stand for those of the others.

        The scope says that fillers cannot matter. None where a coefficient is not finite, be it for a filler: the
        method must see the step as it is; None too where a unit that one tile does not hold has found no memory for
        what it streams through: with coefficients that are known beforehand it needs none.
        """
        mask, groups = step.batch.mask, step.groups
        try:
            attempt = _Attempt(Forming(method, step.batch, entropy=entropy), self.kernels)
        except GroError:
            return None
        number, own = torch.zeros(mask.shape, dtype=torch.long, device=self.device), torch.zeros_like(mask)
        number[mask] = torch.arange(int(mask.sum()), device=self.device)

        def turns() -> bool:
            for part in cut.parts:
                rows = sorted(part, key=lambda row: groups[row])  # what a coefficient waits for stands together
                own[rows] = mask[rows]
                self.turn(step, rows, partial(attempt.form, number[rows][mask[rows]]))
            return attempt.finite

        try:
            if anywhere(self.accelerator, not self.alone(turns)):
                return None
        except torch.OutOfMemoryError:
            if not anywhere(self.accelerator, attempt.beyond):
                raise
            self.apart = True
            self.say("out of memory: going on with log-probs first, then the gradient")
            return None
        forming, logp, spread = attempt.forming, self.buffer(mask), self.buffer(mask)
        logp[mask] = forming.logp
        if forming.entropy is not None:
            spread[mask] = forming.entropy
        return self._filled(step, self.gather(logp * own), self.gather(spread * own) if entropy else None)


@dataclass
class _Attempt:
    """The one pass of a step, and whether it could be made: what fails in one process is not known in the others."""

    forming: Forming
    kernels: bool
    finite: bool = True  # every coefficient so far
    beyond: bool = False  # whether the memory that ran out is that of one unit, which no smaller micro-batch mends

    def form(self, at: Tensor, hidden: Tensor, head: Head, targets: Tensor, budget: int | None) -> Pass:
        """The pass of the tokens numbered `at` [N]; where there are none, or it fails, one of gradient 0."""
        if len(at):
            try:
                made = self.forming.form(at, hidden, head, targets, budget=budget, kernels=self.kernels)
                self.finite = self.finite and bool(torch.isfinite(made.coefficients).all())
                return made
            except GroError:
                self.finite = False
            except Exception as error:  # looked at, and raised again
                self.beyond = out_of_memory(error) and self.forming.beyond(at, hidden, head, budget)
                raise
        return given(None)(hidden, head, targets, budget)
