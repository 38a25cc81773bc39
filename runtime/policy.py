"""The model as a source of log-probs: its decoder, its head, and the fused pass between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grolang.compiler.forming import plain_kernel
from grolang.compiler.fused import Head, Pass, attach, launch, logps, single_pass
from grolang.compiler.fused.products import adds_in_fp32
from grolang.language.diagnostics import GroError
from grolang.runtime import packing
from grolang.runtime.examples import Ids

Form = Callable[[Tensor, Head, Tensor, int | None], Pass]
"""A fused pass: of states [N, D], the head, the tokens [N] that they predict, and the bytes of logits that may live."""

MULTIPLIERS = ("logit_scale", "lm_head_multiplier")
DIVISORS = ("logits_scaling",)
"""Names under which transformers' configurations keep a factor between the head and the logits."""


@dataclass(frozen=True)
class Tokens:
    """Sequences that pass through the model together, padded on the right.

    ids [s, L]; attention [s, L]; target [s, L] bool marks the completion tokens, whose log-probs are wanted. The
    N marked places are in row-major order: sequence by sequence. `whole` has the sequences where the CPU can read
    them without a wait for the device.
    """

    ids: Tensor
    attention: Tensor
    target: Tensor
    whole: tuple[Ids, ...] = ()

    @classmethod
    def of(cls, pairs: Sequence[tuple[Ids, Ids]], pad: int, device: torch.device) -> Tokens:
        """From (prompt, completion) pairs."""
        whole = tuple(prompt + completion for prompt, completion in pairs)
        ids = torch.full((len(pairs), max(map(len, whole))), pad)
        attention, target = torch.zeros((2, *ids.shape), dtype=torch.long)
        for row, ((prompt, _), own) in enumerate(zip(pairs, whole, strict=True)):
            ids[row, : len(own)] = torch.tensor(own)
            attention[row, : len(own)] = 1
            target[row, len(prompt) : len(own)] = 1
        return cls(ids.to(device), attention.to(device), target.bool().to(device), whole)


class Policy(nn.Module):
    """A causal model whose forward pass gives log-probs of completions, and a loss where coefficients are wanted.

    It is a module of its own so that whatever wraps it (DDP, FSDP) sees every parameter used inside `forward`. With
    `packed` its model's attention was prepared (`packing.enable`), and sequences go through it without padding.
    """

    budget: int | None = None  # bytes of logits that live at once; None: what suits the device

    def __init__(
        self,
        model: PreTrainedModel,
        temperature: float = 1.0,
        *,
        compiled: bool = False,
        packed: bool = False,
        kernels: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.packed = packed
        self.kernels = kernels
        decoder = cast(Any, model).get_decoder()
        # in a tuple, so that its parameters are not named twice
        self.decoder = (torch.compile(decoder, dynamic=True) if compiled else decoder,)

    def head(self, hidden: Tensor) -> Head:
        """The output embedding as the fused passes want it, in the dtype of the hidden states."""
        layer = cast(Any, self.model).get_output_embeddings()
        config = self.model.config.get_text_config()
        scale = 1.0
        for name in MULTIPLIERS:
            scale *= getattr(config, name, None) or 1.0
        for name in DIVISORS:
            scale /= getattr(config, name, None) or 1.0
        bias = getattr(layer, "bias", None)
        return Head(
            layer.weight.to(hidden.dtype),
            None if bias is None else bias.to(hidden.dtype),
            scale=scale,
            softcap=getattr(config, "final_logit_softcapping", None),
            temperature=self.temperature,
        )

    def hidden(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """States [N, D] that predict the marked tokens, and those tokens [N]."""
        (decoder,) = self.decoder
        predicts = tokens.target[:, 1:]
        layout = self._layout(tokens) if self.packed and tokens.whole else None
        if layout is not None:
            found = packing.take(packing.states(decoder, layout), layout.place[predicts])
        else:
            states: Tensor = decoder(input_ids=tokens.ids, attention_mask=tokens.attention, use_cache=False)[0]
            found = states[:, :-1][predicts]
        return found.to(_operand(found)), tokens.ids[tokens.target]

    def _layout(self, tokens: Tokens) -> packing.Layout | None:
        """The row of these sequences but for their last tokens, which predict nothing; None where it saves little."""
        layout = packing.lay_out([ids[:-1] for ids in tokens.whole], packing.enough(self.model))
        return layout.to(tokens.ids.device) if len(layout.ids) <= packing.WORTH * tokens.ids.numel() else None

    def forward(
        self, tokens: Tokens, form: Form | None = None, *, entropy: bool = False
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """(loss or None, logp [N], entropy [N] or None).

        With `form` the loss is −Σ c·logp with gradient −Σ c·∇logp, c the coefficients of that pass.
        """
        if form is None:
            with torch.no_grad():
                hidden, targets = self.hidden(tokens)
                return None, *logps(hidden, self.head(hidden), targets, entropy=entropy, kernels=self.kernels)
        hidden, targets = self.hidden(tokens)
        head = self.head(hidden)
        found = form(hidden, head, targets, self.budget)
        value = -(found.coefficients * found.rows.logp).sum()
        loss = attach(value, (hidden, head.weight, head.bias), found.gradients)
        return loss, found.rows.logp, found.rows.entropy


def _operand(hidden: Tensor) -> torch.dtype:
    """What the head's products read: under autocast bf16, as any linear map's, where their sums are fp32 all the same.

    The states themselves are fp32 then, since the sum that runs through the layers is; products of fp32 would take a
    GPU ten times as long.
    """
    kind = hidden.device.type
    bf16 = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
    return torch.bfloat16 if bf16 and adds_in_fp32(hidden.device) else hidden.dtype


def given(coefficients: Tensor | None, *, kernels: bool = False) -> Form:
    """The pass with coefficients [N] that are known; all 0 without."""

    def form(hidden: Tensor, head: Head, targets: Tensor, budget: int | None) -> Pass:
        c = hidden.new_zeros(targets.shape) if coefficients is None else coefficients
        kernel = plain_kernel() if kernels and launch.usable(hidden, head.weight) else None
        return single_pass(hidden, head, targets, lambda rows, *_: c[rows], budget=budget, kernel=kernel)

    return form


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """The fused log-probs are those of the model's own logits, on one short text; else an error.

    An architecture may do something to its logits that `Policy.head` does not know of.
    """
    size = min(8, model.config.get_text_config().vocab_size)
    ids = torch.arange(size, device=model.device)[None]
    tokens = Tokens(ids, torch.ones_like(ids), torch.arange(size, device=model.device)[None] > 0)
    _, ours, _ = Policy(model)(tokens)
    theirs = model(input_ids=ids, use_cache=False).logits[0, :-1].to(ours.dtype).log_softmax(-1)
    theirs = theirs.gather(1, ids[0, 1:, None])[:, 0]
    tolerance = 0.1 if ours.dtype != model.dtype else 1e-3
    if not torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance):
        raise GroError.plain(
            f"the log-probs of {model.config.model_type} from its hidden states differ from those of its logits "
            f"by {float((ours - theirs).abs().max()):.3g}: this architecture alters its logits in a way unknown here",
            help="report the architecture; Llama, Qwen, Mistral, Gemma, Cohere, Granite and GPT-2 are known",
        )
