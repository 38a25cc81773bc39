"""Reward models: a sequence classifier with one output, which gives a number for a prompt and its completion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from grolang.runtime.examples import Encoder, Ids
from grolang.runtime.models import load_classifier, load_tokenizer, window
from grolang.runtime.names import check_folder

BATCH = 16  # sequences that pass through at once


class RewardModel:
    """r(x, y) of prompts and completions, in float32, through the model's own tokenizer and chat template.

    A sequence is what `grolang reward train` and TRL train on: prompt, completion, end token, and what the template
    writes after it. One that is longer than the model's window loses the beginning of its prompt; that is said once,
    with how many did.
    """

    def __init__(
        self, path: str, device: torch.device | str, say: Callable[[str], None], *, trust_remote_code: bool = False
    ) -> None:
        check_folder(path, "--score")
        self.path, self.say, self.said = path, say, False
        self.model = load_classifier(path, device, trust_remote_code=trust_remote_code).requires_grad_(False)
        self.encoder = Encoder(load_tokenizer(path, trust_remote_code=trust_remote_code), whole=True)
        self.model.config.pad_token_id = pad_of(self.encoder)
        self.window = window(self.model)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        heads, tails = self.encoder.prompts(prompts), self.encoder.completions(prompts, completions)
        sequences = [head + tail for head, tail in zip(heads, tails, strict=True)]
        cut = sum(1 for ids in sequences if self.window is not None and len(ids) > self.window)
        if cut and not self.said:
            self.said = True
            what = f"{cut} of {len(sequences)} sequences lose the beginning of their prompt"
            self.say(f"the reward model {self.path} reads {self.window} tokens: {what}")
        order = sorted(range(len(sequences)), key=lambda row: len(sequences[row]))  # like lengths, against padding
        found: dict[int, float] = {}
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            values = rewards(self.model, [sequences[row] for row in rows], self.window)
            found |= zip(rows, values.tolist(), strict=True)
        return [found[row] for row in range(len(sequences))]


def rewards(model: Any, sequences: Sequence[Ids], longest: int | None) -> Tensor:
    """[s] float32: the model's output for each sequence, of which the last `longest` tokens are read."""
    kept = [ids if longest is None else ids[-longest:] for ids in sequences]
    width = max(map(len, kept))
    ids, attention = torch.full((len(kept), width), 0), torch.zeros((len(kept), width), dtype=torch.long)
    ids += int(model.config.pad_token_id)
    for row, one in enumerate(kept):
        ids[row, : len(one)] = torch.tensor(one)
        attention[row, : len(one)] = 1
    logits: Tensor = model(input_ids=ids.to(model.device), attention_mask=attention.to(model.device)).logits
    return logits[:, 0].float()


def pad_of(encoder: Encoder) -> int:
    """The id of padding: transformers' classifiers read the last token that is another one."""
    found = encoder.tokenizer.pad_token_id
    return encoder.end if found is None else int(found)
