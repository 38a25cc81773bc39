"""Liger's chunked losses: from hidden states and a head to gradients in both, against the compiled methods here.

The hidden states are made so that the head gives the log-probs of a batch. With `compiled=False` the same code runs
eagerly.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
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
from grolang.compiler.method import Method, load
from grolang.compiler.module import compile
from grolang.integrations.cases import VOCABULARY, logits
from grolang.integrations.peer import Gradient, Loss, Peer

_IGNORED = -100
#: what dr_grpo divides by
LENGTH = 8

#: the rows of a batch that a loss gets, in its order, with their hidden states
Call = Callable[[Batch, list[int], Tensor, Tensor], Tensor]


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


def _run(call: Call) -> Callable[[Batch, int], Gradient]:
    """A loss on a batch; micro-batches are averaged, as a trainer that divides by their number does."""

    def run(batch: Batch, parts: int) -> Gradient:
        targets = _targets(batch)
        hidden = _hidden(batch.logp, targets).float().requires_grad_()
        head = _head().float().requires_grad_()
        rows = batch.mask.shape[0]
        for start in range(0, rows, rows // parts):
            loss = call(batch, list(range(start, start + rows // parts)), hidden, head)
            torch.autograd.backward(loss / parts)
        assert hidden.grad is not None and head.grad is not None
        outside = hidden.grad[~batch.mask]
        return Gradient(
            torch.cat([hidden.grad.flatten(), head.grad.flatten()]).double(),
            float(outside.abs().max()) if outside.numel() else 0.0,
        )

    return run


def _pairs(made: Any, reference: bool) -> Callable[[Batch, int], Gradient]:
    """A loss of pairs: chosen rows first, then the rejected ones."""

    def call(batch: Batch, rows: list[int], hidden: Tensor, head: Tensor) -> Tensor:
        order = rows[::2] + rows[1::2]
        targets = _targets(batch).masked_fill(~batch.mask, _IGNORED)[order]
        extra: dict[str, Any] = {}
        if reference:
            states = _hidden(batch.logp_ref, _targets(batch)).float()[order]
            extra = {"ref_input": states, "ref_weight": _head().float()}
        loss: Tensor = made(head, hidden[order], targets, **extra)[0]
        return loss

    return _run(call)


def dpo(loss_type: str = "sigmoid", **options: Any) -> Callable[[Batch, int], Gradient]:
    return _pairs(LigerFusedLinearDPOLoss(loss_type=loss_type, compiled=False, **options), True)


def cpo(**options: Any) -> Callable[[Batch, int], Gradient]:
    return _pairs(LigerFusedLinearCPOLoss(compiled=False, **options), False)


def simpo(**options: Any) -> Callable[[Batch, int], Gradient]:
    return _pairs(LigerFusedLinearSimPOLoss(compiled=False, **options), False)


def orpo(**options: Any) -> Callable[[Batch, int], Gradient]:
    return _pairs(LigerFusedLinearORPOLoss(compiled=False, **options), False)


def kto(**options: Any) -> Callable[[Batch, int], Gradient]:
    """KTO; the KL is given to Liger, here the mean over the micro-batch's mismatched pairs, not below 0."""
    made = LigerFusedLinearKTOLoss(compiled=False, use_ref_model=True, **options)

    def call(batch: Batch, rows: list[int], hidden: Tensor, head: Tensor) -> Tensor:
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

    return _run(call)


def grpo(scaled: bool = True, **options: Any) -> Callable[[Batch, int], Gradient]:
    """GRPO; advantages are given to Liger, here those of the published methods: centred, `scaled` by the spread."""
    made = LigerFusedLinearGRPOLoss(
        compiled=False, max_completion_length=LENGTH, use_ref_model=options.get("beta", 0.04) > 0, **options
    )

    def call(batch: Batch, rows: list[int], hidden: Tensor, head: Tensor) -> Tensor:
        assert batch.group is not None and batch.logp_ref is not None and batch.logp_old is not None
        advantages = _advantages(batch.scores["correct"], int((batch.group == 0).sum()), scaled)
        loss: Tensor
        loss, *_ = made(
            hidden[rows],
            head,
            _targets(batch)[rows],
            batch.mask[rows].float(),
            advantages[rows].float(),
            ref_per_token_logps=batch.logp_ref[rows].float(),
            old_per_token_logps=batch.logp_old[rows].float(),
        )
        return loss

    return _run(call)


def _advantages(rewards: Tensor, size: int, scaled: bool) -> Tensor:
    groups = rewards.reshape(-1, size)
    centred = groups - groups.mean(1, keepdim=True)
    spread = groups.std(1, correction=0, keepdim=True)
    return (centred / torch.where(spread > 0, spread, 1) if scaled else centred).flatten()


_NLL = "penalty = -logp * sum((label > 0) over batch) / sum(length * (label > 0) over batch) if label > 0 else 0"
_AVERAGED = (
    "penalty = -logp * length * sum((label > 0) over batch) / sum(length * (label > 0) over batch) if label > 0 else 0"
)
_SHARED = "the likelihood term is a mean over the chosen tokens of a micro-batch"
_CLIP = {"epsilon": 0.2, "epsilon_high": 0.2}


def _dpo(loss: str, method: str, *changes: str, note: str = "", trap: bool = False, **options: Any) -> Loss:
    said = "".join(f", {name}={value!r}" for name, value in options.items())
    ours = {"beta": 0.5, "epsilon": options.get("label_smoothing"), "tau": options.get("discopop_tau")}
    kept = {name: value for name, value in ours.items() if value is not None and name in load(method).params}
    run = dpo(loss, beta=0.5, **options)
    name = f'LigerFusedLinearDPOLoss(loss_type="{loss}", beta=0.5{said})'
    return Loss(name, run, method, kept, changes, note=note, trap=trap)


