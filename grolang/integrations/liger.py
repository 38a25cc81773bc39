"""Liger's chunked losses: from hidden states and a head to gradients in both, against the compiled methods here.

The hidden states are made so that the head gives the log-probs of a batch. With `compiled=False` the same code runs
eagerly.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from liger_kernel import chunked_loss
    from liger_kernel.chunked_loss import (
        LigerFusedLinearCPOLoss,
        LigerFusedLinearDPOLoss,
        LigerFusedLinearGRPOLoss,
        LigerFusedLinearKTOLoss,
        LigerFusedLinearORPOLoss,
        LigerFusedLinearSimPOLoss,
    )

from grolang.compiler.batch import Batch
from grolang.compiler.method import Method
from grolang.compiler.module import compile
from grolang.integrations.cases import LENGTH, VOCABULARY, logits
from grolang.integrations.peer import Gradient, Loss, Peer, Run, call, row

_IGNORED = -100

#: a loss of these rows of a batch, from hidden states and head
Part = Callable[[Batch, list[int], Tensor, Tensor], Tensor]


@cache
def _head() -> Tensor:
    """[V, V], orthogonal."""
    drawn = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q: Tensor = torch.linalg.qr(drawn)[0]
    return q


def _targets(batch: Batch) -> Tensor:
    """[S, T]: some token for each slot."""
    return torch.arange(batch.mask.numel()).reshape(batch.mask.shape) % VOCABULARY


def _hidden(logp: Tensor | None, targets: Tensor) -> Tensor:
    """[S, T, V]: states from which the head gives these log-probs."""
    assert logp is not None
    return logits(logp, targets) @ _head()


def _ours(method: Method, batch: Batch) -> Tensor:
    """The compiled method's gradients in hidden states and head, in float64."""
    targets = _targets(batch)
    hidden, head = _hidden(batch.logp, targets).requires_grad_(), _head().clone().requires_grad_()
    loss = compile(method)(hidden, head, targets, batch)
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, (hidden, head))])


