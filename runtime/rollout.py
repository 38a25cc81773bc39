"""From rows to the sequences of a step: those of the data as they are, or completions drawn from the policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from accelerate import Accelerator

from grolang.runtime.data import Record
from grolang.runtime.examples import COMPLETIONS, Encoder, Example, Ids, key, one_each, seen
from grolang.runtime.forms import is_conversation
from grolang.runtime.processes import of_all, share
from grolang.runtime.sampling import Drawn, Generator, Sampling
from grolang.runtime.scoring import Scoring, counts
from grolang.runtime.sequences import Sample


@dataclass(frozen=True)
class Draw:
    """The sequences of a step, and figures of how they came about."""

    samples: list[Sample]
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sampler:
    """Draws and scores completions; each process its share of the prompts, and all of them know all results."""

    accelerator: Accelerator
    generate: Generator
    how: Sampling
    encoder: Encoder
    scoring: Scoring
    seed: int
    group: int = 1
    greedy: bool = False
    keep_logp: bool = False
    around: Callable[[], AbstractContextManager[None]] = nullcontext

    def complete(self, prompts: Sequence[Ids], keys: Sequence[int] | None) -> list[Drawn]:
        """A completion for each prompt, greedy without keys. Every process draws its share of them."""
        rows = share(self.accelerator, len(prompts))

        def own() -> list[Drawn]:
            with self.around():
                chosen = None if keys is None else keys[rows]
                return self.generate(prompts[rows], chosen, self.how, keep_logp=self.keep_logp)

        return [one for some in of_all(self.accelerator, own) for one in some]

    def text(self, record: Record, ids: Ids) -> Any:
        """A completion as TRL gives it to a reward function: text, or one message after a conversation."""
        text = str(self.encoder.tokenizer.decode(ids, skip_special_tokens=True))
        return [{"role": "assistant", "content": text}] if is_conversation(record["prompt"]) else text

    def draw(self, examples: Sequence[Example], number: int) -> Draw:
        """The groups of draw `number`: completions of each prompt, after them its demonstrations."""
        prompts = [example.prompt for example in examples for _ in range(self.group)]
        keys = [key(self.seed, "draw", number, at, k) for at in range(len(examples)) for k in range(self.group)]
        drawn = self.complete(prompts, keys)
        samples, records = [], []
        for at, example in enumerate(examples):
            for one in drawn[at * self.group : (at + 1) * self.group]:
                told = tuple(one.logp)
                samples.append(Sample(example.prompt, one.ids, at, finished=one.finished, logp_sampler=told))
                records.append(example.record)
            for shown in example.completions:
                samples.append(Sample(example.prompt, shown, at, demonstration=1.0))
                records.append(example.record)
        ids = [sample.completion for sample in samples]
        if self.greedy:  # one more for each prompt, scored with the others
            ids += [one.ids for one in self.complete([example.prompt for example in examples], None)]
            records += [example.record for example in examples]
        scored = self.scoring(records, [self.text(record, one) for record, one in zip(records, ids, strict=True)], ids)
        own, best = scored[: len(samples)], scored[len(samples) :]
        out = self.scoring.skipped([*(sample.group for sample in samples), *range(len(best))], scored)
        found = [
            replace(sample, scores=one.scores, greedy_scores=best[sample.group].scores if best else {})
            for sample, one in zip(samples, own, strict=True)
            if sample.group not in out
        ]
        return Draw(found, counts(scored))


def offline_draw(examples: Sequence[Example], kind: str, scoring: Scoring, *, whole: bool = False) -> Draw:
    """The completions of the data, each row a group; scores from the data's columns or from functions.

    With `whole` a row stays whose score failed, as 0.
    """
    records = [
        seen(example.record, column, one_each(list(example.record), kind))
        for example in examples
        for column in COMPLETIONS[kind]
    ]
    ids = [completion for example in examples for completion in example.completions]
    texts = [example.record[column] for example in examples for column in COMPLETIONS[kind]]
    scored = scoring(records, texts, ids)
    labels = [label for example in examples for label in (example.labels or (0.0,) * len(example.completions))]
    groups = [at for at, example in enumerate(examples) for _ in example.completions]
    demonstration, out = float(kind == "demonstrations"), set() if whole else scoring.skipped(groups, scored)
    recorded = [values for example in examples for values in (example.recorded or ((),) * len(example.completions))]
    found = [
        Sample(examples[at].prompt, completion, at, label, demonstration, scores=one.scores, logp_old=values)
        for at, completion, label, one, values in zip(groups, ids, labels, scored, recorded, strict=True)
        if at not in out
    ]
    return Draw(found, counts(scored))
