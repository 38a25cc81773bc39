"""Rows as token ids: the checks that need a tokenizer, and the order in which rows are drawn."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from grolang.language.diagnostics import GroError
from grolang.runtime.data import Record, Rows, refuse
from grolang.runtime.forms import as_label, is_conversation
from grolang.runtime.scores import RESERVED

Ids = list[int]
ROUNDED = 1e-3  # above 0, what rounding makes of the log-prob of a certain token
CHUNK = 1000  # rows tokenized together while they are checked

COMPLETIONS = {"preference": ("chosen", "rejected"), "unpaired": ("completion",), "demonstrations": ("completion",)}
"""The columns that hold completions, by data kind."""

RECORDED = {"completion": "logp_old", "chosen": "chosen_logp_old", "rejected": "rejected_logp_old"}
"""Columns with the log-probs that a completion was drawn with: a list, a number for each of its tokens."""


def one_each(columns: Sequence[str], kind: str) -> list[str]:
    """The names that both responses of a pair have a column of their own for: `chosen_NAME` and `rejected_NAME`."""
    if kind != "preference":
        return []
    found = [name.removeprefix("chosen_") for name in columns if name.startswith("chosen_")]
    taken = (*RESERVED, "logp_old")
    return [name for name in found if f"rejected_{name}" in columns and name not in taken]


def seen(record: Record, column: str, names: Sequence[str]) -> Record:
    """The row as a score of the completion in `column` sees it: with `chosen_NAME` or `rejected_NAME` as NAME."""
    return {**record, **{name: record[f"{column}_{name}"] for name in names}}


@dataclass(frozen=True)
class Example:
    """One row as tokens. `completions` are chosen and rejected, the one completion, or a prompt's demonstrations."""

    number: int
    record: Record
    prompt: Ids
    completions: tuple[Ids, ...]
    labels: tuple[float, ...]
    recorded: tuple[tuple[float, ...], ...] = ()  # of each completion, or none where there are none


@dataclass(frozen=True)
class Limits:
    """In tokens. `window` is the model's; prompts past `prompt` are left out, completions end at `completion`.

    `known` are the tokens that the model has an embedding for.
    """

    window: int | None
    prompt: int | None = None
    completion: int | None = None
    known: int | None = None


@dataclass(frozen=True)
class Encoder:
    """Text to ids. Prompt and completion apart, the end-of-sequence token after every completion.

    What a chat template writes after that token, often a line end, is left out: no policy draws it. `whole` keeps it,
    as reward models have been trained on it, wherever they were.
    """

    tokenizer: PreTrainedTokenizerBase
    whole: bool = False

    @property
    def end(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def prompts(self, values: Sequence[Any]) -> list[Ids]:
        """Ids of plain or conversational prompts, the latter through the chat template, ready for an answer."""
        if len({is_conversation(value) for value in values}) > 1:
            return [self.prompts([value])[0] for value in values]
        if is_conversation(values[0]):
            return self._ids([self._template(value, answer=True) for value in values], special=False)
        # a template that appends the end token to every text would end the prompt before the completion
        found = [ids[:-1] if ids[-1:] == [self.end] else ids for ids in self._ids(values, special=True)]
        start = self.end if self.tokenizer.bos_token_id is None else int(self.tokenizer.bos_token_id)
        return [ids or [start] for ids in found]

    def completions(self, prompts: Sequence[Any], values: Sequence[Any]) -> list[Ids]:
        """Ids of the completions of these prompts, with the end token; no special token is added before."""
        if len({is_conversation(value) for value in values}) > 1:
            return [self.completions([prompt], [value])[0] for prompt, value in zip(prompts, values, strict=True)]
        texts, anywhere = values, self.whole and is_conversation(values[0])
        if is_conversation(values[0]):
            texts = [self._answer(prompt, value) for prompt, value in zip(prompts, values, strict=True)]
        every = self._ids(texts, special=False)
        return [ids if self.end in (ids if anywhere else ids[-1:]) else [*ids, self.end] for ids in every]

    def _ids(self, texts: Sequence[str], *, special: bool) -> list[Ids]:
        found: list[Ids] = self.tokenizer(list(texts), add_special_tokens=special)["input_ids"]
        return found

    def _answer(self, prompt: list[Record], completion: list[Record]) -> str:
        """What the template writes for the completion after the prompt, up to its end token unless all is wanted."""
        before = self._template(prompt, answer=True)
        whole = self._template([*prompt, *completion], answer=False)
        if not whole.startswith(before):
            raise GroError.plain(
                "the tokenizer's chat template changes the prompt when an answer follows it",
                help="give plain texts in the columns, or a chat template that only appends",
            )
        if self.whole:
            return whole[len(before) :]
        text, mark = whole[len(before) :].rstrip(), str(self.tokenizer.eos_token)
        return text.removesuffix(mark) + mark if text.endswith(mark) else text

    def _template(self, messages: list[Record], *, answer: bool) -> str:
        if not self.tokenizer.chat_template:
            raise GroError.plain(
                "the rows are conversations, and the tokenizer has no chat template",
                help="give one with --chat-template FILE, use an instruction-tuned model, or rows with plain texts",
            )
        text = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages], add_generation_prompt=answer, tokenize=False
        )
        return str(text)