def _run(part: Part) -> Run:
    """A loss on a batch; micro-batches are averaged, as a trainer that divides by their number does."""

    def run(batch: Batch, parts: int) -> Gradient:
        targets = _targets(batch)
        hidden = _hidden(batch.logp, targets).float().requires_grad_()
        head = _head().float().requires_grad_()
        rows = batch.mask.shape[0]
        for start in range(0, rows, rows // parts):
            loss = part(batch, list(range(start, start + rows // parts)), hidden, head)
            torch.autograd.backward(loss / parts)
        assert hidden.grad is not None and head.grad is not None
        outside = hidden.grad[~batch.mask]
        return Gradient(
            torch.cat([hidden.grad.flatten(), head.grad.flatten()]).double(),
            float(outside.abs().max()) if outside.numel() else 0.0,
        )

    return run


def _pairs(kind: Any, **options: Any) -> Run:
    """A loss of pairs: chosen rows first, then the rejected ones."""
    made = kind(compiled=False, **options)

    def part(batch: Batch, rows: list[int], hidden: Tensor, head: Tensor) -> Tensor:
        order = rows[::2] + rows[1::2]
        targets = _targets(batch).masked_fill(~batch.mask, _IGNORED)[order]
        extra: dict[str, Any] = {}
        if kind is LigerFusedLinearDPOLoss:
            states = _hidden(batch.logp_ref, _targets(batch)).float()[order]
            extra = {"ref_input": states, "ref_weight": _head().float()}
        loss: Tensor = made(head, hidden[order], targets, **extra)[0]
        return loss

    return _run(part)


def _kto(**options: Any) -> Run:
    """KTO; the KL is given to Liger, here the mean over the micro-batch's mismatched pairs, not below 0."""
    made = LigerFusedLinearKTOLoss(compiled=False, **options)

    def part(batch: Batch, rows: list[int], hidden: Tensor, head: Tensor) -> Tensor:
        other = batch.mismatched
        assert other is not None and other.logp is not None and other.logp_ref is not None and batch.label is not None
        ratios = ((other.logp - other.logp_ref) * other.mask).sum(1)[rows]
        targets = _targets(batch)
        loss: Tensor
        loss, *_ = made(
            hidden[rows],
            head,
            targets.masked_fill(~batch.mask, _IGNORED)[rows],
            preference_labels=batch.label[rows] > 0,
            ref_input=_hidden(batch.logp_ref, targets).float()[rows],
            ref_weight=_head().float(),
            kl=ratios.mean().clamp(min=0).float(),
        )
        return loss

    return _run(part)


def _grpo(advantages: Callable[[Tensor], Tensor], **options: Any) -> Run:
    """GRPO; advantages are given to Liger, here made of the rewards [G, K] of each group."""
    made = LigerFusedLinearGRPOLoss(
        compiled=False, max_completion_length=LENGTH, use_ref_model=options["beta"] > 0, **options
    )

    def part(batch: Batch, rows: list[int], hidden: Tensor, head: Tensor) -> Tensor:
        assert batch.group is not None and batch.logp_ref is not None and batch.logp_old is not None
        rewards = batch.scores["correct"].reshape(-1, int((batch.group == 0).sum()))
        loss: Tensor
        loss, *_ = made(
            hidden[rows],
            head,
            _targets(batch)[rows],
            batch.mask[rows].float(),
            advantages(rewards).flatten()[rows].float(),
            ref_per_token_logps=batch.logp_ref[rows].float(),
            old_per_token_logps=batch.logp_old[rows].float(),
        )
        return loss

    return _run(part)


def _centred(rewards: Tensor) -> Tensor:
    return rewards - rewards.mean(1, keepdim=True)


def _scaled(rewards: Tensor) -> Tensor:
    spread = rewards.std(1, correction=0, keepdim=True)
    return _centred(rewards) / torch.where(spread > 0, spread, 1)


_NLL = "penalty = -logp * sum((label > 0) over batch) / sum(length * (label > 0) over batch) if label > 0 else 0"
_AVERAGED = (
    "penalty = -logp * length * sum((label > 0) over batch) / sum(length * (label > 0) over batch) if label > 0 else 0"
)
_SHARED = "the likelihood term is a mean over the chosen tokens of a micro-batch"

#: by a class's name, how it is run under options
_LOSSES: dict[str, Callable[..., Run]] = {
    kind.__name__: partial(_pairs, kind)
    for kind in (
        LigerFusedLinearDPOLoss,
        LigerFusedLinearCPOLoss,
        LigerFusedLinearSimPOLoss,
        LigerFusedLinearORPOLoss,
    )
} | {LigerFusedLinearKTOLoss.__name__: _kto}


def _row(name: str, compared: str, *changes: str, **words: str) -> Loss:
    """A row; the call that is its name is what is run."""
    loss, options = call(name)
    return row(name, _LOSSES[loss](**options), compared, *changes, **words)


def _grpo_row(
    name: str, compared: str, *changes: str, advantages: Callable[[Tensor], Tensor] = _scaled, **words: str
) -> Loss:
    """A row of GRPO's loss, and the advantages that it is given: those of the published method."""
    return row(name, _grpo(advantages, **call(name)[1]), compared, *changes, **words)


_PREFERENCE = (
    _row('LigerFusedLinearDPOLoss(loss_type="sigmoid", beta=0.5)', "dpo beta=0.5"),
    _row(
        'LigerFusedLinearDPOLoss(loss_type="sigmoid", beta=0.5, label_smoothing=0.1)',
        "dpo beta=0.5",
        trap="label_smoothing is not used: this is not cdpo",
    ),
    _row('LigerFusedLinearDPOLoss(loss_type="sigmoid", beta=0.5, average_log_prob=True)', "dpo_norm beta=0.5"),
    _row(
        'LigerFusedLinearDPOLoss(loss_type="sigmoid", beta=0.5, compute_nll_loss=True)',
        "rpo beta=0.5",
        _NLL,
        note=_SHARED,
    ),
    _row('LigerFusedLinearDPOLoss(loss_type="hinge", beta=0.5)', "rso beta=0.5"),
    _row(
        'LigerFusedLinearDPOLoss(loss_type="exo_pair", beta=0.5, label_smoothing=0.001)', "exo beta=0.5 epsilon=0.001"
    ),
    _row('LigerFusedLinearDPOLoss(loss_type="nca_pair", beta=0.5)', "nca beta=0.5"),
    _row(
        'LigerFusedLinearDPOLoss(loss_type="robust", beta=0.5, label_smoothing=0.1)', "robust_dpo beta=0.5 epsilon=0.1"
    ),
    _row(
        'LigerFusedLinearDPOLoss(loss_type="bco_pair", beta=0.5)',
        "dpo beta=0.5",
        "anchor = 0",
        note="without BCO's reward shift",
    ),
    _row('LigerFusedLinearDPOLoss(loss_type="sppo_hard", beta=0.5)', "sppo beta=0.5"),
    _row('LigerFusedLinearDPOLoss(loss_type="apo_zero", beta=0.5)', "apo_zero beta=0.5"),
    _row('LigerFusedLinearDPOLoss(loss_type="apo_down", beta=0.5)', "apo_down beta=0.5"),
    _row('LigerFusedLinearDPOLoss(loss_type="discopop", beta=0.5, discopop_tau=0.5)', "discopop beta=0.5 tau=0.5"),
    _row("LigerFusedLinearCPOLoss(beta=0.5)", "cpo beta=0.5", _NLL, note=_SHARED),
    _row("LigerFusedLinearCPOLoss(beta=0.5, compute_nll_loss=False)", "cpl beta=0.5 gamma=1"),
    _row(
        "LigerFusedLinearCPOLoss(beta=0.5, compute_nll_loss=False, label_smoothing=0.1)",
        "cpl beta=0.5 gamma=1",
        "omega(z) = beta * (0.9 * sigmoid(-z) - 0.1 * sigmoid(z))",
    ),
    _row(
        "LigerFusedLinearSimPOLoss(beta=2.0, gamma=1.0)",
        "simpo",
        _AVERAGED,
        trap="compute_nll_loss is True by default and adds a likelihood term, which SimPO does not have",
    ),
    _row("LigerFusedLinearSimPOLoss(beta=2.0, gamma=1.0, compute_nll_loss=False)", "simpo"),
    _row("LigerFusedLinearORPOLoss(beta=0.1)", "orpo lambda=0.1", _AVERAGED, note=_SHARED),
    _row(
        "LigerFusedLinearKTOLoss(beta=0.5, use_ref_model=True)",
        "kto beta=0.5",
        note="the KL is given to it; here the mean of the micro-batch's mismatched pairs",
    ),
)

_GRPO = (
    _grpo_row('LigerFusedLinearGRPOLoss(loss_type="grpo", beta=0.04)', "grpo"),
    _grpo_row('LigerFusedLinearGRPOLoss(loss_type="grpo", beta=0.04, use_bias_correction_kl=True)', "grpo_k3_weighted"),
    _grpo_row(
        'LigerFusedLinearGRPOLoss(loss_type="grpo", beta=0.0, delta=2.0)',
        "grpo beta=0",
        "omega(z) = 0 if (exp(z) > 1 + epsilon if advantage > 0 else exp(z) < 1 - epsilon or exp(z) > 2) else exp(z)",
    ),
    _grpo_row(
        'LigerFusedLinearGRPOLoss(loss_type="grpo", beta=0.0, importance_sampling_level="sequence")',
        "gspo epsilon=0.2 epsilon_high=0.2",
    ),
    _grpo_row(
        'LigerFusedLinearGRPOLoss(loss_type="bnpo", beta=0.0)',
        "bnpo beta=0",
        note="the mean is over the tokens of a micro-batch",
    ),
    _grpo_row(
        'LigerFusedLinearGRPOLoss(loss_type="dr_grpo", beta=0.0)',
        "dr_grpo max_length=8",
        advantages=_centred,
        note="advantages are given to it",
    ),
    _grpo_row(
        'LigerFusedLinearGRPOLoss(loss_type="dapo", beta=0.0, epsilon_high=0.28)',
        "dapo",
        trap="the mean is over the tokens of a micro-batch, unless num_items_in_batch is passed",
    ),
    _grpo_row(
        'LigerFusedLinearGRPOLoss(loss_type="cispo", beta=0.0)',
        "cispo",
        "omega(z) = min(exp(z), 0.2)",
        trap="epsilon_high bounds the ratio itself, and its default is 0.2: in the first update every weight is 0.2",
    ),
    _grpo_row('LigerFusedLinearGRPOLoss(loss_type="cispo", beta=0.0, epsilon_high=5.0)', "cispo epsilon_high=4"),
    _grpo_row('LigerFusedLinearGRPOLoss(loss_type="sapo", beta=0.0)', "sapo"),
    _grpo_row(
        'LigerFusedLinearGRPOLoss(loss_type="luspo", beta=0.0)',
        "grpo beta=0",
        trap="the mask is missing from the sum, and the sum is divided by the padded width: not TRL's luspo",
        beyond="slots of the padding are in the loss",
    ),
    _grpo_row(
        'LigerFusedLinearGRPOLoss(loss_type="luspo", beta=0.0, importance_sampling_level="sequence")',
        "luspo epsilon=0.2 epsilon_high=0.2",
    ),
    _grpo_row('LigerFusedLinearGRPOLoss(loss_type="vespo", beta=0.0)', "vespo"),
)


PEER = Peer(
    name="liger",
    about="Liger's chunked losses, gradients in hidden states and head",
    tolerance=1e-5,
    losses={"Preference losses": _PREFERENCE, "GRPO losses": _GRPO},
    recurring={_NLL: "likelihood per token of the batch"},
    there=(
        *sorted(name for name in dir(chunked_loss) if name.startswith("Liger")),
        *sorted(f'"{name}"' for name in LigerFusedLinearDPOLoss._SUPPORTED_LOSS_TYPES),
    ),
    left_out={
        'LigerFusedLinearDPOLoss(loss_type="ipo")': "raises NotImplementedError",
        "LigerFusedLinearCosineSimilarityLoss": "distillation",
        "LigerFusedLinearJSDLoss": "distillation",
        "liger_kernel.transformers.grpo_loss": "a Triton kernel, which needs a GPU",
    },
    ours=_ours,
)