_PREFERENCE = (
    _dpo("sigmoid", "dpo"),
    _dpo("sigmoid", "dpo", label_smoothing=0.1, note="label_smoothing is not used: this is not cdpo", trap=True),
    _dpo("sigmoid", "dpo_norm", average_log_prob=True),
    _dpo("sigmoid", "rpo", _NLL, compute_nll_loss=True, note=_SHARED),
    _dpo("hinge", "rso"),
    _dpo("exo_pair", "exo", label_smoothing=0.001),
    _dpo("nca_pair", "nca"),
    _dpo("robust", "robust_dpo", label_smoothing=0.1),
    _dpo("bco_pair", "dpo", "anchor = 0", note="without BCO's reward shift"),
    _dpo("sppo_hard", "sppo"),
    _dpo("apo_zero", "apo_zero"),
    _dpo("apo_down", "apo_down"),
    _dpo("discopop", "discopop", discopop_tau=0.5),
    Loss("LigerFusedLinearCPOLoss(beta=0.5)", cpo(beta=0.5), "cpo", {"beta": 0.5}, (_NLL,), note=_SHARED),
    Loss(
        "LigerFusedLinearCPOLoss(beta=0.5, compute_nll_loss=False)",
        cpo(beta=0.5, compute_nll_loss=False),
        "cpl",
        {"beta": 0.5, "gamma": 1},
    ),
    Loss(
        "LigerFusedLinearCPOLoss(beta=0.5, compute_nll_loss=False, label_smoothing=0.1)",
        cpo(beta=0.5, compute_nll_loss=False, label_smoothing=0.1),
        "cpl",
        {"beta": 0.5, "gamma": 1},
        ("omega(z) = beta * (0.9 * sigmoid(-z) - 0.1 * sigmoid(z))",),
    ),
    Loss(
        "LigerFusedLinearSimPOLoss(beta=2.0, gamma=1.0)",
        simpo(beta=2.0, gamma=1.0),
        "simpo",
        {},
        (_AVERAGED,),
        note="compute_nll_loss is True by default and adds a likelihood term, which SimPO does not have",
        trap=True,
    ),
    Loss(
        "LigerFusedLinearSimPOLoss(beta=2.0, gamma=1.0, compute_nll_loss=False)",
        simpo(beta=2.0, gamma=1.0, compute_nll_loss=False),
        "simpo",
    ),
    Loss("LigerFusedLinearORPOLoss(beta=0.1)", orpo(beta=0.1), "orpo", {"lambda": 0.1}, (_AVERAGED,), note=_SHARED),
    Loss(
        "LigerFusedLinearKTOLoss(beta=0.5, use_ref_model=True)",
        kto(beta=0.5),
        "kto",
        {"beta": 0.5},
        note="the KL is given to it; here the mean of the micro-batch's mismatched pairs",
    ),
)


def _grpo(loss: str, method: str, *changes: str, note: str = "", **options: Any) -> Loss:
    params, scaled = options.pop("params", {}), options.pop("scaled", True)
    beyond, trap = options.pop("beyond", ""), options.pop("trap", False)
    options = {"beta": 0.0} | options
    said = "".join(f", {name}={value!r}" for name, value in options.items())
    run = grpo(scaled, loss_type=loss, **options)
    name = f'LigerFusedLinearGRPOLoss(loss_type="{loss}"{said})'
    return Loss(name, run, method, params, changes, beyond, note, trap)


_SEQUENCE: dict[str, Any] = {"importance_sampling_level": "sequence"}
_GRPO = (
    _grpo("grpo", "grpo", beta=0.04),
    _grpo(
        "grpo",
        "grpo_k3_weighted",
        beta=0.04,
        use_bias_correction_kl=True,
    ),
    _grpo(
        "grpo",
        "grpo",
        "omega(z) = 0 if (exp(z) > 1 + epsilon if advantage > 0 else exp(z) < 1 - epsilon or exp(z) > 2) else exp(z)",
        params={"beta": 0},
        delta=2.0,
    ),
    _grpo("grpo", "gspo", params=_CLIP, **_SEQUENCE),
    _grpo(
        "bnpo",
        "bnpo",
        params={"beta": 0},
        note="the mean is over the tokens of a micro-batch",
    ),
    _grpo("dr_grpo", "dr_grpo", params={"max_length": LENGTH}, scaled=False, note="advantages are given to it"),
    _grpo(
        "dapo",
        "dapo",
        epsilon_high=0.28,
        note="the mean is over the tokens of a micro-batch, unless num_items_in_batch is passed",
        trap=True,
    ),
    _grpo(
        "cispo",
        "cispo",
        "omega(z) = min(exp(z), 0.2)",
        note="epsilon_high bounds the ratio itself, and its default is 0.2: in the first update every weight is 0.2",
        trap=True,
    ),
    _grpo("cispo", "cispo", params={"epsilon_high": 4}, epsilon_high=5.0),
    _grpo("sapo", "sapo"),
    _grpo(
        "luspo",
        "grpo",
        params={"beta": 0},
        beyond="slots of the padding are in the loss",
        note="the mask is missing from the sum, and the sum is divided by the padded width: not TRL's luspo",
        trap=True,
    ),
    _grpo("luspo", "luspo", params=_CLIP, **_SEQUENCE),
    _grpo("vespo", "vespo"),
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
