"""From rows to the sequences of a step: those of the data as they are, or completions drawn from the policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedModel

from grolang.runtime.data import Record, is_conversation
from grolang.runtime.examples import COMPLETIONS, Encoder, Example, Ids, key
from grolang.runtime.sampling import Drawn, draw, end_ids
from grolang.runtime.scores import Scorer
from grolang.runtime.step import Sample


@dataclass(frozen=True)
class Sampler:
    """Draws and scores completions; each process its share of the prompts, and all of them know all results."""

    accelerator: Accelerator
    model: PreTrainedModel
    encoder: Encoder
    scorers: tuple[Scorer, ...]
    seed: int
    temperature: float
    limit: int
    group: int = 1
    greedy: bool = False
    keep_logp: bool = False
    around: Callable[[], AbstractContextManager[None]] = nullcontext

    def complete(self, prompts: Sequence[Ids], keys: Sequence[int] | None) -> list[Drawn]:
        """A completion for each prompt, greedy without keys. Every process draws its share of them."""
        share = self._share(len(prompts))
        with self.around():
            own = draw(
                self.model,
                [prompts[row] for row in share],
                None if keys is None else [keys[row] for row in share],
                ends=end_ids(self.model, self.encoder.end),
                limit=self.limit,
                temperature=self.temperature,
                keep_logp=self.keep_logp,
            )
        return self._all(own)

    def score(self, records: Sequence[Record], texts: Sequence[Any], ids: Sequence[Ids]) -> list[dict[str, float]]:
        """Every score of every completion; each process calls the score functions with its share."""
        rows = self._share(len(records))
        own: list[dict[str, float]] = [{} for _ in rows]
        for scorer in self.scorers if own else ():
            some = [records[row] for row in rows], [texts[row] for row in rows], [ids[row] for row in rows]
            for found, value in zip(own, scorer(*some), strict=True):
                found[scorer.name] = value
        return self._all(own)

    def text(self, record: Record, ids: Ids) -> Any:
        """A completion as TRL gives it to a reward function: text, or one message after a conversation."""
        text = str(self.encoder.tokenizer.decode(ids, skip_special_tokens=True))
        return [{"role": "assistant", "content": text}] if is_conversation(record["prompt"]) else text

    def group_samples(self, examples: Sequence[Example], number: int) -> list[Sample]:
        """The groups of draw `number`: completions of each prompt, after them its demonstrations."""
        prompts = [example.prompt for example in examples for _ in range(self.group)]
        keys = [key(self.seed, "draw", number, at, k) for at in range(len(examples)) for k in range(self.group)]
        drawn = self.complete(prompts, keys)
        ends = end_ids(self.model, self.encoder.end)
        samples, records = [], []
        for at, example in enumerate(examples):
            for one in drawn[at * self.group : (at + 1) * self.group]:
                ended = one.ids[-1] in ends
                samples.append(Sample(example.prompt, one.ids, at, finished=ended, logp_sampler=tuple(one.logp)))
                records.append(example.record)
            for shown in example.completions:
                samples.append(Sample(example.prompt, shown, at, demonstration=1.0))
                records.append(example.record)
        ids = [sample.completion for sample in samples]
        texts = [self.text(record, one) for record, one in zip(records, ids, strict=True)]
        scores = self.score(records, texts, ids)
        greedy = self._greedy(examples) if self.greedy else [{} for _ in examples]
        return [
            replace(sample, scores=found, greedy_scores=greedy[sample.group])
            for sample, found in zip(samples, scores, strict=True)
        ]

    def _greedy(self, examples: Sequence[Example]) -> list[dict[str, float]]:
        """Scores of each prompt's greedy completion."""
        ids = [one.ids for one in self.complete([example.prompt for example in examples], None)]
        records = [example.record for example in examples]
        return self.score(records, [self.text(record, one) for record, one in zip(records, ids, strict=True)], ids)

    def _share(self, count: int) -> range:
        processes, process = self.accelerator.num_processes, self.accelerator.process_index
        return range(count * process // processes, count * (process + 1) // processes)

    def _all(self, own: list[Any]) -> list[Any]:
        gathered: list[Any] = gather_object(own) if self.accelerator.num_processes > 1 else own
        return gathered


def offline_samples(examples: Sequence[Example], kind: str, scorers: Sequence[Scorer]) -> list[Sample]:
    """The completions of the data, each row a group; scores from the data's columns or from functions."""
    records = [example.record for example in examples for _ in example.completions]
    ids = [completion for example in examples for completion in example.completions]
    texts = [example.record[column] for example in examples for column in COMPLETIONS[kind]]
    scores: list[Mapping[str, float]] = [{} for _ in ids]
    for scorer in scorers:
        values = scorer(records, texts, ids)
        scores = [{**found, scorer.name: value} for found, value in zip(scores, values, strict=True)]
    labels = [label for example in examples for label in (example.labels or (0.0,) * len(example.completions))]
    groups = [at for at, example in enumerate(examples) for _ in example.completions]
    demonstration = float(kind == "demonstrations")
    return [
        Sample(examples[at].prompt, completion, at, label, demonstration, scores=found)
        for at, completion, label, found in zip(groups, ids, labels, scores, strict=True)
    ]
