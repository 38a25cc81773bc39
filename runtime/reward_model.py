"""Reward models: a sequence classifier with one output, which gives a number for a prompt and its completion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging

from grolang.language.diagnostics import GroError
from grolang.runtime.examples import Encoder, Ids
from grolang.runtime.names import check_folder
from grolang.runtime.policy import load_tokenizer, window

BATCH = 16  # sequences that pass through at once


class RewardModel:
    """r(x, y) of prompts and completions, in float32, through the model's own tokenizer and chat template.

    A sequence is what `grolang reward train` trains on: prompt, completion, end token. One that is longer than the
    model's window loses the beginning of its prompt; that is said once, with how many did.
    """

    def __init__(
        self, path: str, device: torch.device | str, say: Callable[[str], None], *, trust_remote_code: bool = False
    ) -> None:
        check_folder(path, "--score")
        self.path, self.say, self.said = path, say, False
        self.model = load_classifier(path, device, trust_remote_code=trust_remote_code).requires_grad_(False)
        self.encoder = Encoder(load_tokenizer(path, trust_remote_code=trust_remote_code))
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


def load_classifier(
    path: str, device: torch.device | str, *, fresh: bool = False, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A sequence classifier with one output, from safetensors, in float32, without dropout.

    With `fresh` any model will do, and a new head is put on it; else the folder must hold a classifier.
    """
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no type for it
    head: dict[str, Any] = {"num_labels": 1} if fresh else {}
    told = logging.get_verbosity()
    if fresh:  # that the head is new needs no warning
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # nor for it
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, **head)
        if not fresh:
            _check_kind(path, config)
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            path, config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=trust_remote_code
        )
    except GroError:
        raise
    except Exception as error:  # whatever transformers raises on what a user named
        cause = " ".join(str(error).split())
        raise GroError.plain(
            f"no reward model can be loaded from {path}: {cause[:400]}",
            help="it takes a folder that `grolang reward train` saves, or another sequence classifier with one output",
        ) from error
    finally:
        logging.set_verbosity(told)
    model.to(device)  # type: ignore[arg-type]  # its `to` is decorated without a type
    nn.Module.eval(model)
    return model


def _check_kind(path: str, config: Any) -> None:
    kinds = config.architectures or ["nothing"]
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise GroError.plain(
            f"{path} holds {', '.join(kinds)}, and a reward model is a …ForSequenceClassification",
            help="`grolang reward train` makes one from pairs",
        )
    if config.num_labels != 1:
        raise GroError.plain(f"{path} has {config.num_labels} outputs, and a reward model has one")
