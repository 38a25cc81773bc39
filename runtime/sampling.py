"""Completions of prompts, token by token, or through transformers' `generate` where a model's cache is of its own kind.

A sampled token is the one whose share of [0, 1], by the softmax of logits / temperature, holds a random number. That
number is a hash of the completion's own key and the token's place, so a completion depends on nothing else: not on the
batch that it was drawn in, the process or the order (rounding of the logits apart).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from grolang.language.diagnostics import GroError
from grolang.runtime.decoding import Rows, refusal, shared_from
from grolang.runtime.examples import Ids
from grolang.runtime.prepacked import prepacked

WORTH = 0.75  # of the completions in the model at once: where fewer go on, the others leave it
GOLDEN = -0x61C8864680B583EB  # 2^64 / golden ratio, as a signed number


@dataclass(frozen=True)
class Drawn:
    """A completion up to its end (if it came to one before the limit), and the log-probs it was drawn with."""

    ids: Ids
    logp: list[float]
    finished: bool


@dataclass(frozen=True)
class Stop:
    """Texts after which a completion ends: with the token that completes one."""

    texts: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase

    def here(self, ids: Ids) -> bool:
        """Whether a text is complete within the last tokens; one of n bytes has n of them at most."""
        reach = 1 + max(len(text.encode()) for text in self.texts)
        end = str(self.tokenizer.decode(ids[-reach:], clean_up_tokenization_spaces=False))
        return any(text in end for text in self.texts)


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    From softmax(logits / temperature), of which `min_p` leaves the tokens with this share of the likeliest one's,
    `top_k` the k likeliest, and then `top_p` the fewest that have this probability together; the rest is scaled up
    to 1. That is vLLM's order. A completion ends with one of the tokens `ends`, at a `stop`, or after `limit` tokens.
    """

    ends: frozenset[int]
    limit: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop: Stop | None = None

    @property
    def truncation(self) -> LogitsProcessorList:
        """What sets the logits of the tokens that are left out to −∞."""
        found = LogitsProcessorList()
        if self.min_p:
            found.append(MinPLogitsWarper(self.min_p))
        if self.top_k:
            found.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            found.append(TopPLogitsWarper(self.top_p))
        return found


def _mix(x: Tensor) -> Tensor:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014) on int64, whose products wrap around."""
    x = (x ^ _right(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _right(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _right(x, 31)


def _right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def uniform(keys: Tensor, place: int | Tensor) -> Tensor:
    """A number in (0, 1) for each key, float64: a function of the key and the place alone; they are broadcast."""
    bits = _right(_mix(keys + (torch.as_tensor(place, device=keys.device) + 1) * GOLDEN), 11)
    return (bits.double() + 0.5) * 2.0**-53


def drawn_at(numbers: Tensor, logits: Tensor) -> Tensor:
    """The token [S, 1] at which the softmax of logits [S, V], summed up, reaches each number [S]."""
    reached = logits.softmax(-1, dtype=torch.float64).cumsum(-1)
    return torch.searchsorted(reached, numbers[:, None] * reached[:, -1:]).clamp_(max=logits.shape[1] - 1)


def choose(logits: Tensor, numbers: Tensor | None, how: Sampling, keep: bool) -> tuple[Tensor, Tensor | None]:
    """Tokens [S] from logits [S, V] by random numbers [S], greedily without; log-probs [S] where they are kept."""
    if numbers is None:
        return logits.argmax(-1), None
    scores = logits.float() / how.temperature
    scores = how.truncation(None, scores)  # type: ignore[arg-type]  # none of them looks at the tokens before
    token = drawn_at(numbers, scores)
    return token[:, 0], scores.log_softmax(-1).gather(1, token)[:, 0] if keep else None


class _Chance(LogitsProcessor):
    """Turns the greedy decoding of `generate` into sampling, and keeps log-probs where it is asked to."""

    def __init__(self, keys: Tensor, prompt: int, how: Sampling, keep: bool) -> None:
        self.keys, self.prompt, self.how, self.keep = keys, prompt, how, keep
        self.kept: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        numbers = uniform(self.keys, input_ids.shape[1] - self.prompt)
        token, logp = choose(scores, numbers, self.how, self.keep)
        if logp is not None:
            self.kept.append(logp)
        return torch.full_like(scores, -torch.inf).scatter_(1, token[:, None], 0.0)


class _Stopped(StoppingCriteria):
    """Ends the completions that came to a stop, and keeps how many tokens each has then."""

    def __init__(self, stop: Stop, prompt: int, rows: int) -> None:
        self.stop, self.prompt = stop, prompt
        self.lengths: list[int | None] = [None] * rows

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        drawn = input_ids[:, self.prompt :]
        for row, ids in enumerate(drawn.tolist()):
            if self.lengths[row] is None and self.stop.here(ids):
                self.lengths[row] = len(ids)
        done = [length is not None for length in self.lengths]
        return torch.tensor(done, device=input_ids.device)


@contextmanager
def plainly(model: PreTrainedModel) -> Iterator[None]:
    """While this holds, the model's own generation settings (top-p, penalties, …) do not alter what is drawn."""
    own = model.generation_config
    model.generation_config = _settings()
    try:
        yield
    finally:
        model.generation_config = own