@dataclass(frozen=True)
class Examples:
    """The usable rows of a file, tokenized when asked for.

    `kept` are their numbers in the file. `shown` are demonstrations by the prompt that they answer. `old`: recorded
    log-probs are read.
    """

    rows: Rows
    kind: str
    encoder: Encoder
    limits: Limits
    kept: tuple[int, ...] = ()
    shown: Mapping[str, tuple[Ids, ...]] = field(default_factory=dict)
    old: bool = False

    def __len__(self) -> int:
        return len(self.kept)

    def take(self, positions: Sequence[int]) -> list[Example]:
        """The examples at these positions among the kept rows."""
        return self._encode([self.kept[position] for position in positions])

    def part(self, kept: Sequence[int]) -> Examples:
        """The same with only these rows of the file."""
        return replace(self, kept=tuple(kept))

    def divide(self, count: int, seed: int) -> tuple[Examples, Examples]:
        """The rows apart from `count` ones, and these. A prompt that is held out is in none of the rest."""
        held = self.chosen(count, seed)
        return self.without([held]), held

    def chosen(self, count: int, seed: int) -> Examples:
        """`count` of the rows, chosen by the seed, in the order of the file."""
        apart = {self.kept[position] for position in positions(seed, len(self), 0, count)}
        return self.part([number for number in self.kept if number in apart])

    def without(self, held: Sequence[Examples]) -> Examples:
        """The rows whose prompts are none of those; GroError where no row is left."""
        prompts = {part.asked(number) for part in held for number in part.kept}
        rest = [number for number in self.kept if self.asked(number) not in prompts]
        if not rest:
            message = f"{self.rows.name}: every row has a prompt that is held out"
            raise GroError.plain(message, help="give held-out rows with --eval-data, or none with --eval-rows 0")
        return self.part(rest)

    def asked(self, number: int) -> str:
        """What a row of the file is told from others by: its prompt, or its completion where the prompt is empty."""
        record = self.rows[number]
        shown = COMPLETIONS.get(self.kind, ())[:1]
        return prompt_key(record["prompt"]) or "".join(prompt_key(record[column]) for column in shown)

    def _encode(self, numbers: Sequence[int]) -> list[Example]:
        if not numbers:
            return []
        records = [self.rows[number] for number in numbers]
        prompts = [record["prompt"] for record in records]
        heads = self.encoder.prompts(prompts)
        tails = [
            self.encoder.completions(prompts, [record[column] for record in records])
            for column in COMPLETIONS.get(self.kind, ())
        ]
        cut = self.limits.completion
        found = []
        for row, (number, record) in enumerate(zip(numbers, records, strict=True)):
            own = self.shown.get(prompt_key(record["prompt"]), ()) if self.kind == "prompts" else ()
            completions = own or tuple(tail[row][:cut] for tail in tails)
            recorded = tuple(_recorded(record, column)[:cut] for column in COMPLETIONS.get(self.kind, ()) if self.old)
            found.append(Example(number, record, heads[row], completions, _labels(self.kind, record), recorded))
        return found


