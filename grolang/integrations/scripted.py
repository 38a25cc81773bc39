"""A Llama that gives each token the log-prob that a batch says, so that a trainer's own code can be run on a batch.

Only the decoder's layers are replaced: the hidden states are logits and the head is the identity, so whatever a
trainer does from hidden states on (chunked heads, log-softmax, gathering, masks) is its own. Every token of a batch
has an id of its own, so the id alone says which log-prob is meant, however a trainer sorts, shuffles and pads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from tempfile import TemporaryDirectory
from types import MethodType
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutputWithPast

from grolang.compiler.batch import Batch
from grolang.integrations.cases import VOCABULARY, logits

PAD, END, FIRST = 0, 1, 2
#: ids of prompts (the second token says the group), of completions, and of the mismatched completions
_PROMPTS, _COMPLETIONS, _MISMATCHED = 3, 16, 72


@dataclass(frozen=True)
class Script:
    """The log-prob of each token id: `now` is a leaf that collects the gradient, `old` what no-grad passes see."""

    now: Tensor
    old: Tensor
    reference: Tensor
    batch: Batch

    def prompt(self, row: int) -> list[int]:
        assert self.batch.group is not None
        return [FIRST, _PROMPTS + int(self.batch.group[row])]

    def completion(self, row: int) -> list[int]:
        return _ids(self.batch.mask, _COMPLETIONS)[row]

    def mismatched(self, row: int) -> list[int]:
        assert self.batch.mismatched is not None
        return _ids(self.batch.mismatched.mask, _MISMATCHED)[row]

    def row(self, token: int) -> int:
        """The row that a completion's token belongs to."""
        return (token - _COMPLETIONS) // self.batch.mask.shape[1]

    def gradient(self) -> tuple[Tensor, float]:
        """∂loss/∂logp [S, T], and the largest gradient that reached a token of a prompt."""
        assert self.now.grad is not None
        grad = self.now.grad.double()
        size = self.batch.mask.numel()
        inside = grad[_COMPLETIONS : _COMPLETIONS + size].reshape(self.batch.mask.shape)
        return inside, float(grad[FIRST:_COMPLETIONS].abs().max())


def script(batch: Batch) -> Script:
    """A batch as log-probs of token ids."""

    def table(logp: Tensor | None, mismatched: Tensor | None) -> Tensor:
        values = torch.full((VOCABULARY,), -1.0)
        assert logp is not None
        values[_COMPLETIONS : _COMPLETIONS + logp.numel()] = logp.flatten().float()
        if mismatched is not None:
            values[_MISMATCHED : _MISMATCHED + mismatched.numel()] = mismatched.flatten().float()
        return values

    other = batch.mismatched
    assert other is not None and batch.mask.numel() <= _MISMATCHED - _COMPLETIONS
    now = table(batch.logp, other.logp).requires_grad_()
    return Script(now, table(batch.logp_old, other.logp), table(batch.logp_ref, other.logp_ref), batch)


def _ids(mask: Tensor, first: int) -> list[list[int]]:
    slots = mask.shape[1]
    return [[first + row * slots + slot for slot in range(slots) if mask[row, slot]] for row in range(mask.shape[0])]


def follow(model: Any, now: Tensor, old: Tensor) -> None:
    """Let a Llama give these log-probs: `now` where gradients are recorded, `old` elsewhere."""

    def forward(self: Any, input_ids: Tensor, **_: Any) -> BaseModelOutputWithPast:
        table = now if torch.is_grad_enabled() else old
        following = torch.cat([input_ids[:, 1:], input_ids[:, :1]], 1)
        return BaseModelOutputWithPast(last_hidden_state=logits(table[following], following))

    model.model.forward = MethodType(forward, model.model)


@cache
def folder() -> TemporaryDirectory[str]:
    """A folder with such a Llama and its tokenizer, as `from_pretrained` reads them; it lives as the process does."""
    made = TemporaryDirectory()
    config = LlamaConfig(
        hidden_size=VOCABULARY,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        vocab_size=VOCABULARY,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=END,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.eye(VOCABULARY))
    model.save_pretrained(made.name)
    tokenizer().save_pretrained(made.name)
    return made


def tokenizer() -> PreTrainedTokenizerFast:
    """Words `t2`, `t3`, … for the ids."""
    words = {"<pad>": PAD, "<eos>": END} | {f"t{index}": index for index in range(FIRST, VOCABULARY)}
    made = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers has no type for it
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>"
    )