def _settings(**given: Any) -> GenerationConfig:
    return GenerationConfig(**given)  # type: ignore[no-untyped-call]  # transformers has no type for it


def end_ids(model: PreTrainedModel, tokenizer_end: int) -> frozenset[int]:
    """The tokens that end a completion: the tokenizer's and those of the model's generation settings."""
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    more = own if isinstance(own, list) else [own] if isinstance(own, int) else []
    return frozenset([tokenizer_end, *more])


class Generator(Protocol):
    """What draws: a completion for each prompt, in their order; greedy without keys, else each by its own key.

    `keep_logp` asks for the log-probs of what was drawn from; an engine may give them unasked.
    """

    def __call__(
        self, prompts: Sequence[Ids], keys: Sequence[int] | None, how: Sampling, *, keep_logp: bool = False
    ) -> list[Drawn]: ...


@dataclass
class Generate:
    """The policy itself, `batch` prompts at a time: half as many where memory runs out.

    `autocast` is the dtype of the products inside the model, as where it is trained. `own` says whether sequences go
    through it by `decoding.Rows`, and `shared_from` how long prompts are that it keeps once: both are tried out before
    the first draw. Else `generate` does it.
    """

    model: PreTrainedModel
    batch: int = 256
    say: Callable[[str], None] = print
    autocast: torch.dtype | None = None
    own: bool | None = None
    shared_from: float = inf

    def __call__(
        self, prompts: Sequence[Ids], keys: Sequence[int] | None, how: Sampling, *, keep_logp: bool = False
    ) -> list[Drawn]:
        """A completion for each prompt; greedy where `keys` is None.

        Prompts are padded on the left, and those of like length go through the model together.
        """
        waiting = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        found: dict[int, Drawn] = {}
        while waiting:
            rows = waiting[: self.batch]
            chosen = None if keys is None else [keys[row] for row in rows]
            some = self._fitting([prompts[row] for row in rows], chosen, how, keep_logp)
            if some is not None:
                found |= zip(rows, some, strict=True)
                waiting = waiting[len(rows) :]
        return [found[row] for row in range(len(prompts))]

    def _fitting(
        self, prompts: list[Ids], keys: list[int] | None, how: Sampling, keep_logp: bool
    ) -> list[Drawn] | None:
        """The completions; None where memory ran out, and fewer prompts are to be tried."""
        try:
            half = torch.autocast(self.model.device.type, dtype=self.autocast, enabled=self.autocast is not None)
            with plainly(self.model), half, prepacked(self.model):
                if self.own is None:
                    refused = refusal(self.model)
                    self.own = refused is None
                    if refused is not None:
                        self.say(f"note: completions are drawn by transformers' generate: {refused}")
                    else:
                        self.shared_from = shared_from(self.model)
                if not self.own:
                    return _generated(self.model, prompts, keys, how, keep_logp)
                return _decoded(Rows(self.model, self.shared_from), prompts, keys, how, keep_logp)
        except Exception as error:  # what is out of memory has no class of its own; the rest is raised again
            if not should_reduce_batch_size(error):
                raise
            if len(prompts) == 1:
                message = "out of memory while one completion is drawn"
                raise GroError.plain(message, help="lower --max-completion or --max-prompt") from None
        self.batch = len(prompts) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.say(f"out of memory while sampling: going on with {self.batch} completions at once")
        return None