@dataclass(frozen=True)
class Together:
    """Rows of several files, laid end to end."""

    parts: tuple[Examples, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def kind(self) -> str:
        return self.parts[0].kind

    def take(self, places: range) -> list[Example]:
        """The examples at these places, which follow each other."""
        found, begin = list[Example](), 0
        for part in self.parts:
            own = range(max(0, places.start - begin), min(len(part), places.stop - begin))
            found, begin = [*found, *part.take(own)], begin + len(part)
        return found


def _recorded(record: Record, column: str) -> tuple[float, ...]:
    """The log-probs that the row gives for a completion; none where it gives none, or what is no list."""
    values = record.get(RECORDED[column])
    return tuple(values) if isinstance(values, list) else ()


def _labels(kind: str, record: Record) -> tuple[float, ...]:
    if kind == "preference":
        return (1.0, -1.0)
    return (as_label(record["label"]) or 0.0,) if kind == "unpaired" else ()


def prompt_key(prompt: object) -> str:
    """One text for every prompt, plain or conversational, so that prompts can be looked up."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False)


def load_examples(rows: Rows, kind: str, encoder: Encoder, limits: Limits, *, old: bool = False) -> Examples:
    """Tokenize every row once and check its lengths, its tokens and, with `old`, its recorded log-probs.

    A row longer than the window is an error with its line; a prompt longer than `limits.prompt` is left out.
    """
    every = Examples(rows, kind, encoder, limits, tuple(range(len(rows))), old=old)
    kept: list[int] = []
    faults: dict[str, list[tuple[int, str]]] = {mend: [] for _, mend in CHECKS}
    for start in range(0, len(rows), CHUNK):
        for example in every.take(range(start, min(start + CHUNK, len(rows)))):
            if limits.prompt is not None and len(example.prompt) > limits.prompt:
                continue
            kept.append(example.number)
            for check, mend in CHECKS:
                if fault := check(example, every):
                    faults[mend].append((example.number, fault))
    for mend, some in faults.items():
        refuse(rows, some, mend)
    if not kept:
        message = f"{rows.name}: every prompt is longer than {limits.prompt} tokens"
        raise GroError.plain(message, help="raise --max-prompt")
    return every.part(kept)


def _too_long(example: Example, of: Examples) -> str | None:
    window, prompt = of.limits.window, len(example.prompt)
    if window is None:
        return None
    longest = max(map(len, example.completions), default=of.limits.completion or 1)
    if prompt >= window:
        return f"the prompt has {prompt} tokens, and the model's window is {window}"
    if prompt + longest > window:
        return f"prompt and completion have {prompt} + {longest} tokens, and the model's window is {window}"
    return None


def _unknown(example: Example, of: Examples) -> str | None:
    last, known = max(max(ids) for ids in (example.prompt, *example.completions)), of.limits.known
    if known is None or last < known:
        return None
    return f"the tokenizer gives token {last}, and the model has embeddings for tokens 0 to {known - 1}"


def _unlike(example: Example, of: Examples) -> str | None:
    """What is wrong with the recorded log-probs of a row; a row without any is fine."""
    if not of.old:
        return None
    columns = COMPLETIONS.get(of.kind, ())
    for column, ids, values in zip(columns, example.completions, example.recorded, strict=True):
        name = RECORDED[column]
        given = example.record.get(name)
        if given is None:
            continue
        if not isinstance(given, list):
            return f"`{name}` is {given!r}; expected a list of numbers, one for each token of `{column}`"
        if len(values) != len(ids):
            return f"`{name}` has {len(given)} numbers, and `{column}` has {len(ids)} tokens, the end token included"
        for at, value in enumerate(values):
            if not isinstance(value, (int, float)) or not -math.inf < value <= ROUNDED:
                return f"`{name}` has {value!r} at token {at}; a log-prob is a finite number, at most 0"
    return None


CHECKS = (
    (_too_long, "use --max-prompt to leave long prompts out, --max-completion to cut completions, or a larger model"),
    (_unknown, "use the model's own tokenizer, or give the model more embeddings (resize_token_embeddings)"),
    (_unlike, "record the log-prob of each token of this tokenizer, the end token's last, or drop the column"),
)
"""What is looked for in every row, and what mends it."""


def with_demonstrations(prompts: Sequence[Examples], demonstrations: Sequence[Examples]) -> list[Examples]:
    """Prompts whose groups the demonstrations of the same prompt join.

    Raises GroError where no demonstration answers any of the prompts: the mixture would be none.
    """
    shown: dict[str, tuple[Ids, ...]] = {}
    for part in demonstrations:
        for start in range(0, len(part), CHUNK):
            for example in part.take(range(start, min(start + CHUNK, len(part)))):
                key = prompt_key(example.record["prompt"])
                shown[key] = (*shown.get(key, ()), *example.completions)
    if not any(prompt_key(part.rows[number]["prompt"]) in shown for part in prompts for number in part.kept):
        raise GroError.plain(
            f"no demonstration of {_names(demonstrations)} has a prompt of {_names(prompts)}",
            help="a demonstration joins the group of its prompt: give both files the same prompts",
        )
    return [replace(part, shown=shown) for part in prompts]


def _names(parts: Sequence[Examples]) -> str:
    return ", ".join(part.rows.name for part in parts)


def positions(seed: int, count: int, start: int, size: int) -> list[int]:
    """The rows to draw: `size` of 0 … count − 1 from place `start` of an endless order on.

    The order is a new permutation for every epoch, a function of seed and epoch alone.
    """
    found: list[int] = []
    epoch, place = divmod(start, count)
    while len(found) < size:
        generator = torch.Generator().manual_seed(key(seed, "order", epoch))
        permutation: list[int] = torch.randperm(count, generator=generator).tolist()
        found += permutation[place : place + size - len(found)]
        epoch, place = epoch + 1, 0
    return found


def key(*parts: object) -> int:
    """A 63-bit number from whatever names a random choice: the same in every process and on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
