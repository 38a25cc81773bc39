"""Completions of prompts, through transformers' `generate`.

A sampled token is the argmax of logits / temperature + Gumbel noise, which is a draw from the softmax. The
noise is a hash of the completion's own key and the token's place, so a completion depends on nothing else: not
on the batch that it was drawn in, the process or the order (rounding of the logits apart).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from grolang.runtime.examples import Ids

GOLDEN = -0x61C8864680B583EB  # 2^64 / golden ratio, as a signed number


@dataclass(frozen=True)
class Drawn:
    """A completion up to its end token (if it came to one), and the log-probs it was drawn with."""

    ids: Ids
    logp: list[float]


def _mix(x: Tensor) -> Tensor:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014) on int64, whose products wrap around."""
    x = (x ^ _right(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _right(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _right(x, 31)


def _right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def gumbel(keys: Tensor, place: int, width: int) -> Tensor:
    """Standard Gumbel noise, float64 [S, width]: a function of each key [S], the place and the column alone."""
    rows = _mix(keys + torch.full_like(keys, place + 1) * GOLDEN)[:, None]
    bits = _right(_mix(rows + torch.arange(1, width + 1, device=keys.device) * GOLDEN), 11)
    uniform = (bits.double() + 0.5) * 2.0**-53
    return -torch.log(-torch.log(uniform))


class _Noise(LogitsProcessor):
    """Turns greedy decoding into sampling, and keeps the log-prob of what is chosen where it is asked to."""

    def __init__(self, keys: Tensor, prompt: int, temperature: float, keep: bool) -> None:
        self.keys, self.prompt, self.temperature = keys, prompt, temperature
        self.kept: list[Tensor] | None = [] if keep else None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.float() / self.temperature
        noisy = scores + gumbel(self.keys, input_ids.shape[1] - self.prompt, scores.shape[1]).to(scores.dtype)
        if self.kept is not None:
            self.kept.append(scores.log_softmax(-1).gather(1, noisy.argmax(-1, keepdim=True))[:, 0])
        return noisy


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
    return GenerationConfig(**given)  # type: ignore[no-untyped-call]


def end_ids(model: PreTrainedModel, tokenizer_end: int) -> frozenset[int]:
    """The tokens that end a completion: the tokenizer's and those of the model's generation settings."""
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    more = own if isinstance(own, list) else [own] if isinstance(own, int) else []
    return frozenset([tokenizer_end, *more])


@torch.no_grad()
def draw(
    model: PreTrainedModel,
    prompts: Sequence[Ids],
    keys: Sequence[int] | None,
    *,
    ends: frozenset[int],
    limit: int,
    temperature: float = 1.0,
    batch: int = 256,
    keep_logp: bool = False,
) -> list[Drawn]:
    """One completion of at most `limit` tokens for each prompt; greedy where `keys` is None.

    Prompts are padded on the left and go through the model `batch` at a time, those of like length together.
    """
    by_length = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    found: dict[int, Drawn] = {}
    with plainly(model):
        for start in range(0, len(by_length), batch):
            rows = by_length[start : start + batch]
            chosen = None if keys is None else [keys[row] for row in rows]
            some = _draw_batch(model, [prompts[row] for row in rows], chosen, ends, limit, temperature, keep_logp)
            found |= zip(rows, some, strict=True)
    return [found[row] for row in range(len(prompts))]


def _draw_batch(
    model: PreTrainedModel,
    prompts: list[Ids],
    keys: list[int] | None,
    ends: frozenset[int],
    limit: int,
    temperature: float,
    keep_logp: bool,
) -> list[Drawn]:
    width = max(map(len, prompts))
    pad = min(ends)
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    attention = (torch.arange(width, device=model.device)[None] >= width - lengths[:, None]).long()
    noise = None
    if keys is not None:
        noise = _Noise(torch.tensor(keys, device=model.device), width, temperature, keep_logp)
    config = _settings(do_sample=False, max_new_tokens=limit, eos_token_id=sorted(ends), pad_token_id=pad)
    output = model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=attention,
        generation_config=config,
        logits_processor=LogitsProcessorList([noise] if noise else []),
    )
    logps = torch.stack(noise.kept, 1).tolist() if noise is not None and noise.kept else [[]] * len(prompts)
    return [_cut(row, logp, ends) for row, logp in zip(output[:, width:].tolist(), logps, strict=True)]


def _cut(ids: Ids, logp: list[float], ends: frozenset[int]) -> Drawn:
    stop = next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))
    return Drawn(ids[:stop], logp[:stop])