@torch.no_grad()
def _decoded(rows: Rows, prompts: list[Ids], keys: list[int] | None, how: Sampling, keep_logp: bool) -> list[Drawn]:
    """What has ended is computed no more, once there is enough of it."""
    count, device = len(prompts), rows.model.device
    logits = rows.begin(prompts, how.limit)
    ids = torch.zeros((count, how.limit), dtype=torch.long, device=device)
    logps = torch.zeros((count, how.limit), device=device)
    stops: list[int | None] = [None] * count
    ends = torch.tensor(sorted(how.ends), device=device)
    chance = None
    if keys is not None:
        chance = uniform(torch.tensor(keys, device=device)[:, None], torch.arange(how.limit, device=device))
    alive, going = torch.arange(count, device=device), torch.ones(count, dtype=torch.bool, device=device)
    for place in range(how.limit):
        numbers = None if chance is None else chance[alive, place]
        token, logp = choose(logits, numbers, how, keep_logp)
        ids[alive, place] = token
        if logp is not None:
            logps[alive, place] = logp
        going &= ~torch.isin(token, ends)
        if how.stop is not None:
            there = alive[going]
            said = zip(going.nonzero()[:, 0].tolist(), there.tolist(), ids[there, : place + 1].tolist(), strict=True)
            for at, row, drawn in said:
                if how.stop.here(drawn):
                    stops[row], going[at] = place + 1, False
        left = int(going.sum())
        if not left or place + 1 == how.limit:
            break
        if left <= WORTH * len(alive):
            stay = going.nonzero()[:, 0]
            rows.keep(stay)
            alive, token, going = alive[stay], token[stay], going[stay]
        logits = rows.extend(token)
    told = logps.tolist() if keep_logp and keys is not None else [[]] * count
    return [_cut(row, logp, how.ends, stop) for row, logp, stop in zip(ids.tolist(), told, stops, strict=True)]


@torch.no_grad()
def _generated(
    model: PreTrainedModel, prompts: list[Ids], keys: list[int] | None, how: Sampling, keep_logp: bool
) -> list[Drawn]:
    width = max(map(len, prompts))
    pad = min(how.ends)
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    attention = (torch.arange(width, device=model.device)[None] >= width - lengths[:, None]).long()
    chance = None if keys is None else _Chance(torch.tensor(keys, device=model.device), width, how, keep_logp)
    stopped = None if how.stop is None else _Stopped(how.stop, width, len(prompts))
    config = _settings(do_sample=False, max_new_tokens=how.limit, eos_token_id=sorted(how.ends), pad_token_id=pad)
    output = model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=attention,
        generation_config=config,
        logits_processor=LogitsProcessorList([chance] if chance else []),
        stopping_criteria=StoppingCriteriaList([stopped] if stopped else []),
    )
    logps = torch.stack(chance.kept, 1).tolist() if chance is not None and chance.kept else [[]] * len(prompts)
    stops = stopped.lengths if stopped is not None else [None] * len(prompts)
    return [
        _cut(row, logp, how.ends, stop)
        for row, logp, stop in zip(output[:, width:].tolist(), logps, stops, strict=True)
    ]


def _cut(ids: Ids, logp: list[float], ends: frozenset[int], stop: int | None) -> Drawn:
    """What was drawn before the padding; `stop` counts the tokens up to a stop."""
    end = next((place + 1 for place, token in enumerate(ids) if token in ends), None)
    length = min((one for one in (end, stop) if one is not None), default=None)
    return Drawn(ids[:length], logp[:length], finished=length is not None)
