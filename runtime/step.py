"""One optimizer step: the same gradient however its sequences are cut into processes and micro-batches.

Every process knows every sequence of the step and keeps full [S, T] buffers, so that the method is always
evaluated on the whole step; only the model runs on a part. Where a coefficient can be known from its own
micro-batch one pass is enough; else a first pass without gradient fills the log-probs of the whole step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

from grolang import Batch, Method
from grolang.compiler.forming import Forming
from grolang.compiler.fused import Head, Pass
from grolang.language.diagnostics import GroError
from grolang.runtime.policy import Form, Tokens, given
from grolang.runtime.processes import anywhere
from grolang.runtime.reference import Store
from grolang.runtime.sequences import Pair, Sample, Step
from grolang.runtime.split import Split, split

T = TypeVar("T")


@dataclass
class Engine:
    """Everything that turns sequences into gradients.

    `autocast` is the dtype of the products inside the models, `dtype` that of the method's arithmetic. Coefficients
    are multiplied by `scale` on their way into the backward pass, and with them the gradients. Where the policy is
    `sharded`, processes exchange weights and gradients within each pass, so that they move together.
    """

    method: Method
    accelerator: Accelerator
    policy: Any  # the Policy, or what shards it
    reference: Any  # the same of the reference, or None
    pad: int
    micro_batch: int
    window: int | None = None
    sharded: bool = False
    kernels: bool = False  # Triton's, where the passes can take them
    every: bool = False  # whether also what cannot matter is run: what is kept for later steps may matter there
    say: Callable[[str], None] = print
    dtype: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    scale: float = 1.0
    known: Store | None = None  # log-probs under the reference, where the data stays the same
    apart: bool = False  # whether log-probs are always found first: the one pass took memory that is not there
    seen: Batch | None = None  # the last batch that was made for the method to evaluate

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    def cut(
        self, pairs: Sequence[Pair], groups: Sequence[int] | None = None, rows: Sequence[int] | None = None
    ) -> Split:
        """The micro-batches of this process, of these rows; without groups each sequence is one of its own.

        Where the policy is sharded every process has as many, and one at least.
        """
        accelerator = self.accelerator
        rows = range(len(pairs)) if rows is None else rows
        groups = rows if groups is None else [groups[row] for row in rows]
        lengths = [sum(map(len, pairs[row])) for row in rows]
        cut = split(groups, lengths, self.micro_batch, accelerator.num_processes, accelerator.process_index)
        parts = tuple(tuple(rows[at] for at in part) for part in cut.parts if part or self.sharded)
        return replace(cut, parts=(parts or ((),)) if self.sharded else parts)

    def prepare(self, samples: Sequence[Sample]) -> Step:
        """Buffers of the step; reference log-probs and crossed pairs where the method needs them."""
        needs, method = self.method.needs, self.method
        if needs.mismatched and len(samples) < 2:
            message = f"a step of one row: `{method.name}` compares with the completion of another prompt"
            raise GroError.plain(message, help="give --batch 2 or more")
        mask = self._mask([len(sample.completion) for sample in samples])

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
            batch = batch.replace(logp_sampler=self._sampler(samples, mask))
        step = Step(tuple(samples), batch, self._dead(batch))
        if self.reference is not None:
            step = replace(step, batch=batch.replace(logp_ref=self._of_reference(step)))
        if any(sample.logp_old for sample in samples):
            step = replace(step, batch=step.batch.replace(logp_old=self._recorded(step)))
        return self._with_crossed(step) if needs.mismatched else step

    def _recorded(self, step: Step) -> Tensor:
        """`logp_old` where sequences bring theirs; the others' is that of the policy as it is now."""
        found, rows = self._buffer(step.batch.mask), [row for row in step.alive if not step.samples[row].logp_old]
        if rows:
            found, _ = self.log_probs(self.policy, step.pairs, step.batch.mask, step.groups, rows)
        for row, sample in enumerate(step.samples):
            values = torch.tensor(sample.logp_old, dtype=self.dtype)
            found[row, : len(values)] = values.to(self.device)
        return step.filled(found)

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
        are the same bits whether a run has computed them itself or found them on the disk.
        """
        store = None if any(step.dead) else self.known
        known = None if store is None else store.get(step.pairs, self._buffer(step.batch.mask))
        if known is not None:
            return known
        logp, _ = self.log_probs(self.reference, step.pairs, step.batch.mask, step.groups, step.alive)
        found = step.filled(logp)
        if store is None:
            return found
        store.put(step.pairs, found)
        kept = store.get(step.pairs, found)
        assert kept is not None  # all of them are there now
        return kept

    def _mask(self, lengths: Sequence[int]) -> Tensor:
        """[S, T] bool: the first lengths[s] slots of row s."""
        count = torch.tensor(lengths, device=self.device)[:, None]
        return torch.arange(max(lengths), device=self.device)[None] < count

    def _sampler(self, samples: Sequence[Sample], mask: Tensor) -> Tensor:
        """What the sampler said of each token; a demonstration was given, not drawn: probability 1."""
        found = torch.zeros(mask.shape, dtype=self.dtype, device=self.device)
        for row, sample in enumerate(samples):
            found[row, : len(sample.logp_sampler)] = torch.tensor(sample.logp_sampler, dtype=self.dtype)
        return found

    def _with_crossed(self, step: Step) -> Step:
        """A crossed completion that would leave the model's window is cut there."""
        pairs = []
        for row, sample in enumerate(step.samples):
            other = step.samples[(row + 1) % len(step.samples)].completion
            room = None if self.window is None else max(1, self.window - len(sample.prompt))
            pairs.append((sample.prompt, other[:room]))
        mask = self._mask([len(completion) for _, completion in pairs])
        crossed = Batch(mask=mask, group=step.batch.group)
        if self.reference is not None:
            crossed = crossed.replace(logp_ref=self.log_probs(self.reference, pairs, mask, step.groups)[0])
        return replace(step, batch=step.batch.replace(mismatched=crossed), crossed=tuple(pairs))

    def log_probs(
        self,
        policy: Any,
        pairs: Sequence[Pair],
        mask: Tensor,
        groups: Sequence[int] | None = None,
        rows: Sequence[int] | None = None,
        *,
        entropy: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """log-probs (and entropies) [S, T] of these sequences (all) of all processes, without gradient; 0 elsewhere.

        Cut as the backward pass is, so that a policy that is its reference has its log-probs to the last bit.
        """

        def own() -> tuple[Tensor, Tensor]:
            logp, spread = self._buffer(mask), self._buffer(mask)
            for part in self.cut(pairs, groups, rows).parts:
                with torch.no_grad(), self._autocast():
                    _, found, found_entropy = policy(self._tokens(pairs, part), entropy=entropy)
                place = self._place(mask, part)
                logp[place] = found[: int(place.sum())].to(self.dtype)
                if found_entropy is not None:
                    spread[place] = found_entropy[: int(place.sum())].to(self.dtype)
            return logp, spread

        logp, spread = self._fitting(lambda: self._alone(own))
        return self.gather(logp), self.gather(spread) if entropy else None

    def gather(self, own: Tensor) -> Tensor:
        """Rows of all processes, from buffers that are zero in the rows of the others."""
        gathered: Tensor = self.accelerator.reduce(own, "sum")
        return gathered

    def _fitting(self, work: Callable[[], T]) -> T:
        """`work`, with half the micro-batch as often as the device runs out of memory, which changes nothing else."""
        while True:
            try:
                return work()
            except torch.OutOfMemoryError:
                if self.micro_batch == 1:
                    message = "out of memory with a micro-batch of 1"
                    raise GroError.plain(message, help="lower --max-completion or --max-prompt") from None
            self._cleared()
            self.micro_batch //= 2
            self.say(f"out of memory: going on with a micro-batch of {self.micro_batch}")

    def _cleared(self) -> None:
        """Let go of what a part of the step has left."""
        self.policy.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _alone(self, work: Callable[[], T]) -> T:
        """`work` in which no process waits for another. Where one runs out of memory all of them say so."""
        short, found = False, None
        try:
            found = work()
        except Exception as error:  # what is out of memory has no class of its own; the rest is raised again
            if not _out_of_memory(error):
                raise
            if self.sharded and self.accelerator.num_processes > 1:  # the others wait for this one in the midst of it
                message = f"out of memory with a micro-batch of {self.micro_batch}"
                raise GroError.plain(message, help="lower --micro-batch") from None
            short = True
        if anywhere(self.accelerator, short):
            raise torch.OutOfMemoryError
        assert found is not None
        return found

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)

    def _buffer(self, mask: Tensor) -> Tensor:
        return torch.zeros(mask.shape, dtype=self.dtype, device=self.device)

    def _tokens(self, pairs: Sequence[Pair], part: Sequence[int]) -> Tokens:
        """A turn without rows still passes through a sharded model, with the first sequence."""
        return Tokens.of([pairs[row] for row in part or (0,)], self.pad, self.device)

    @staticmethod
    def _place(mask: Tensor, part: Sequence[int]) -> Tensor:
        """[S, T] bool: the valid tokens of these rows."""
        rows = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
        rows[list(part)] = True
        return mask & rows[:, None]

    def backward(self, step: Step, *, entropy: bool = False) -> Batch:
        """Add the gradient of the step to the parameters; give the whole step's batch as it was evaluated.

        The scope says what must be known together. In the first update `logp_old` is `logp` itself.
        """
        self.seen = None
        method = self.method if step.batch.logp_old is not None else self.method.on_policy
        batch = self._fitting(lambda: self._gradient(step, method, entropy or method.needs.entropy))
        for parameter in self.policy.parameters():
            if parameter.requires_grad and parameter.grad is None:  # nothing was run, here at least
                parameter.grad = torch.zeros_like(parameter)
        if self.accelerator.num_processes > 1 and not self.sharded:
            add_up(self.policy.parameters())
        return batch

    def _gradient(self, step: Step, method: Method, entropy: bool) -> Batch:
        """This process's part of the gradient."""
        if not self.apart and self.cut(step.pairs, step.groups, step.alive).knows(method.needs.scope):
            crossed = self._with_crossed_now(step)
            cut = self.cut(step.pairs, step.groups, step.alive)  # a finer one where that ran out of memory
            batch = self._one_pass(crossed, cut, method, entropy) if cut.knows(method.needs.scope) else None
            if batch is not None:
                return batch
            self._cleared()
        batch = self.current(step, entropy=entropy)
        mask, known = step.batch.mask, self.method.coefficients(batch)
        parts = [list(part) for part in self.cut(step.pairs, step.groups, step.alive).parts]

        def turns() -> bool:
            for part in parts:
                form = given(known[part][mask[part]] if part else None, kernels=self.kernels)
                self._turn(step, part, form)
            return True

        self._alone(turns)
        return batch

    def current(self, step: Step, *, entropy: bool = False) -> Batch:
        """The step's batch under the policy as it is now, without gradient."""
        step = self._with_crossed_now(step)
        entropy = entropy or self.method.needs.entropy
        mask = step.batch.mask
        logp, found = self.log_probs(self.policy, step.pairs, mask, step.groups, step.alive, entropy=entropy)
        return self._filled(step, logp, found)

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
            forming = Forming(method, step.batch, entropy=entropy)
        except GroError:
            return None
        number = torch.zeros(mask.shape, dtype=torch.long, device=self.device)
        number[mask] = torch.arange(int(mask.sum()), device=self.device)
        own, beyond = torch.zeros_like(mask), False

        def turns() -> bool:
            finite = True
            for part in cut.parts:
                rows = sorted(part, key=lambda row: groups[row])  # what a coefficient waits for stands together
                at = number[rows][mask[rows]]
                own[rows] = mask[rows]

                def form(hidden: Tensor, head: Head, targets: Tensor, budget: int | None, at: Tensor = at) -> Pass:
                    nonlocal finite, beyond
                    if len(at):
                        try:
                            made = forming.form(at, hidden, head, targets, budget=budget, kernels=self.kernels)
                            finite = finite and bool(torch.isfinite(made.coefficients).all())
                            return made
                        except GroError:  # other processes do not know of it yet
                            finite = False
                        except Exception as error:  # looked at, and raised again
                            beyond = _out_of_memory(error) and forming.beyond(at, hidden, head, budget)
                            raise
                    return given(None)(hidden, head, targets, budget)

                self._turn(step, rows, form)
            return finite

        try:
            if anywhere(self.accelerator, not self._alone(turns)):
                return None
        except torch.OutOfMemoryError:
            if not anywhere(self.accelerator, beyond):
                raise
            self.apart = True
            self.say("out of memory: going on with log-probs first, then the gradient")
            return None
        logp, spread = self._buffer(mask), self._buffer(mask)
        logp[mask] = forming.logp
        if forming.entropy is not None:
            spread[mask] = forming.entropy
        return self._filled(step, self.gather(logp * own), self.gather(spread * own) if entropy else None)

    def _turn(self, step: Step, part: Sequence[int], form: Form) -> None:
        """Forward and backward pass of one micro-batch."""
        scale = self.scale * (self.accelerator.num_processes if self.sharded else 1)  # which averages over processes
        with self._autocast():
            loss, _, _ = self.policy(self._tokens(step.pairs, part), form)
        (loss * scale).backward()


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or bool(should_reduce_batch_size(error))


def add_up(parameters: Iterable[torch.nn.Parameter]) -> None:
    """The sum over processes of each parameter's gradient, in place.

    A sum and no average: coefficients carry the denominators of the whole step.
    """
    waiting = []
    for parameter in parameters:
        if parameter.grad is not None:
            waiting.append(torch.distributed.all_reduce(parameter.grad, async_op=True))
    for work in waiting:
        work.wait()
