"""One optimizer step: the same gradient however its sequences are cut into processes and micro-batches.

Every process knows every sequence of the step and keeps full [S, T] buffers, so that the method is always
evaluated on the whole step; only the model runs on a part. Where a coefficient can be known from its own
micro-batch one pass is enough; else a first pass without gradient fills the log-probs of the whole step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from grolang import Batch, Method
from grolang.language.diagnostics import GroError
from grolang.runtime.examples import Ids
from grolang.runtime.policy import Policy, Tokens, Weigh
from grolang.runtime.split import Split, split


@dataclass(frozen=True)
class Sample:
    """One sequence of a step: a prompt, a completion, and what is known of them beside log-probs."""

    prompt: Ids
    completion: Ids
    group: int
    label: float = 0.0
    demonstration: float = 0.0
    finished: bool = True
    logp_sampler: tuple[float, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    greedy_scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """The sequences of a step and what does not change while it is optimized.

    `batch` holds it all but the current log-probs; its `logp_old` is None until the first update has found it.
    """

    samples: tuple[Sample, ...]
    split: Split
    batch: Batch
    crossed: tuple[tuple[Ids, Ids], ...] = ()  # prompt i with completion (i+1) mod m, where the method asks for it

    @property
    def pairs(self) -> list[tuple[Ids, Ids]]:
        return [(sample.prompt, sample.completion) for sample in self.samples]

    def remembering(self, seen: Batch) -> Step:
        """The step with these log-probs as those of the policy that it started from, if it has none yet."""
        if self.batch.logp_old is not None:
            return self
        batch = self.batch.replace(logp_old=seen.logp)
        if batch.mismatched is not None and seen.mismatched is not None:
            batch = batch.replace(mismatched=batch.mismatched.replace(logp_old=seen.mismatched.logp))
        return replace(self, batch=batch)


@dataclass
class Engine:
    """Everything that turns sequences into gradients."""

    method: Method
    accelerator: Accelerator
    policy: Any  # the Policy as accelerate wraps it
    reference: Policy | None
    pad: int
    micro_batch: int
    window: int | None = None
    say: Callable[[str], None] = print
    dtype: torch.dtype = torch.float32
    seen: Batch | None = None  # the last batch that was made for the method to evaluate

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    def cut(self, samples: Sequence[Sample]) -> Split:
        accelerator = self.accelerator
        groups = [sample.group for sample in samples]
        lengths = [len(sample.prompt) + len(sample.completion) for sample in samples]
        return split(groups, lengths, self.micro_batch, accelerator.num_processes, accelerator.process_index)

    def prepare(self, samples: Sequence[Sample]) -> Step:
        """Buffers of the step; reference log-probs and crossed pairs where the method needs them."""
        needs, method = self.method.needs, self.method
        if needs.mismatched and len(samples) < 2:
            message = f"a step of one row: `{method.name}` compares with the completion of another prompt"
            raise GroError.plain(message, help="give --batch 2 or more")
        cut = self.cut(samples)
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
        step = Step(tuple(samples), cut, batch)
        if self.reference is not None:
            logp, _ = self.log_probs(self.reference, step.pairs, cut, mask)
            step = replace(step, batch=batch.replace(logp_ref=logp))
        return self._with_crossed(step) if needs.mismatched else step

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
            crossed = crossed.replace(logp_ref=self.log_probs(self.reference, pairs, step.split, mask)[0])
        return replace(step, batch=step.batch.replace(mismatched=crossed), crossed=tuple(pairs))

    def log_probs(
        self, policy: Any, pairs: Sequence[tuple[Ids, Ids]], cut: Split, mask: Tensor, *, entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """log-probs (and entropies) [S, T] of all sequences of all processes, without gradient."""
        own, own_entropy = self._buffer(mask), self._buffer(mask)
        for part in cut.parts:
            with torch.no_grad(), self.accelerator.autocast():
                _, found, found_entropy = policy(self._tokens(pairs, part), entropy=entropy)
            place = self._place(mask, part)
            own[place] = found[: int(place.sum())].to(self.dtype)
            if found_entropy is not None:
                own_entropy[place] = found_entropy[: int(place.sum())].to(self.dtype)
        return self.gather(own), self.gather(own_entropy) if entropy else None

    def gather(self, own: Tensor) -> Tensor:
        """Rows of all processes, from buffers that are zero in the rows of the others."""
        gathered: Tensor = self.accelerator.reduce(own, "sum")
        return gathered

    def _buffer(self, mask: Tensor) -> Tensor:
        return torch.zeros(mask.shape, dtype=self.dtype, device=self.device)

    def _tokens(self, pairs: Sequence[tuple[Ids, Ids]], part: Sequence[int]) -> Tokens:
        """A turn without rows still passes through the model, with the first sequence: processes move together."""
        return Tokens.of([pairs[row] for row in part or (0,)], self.pad, self.device)

    @staticmethod
    def _place(mask: Tensor, part: Sequence[int]) -> Tensor:
        """[S, T] bool: the valid tokens of these rows."""
        rows = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
        rows[list(part)] = True
        return mask & rows[:, None]

    def backward(self, step: Step, *, entropy: bool = False) -> Batch:
        """Add the gradient of the step to the parameters; give the whole step's batch as it was evaluated.

        Where the device runs out of memory the micro-batch is halved, which changes nothing else.
        """
        while True:
            try:
                return self._backward(step, entropy)
            except torch.OutOfMemoryError:
                if self.micro_batch == 1 or self.accelerator.num_processes > 1:
                    raise GroError.plain(
                        f"out of memory with a micro-batch of {self.micro_batch}",
                        help="lower --micro-batch, --max-completion or --max-prompt",
                    ) from None
            self.policy.zero_grad()  # what a part of the step has left there
            self.micro_batch = max(1, self.micro_batch // 2)
            step = replace(step, split=self.cut(step.samples))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.say(f"out of memory: going on with a micro-batch of {self.micro_batch}")

    def _backward(self, step: Step, entropy: bool) -> Batch:
        """The scope says what must be known together. In the first update `logp_old` is `logp` itself."""
        method = self.method if step.batch.logp_old is not None else self.method.on_policy
        entropy = entropy or method.needs.entropy
        if not step.split.knows(method.needs.scope):
            return self._two_passes(step, entropy)
        return self._one_pass(self._with_crossed_now(step), method, entropy)

    def current(self, step: Step, *, entropy: bool = False) -> Batch:
        """The step's batch under the policy as it is now, without gradient."""
        step = self._with_crossed_now(step)
        entropy = entropy or self.method.needs.entropy
        logp, found = self.log_probs(self.policy, step.pairs, step.split, step.batch.mask, entropy=entropy)
        return self._filled(step, logp, found)

    def _two_passes(self, step: Step, entropy: bool) -> Batch:
        batch = self.current(step, entropy=entropy)
        known = self.method.coefficients(batch)
        for turn, part in enumerate(step.split.parts):
            self._turn(step, turn, part, known=known)
        return batch

    def _with_crossed_now(self, step: Step) -> Step:
        crossed = step.batch.mismatched
        if crossed is None:
            return step
        logp, _ = self.log_probs(self.policy, step.crossed, step.split, crossed.mask)
        old = logp if crossed.logp_old is None else crossed.logp_old
        return replace(step, batch=step.batch.replace(mismatched=crossed.replace(logp=logp, logp_old=old)))

    def _filled(self, step: Step, logp: Tensor, entropy: Tensor | None) -> Batch:
        old = logp if step.batch.logp_old is None else step.batch.logp_old
        self.seen = step.batch.replace(logp=logp, logp_old=old, entropy=entropy)
        return self.seen

    def _one_pass(self, step: Step, method: Method, entropy: bool) -> Batch:
        """Each micro-batch's coefficients from its own log-probs, the rows of the others being fillers.

        The scope says that fillers cannot matter. Where the method is not finite on them, two passes are taken.
        """
        mask = step.batch.mask
        filler = step.batch.logp_old if step.batch.logp_old is not None else step.batch.logp_ref
        logp = self._buffer(mask) if filler is None else filler.clone()
        entropies = self._buffer(mask) if entropy else None
        own = torch.zeros_like(mask)

        def current(place: Tensor, found: Tensor, found_entropy: Tensor | None) -> Batch:
            count = int(place.sum())  # 0 in a turn without rows, whatever the model said of the first sequence
            logp[place] = found[:count].to(self.dtype)
            if entropies is not None and found_entropy is not None:
                entropies[place] = found_entropy[:count].to(self.dtype)
            return self._filled(step, logp, entropies)

        try:
            found = method.coefficients(self._filled(step, logp, entropies))
        except GroError:  # the method is not finite on fillers: it must see the step as it is
            return self._two_passes(step, entropy)
        known = found if method.needs.scope == "none" else None
        for turn, part in enumerate(step.split.parts):
            place = self._place(mask, part)

            def weigh(found: Tensor, found_entropy: Tensor | None, place: Tensor = place) -> Tensor:
                coefficients = method.coefficients(current(place, found, found_entropy))[place]
                return coefficients if len(coefficients) else torch.zeros_like(found)

            current(place, *self._turn(step, turn, part, known=known, weigh=weigh, entropy=entropy))
            own |= place
        logp = self.gather(logp * own)
        return self._filled(step, logp, None if entropies is None else self.gather(entropies))

    def _turn(
        self,
        step: Step,
        turn: int,
        part: Sequence[int],
        *,
        known: Tensor | None,
        weigh: Weigh | None = None,
        entropy: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Forward and backward pass of one micro-batch, with its log-probs and entropies [N].

        Processes exchange gradients at the last turn. Coefficients carry the whole step's denominators, so
        gradients are summed: DDP's average over processes is undone.
        """
        last = turn == len(step.split.parts) - 1
        tokens = self._tokens(step.pairs, part)
        coefficients = None
        if known is not None:
            coefficients = known[self._place(step.batch.mask, part)]
            if not part:
                coefficients = torch.zeros(int(tokens.target.sum()), dtype=self.dtype, device=self.device)
        with nullcontext() if last else self.accelerator.no_sync(self.policy):
            with self.accelerator.autocast():
                loss, logp, found = self.policy(tokens, weigh if known is None else None, coefficients, entropy=entropy)
            self.accelerator.backward(loss * self.accelerator.num_processes)
        return logp, found
