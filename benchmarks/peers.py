"""The losses that are measured: the compiled method, and the same gradient from other libraries' own code.

Each takes a Problem to a scalar whose backward gives the gradients of hidden states and head. Libraries that offer
log-probs get the method's own loss on top of them, which costs nothing beside the head; Liger brings its whole loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import grolang
from grolang.compiler.fused import launch

SLOTS = 256  # token slots of a sequence
DPO_BETA = 0.01


@dataclass(frozen=True)
class Problem:
    """hidden [S, T, D], weight [V, D], targets [S, T], and the batch of a method without `logp`."""

    method: grolang.Method
    hidden: Tensor
    weight: Tensor
    targets: Tensor
    batch: grolang.Batch

    def loss(self, logp: Tensor) -> Tensor:
        """The method's loss of log-probs [S, T] or of the valid ones [N]."""
        if logp.dim() == 1:
            logp = torch.zeros(self.batch.mask.shape, dtype=logp.dtype, device=logp.device).masked_scatter(
                self.batch.mask, logp
            )
        return self.method.loss(self.batch.replace(logp=logp))


def problem(
    name: str,
    rows: int,
    hidden: int,
    vocabulary: int,
    *,
    valid: float = 1.0,
    dead: float = 0.0,
    slots: int = SLOTS,
    group_size: int = 8,
) -> Problem:
    """N = rows token slots in sequences of `slots`; peaked logits (standard deviation 5): flat ones flatter filters.

    grpo: groups of `group_size` sequences, no penalty, `logp_old` near `logp`, so that some tokens are clipped; the
    rewards of a share `dead` of the groups are all equal. dpo: pairs, and a reference of 0, which Liger can be given
    too. A share `valid` of the slots holds a completion's tokens.
    """
    generator = torch.Generator().manual_seed(0)
    sequences = rows // slots
    states = torch.randn(sequences, slots, hidden, generator=generator)
    weight = torch.randn(vocabulary, hidden, generator=generator).mul_(5 / math.sqrt(hidden))
    targets = torch.randint(vocabulary, (sequences, slots), generator=generator)
    lengths = torch.full((sequences,), slots)
    if valid < 1:
        spread = torch.rand(sequences, generator=generator) - 0.5
        lengths = ((valid + 0.5 * valid * (spread - spread.mean())) * slots).round().clamp(1, slots).long()
    mask = torch.arange(slots) < lengths[:, None]
    size = min(group_size, sequences) if name == "grpo" else 2
    group = torch.arange(sequences) // size
    if name == "dpo":
        method = grolang.load("dpo", beta=DPO_BETA)
        label = torch.where(torch.arange(sequences) % 2 == 0, 1.0, -1.0)
        batch = grolang.Batch(mask=mask, group=group, label=label, logp_ref=torch.zeros(mask.shape))
    else:
        method = grolang.load(name, beta=0.0)
        near = (states * weight[targets]).sum(-1) - 12.5 - math.log(vocabulary)
        old = near + 0.1 * torch.randn(mask.shape, generator=generator)
        alike = torch.arange(int(group[-1]) + 1) < round(dead * (int(group[-1]) + 1))
        reward = torch.randn(sequences, generator=generator).where(~alike[group], 1.0)
        scores = dict.fromkeys(method.scores, reward)
        batch = grolang.Batch(mask=mask, group=group, logp_old=old, logp_ref=old, scores=scores)
    return Problem(method, states, weight, targets, batch)


def compiled(p: Problem) -> Tensor:
    return torch.as_tensor(grolang.compile(p.method)(p.hidden, p.weight, p.targets, p.batch))


def with_kernels(p: Problem) -> Tensor:
    if not launch.usable(p.hidden, p.weight):
        raise RuntimeError("needs CUDA and Triton")
    return torch.as_tensor(grolang.compile(p.method, kernels=True)(p.hidden, p.weight, p.targets, p.batch))


def plain(p: Problem) -> Tensor:
    logits = (p.hidden @ p.weight.T).float()
    return p.loss(logits.log_softmax(-1).gather(-1, p.targets[..., None])[..., 0])


def torch_chunked(p: Problem) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    states, targets = p.hidden.flatten(0, 1), p.targets.flatten()
    nll = F.linear_cross_entropy(states, p.weight, targets, reduction="none", options=options)
    return p.loss(-nll.view(p.targets.shape))


def trl_fused(p: Problem) -> Tensor:
    from trl.kernels import ChunkedLogProbFunction

    compact = p.hidden.is_cuda  # as its forward pass does (trl.trainer.utils)
    states, targets = p.hidden.flatten(0, 1), p.targets.flatten()
    if compact:
        states, targets = states[p.batch.mask.flatten()], targets[p.batch.mask.flatten()]
    logp = ChunkedLogProbFunction.apply(states, p.weight, None, targets, 1.0, min(32768, len(p.weight)), None, 1.0, ())[
        0
    ]
    return p.loss(logp if compact else logp.view(p.targets.shape))


def trl_selective(p: Problem) -> Tensor:
    from trl.trainer.utils import selective_log_softmax

    return p.loss(selective_log_softmax((p.hidden @ p.weight.T).float(), p.targets))


def verl_chunked(p: Problem) -> Tensor:
    from verl.utils.experimental.torch_functional import FusedLinearForPPO

    return p.loss(FusedLinearForPPO()(p.hidden, p.weight, p.targets)[0])


def prime_rl(p: Problem) -> Tensor:
    from prime_rl.trainer.models.layers.lm_head import FusedOutputLinear

    head = FusedOutputLinear(*reversed(p.weight.shape), chunk_size=2048)
    head.weight = torch.nn.Parameter(p.weight)
    return p.loss(head(p.hidden, p.targets, temperature=1.0)["logprobs"])


def cut_cross_entropy(p: Problem) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    targets = p.targets.masked_fill(~p.batch.mask, -100)
    kind = "cce" if p.hidden.is_cuda else "torch_compile"
    return p.loss(-linear_cross_entropy(p.hidden, p.weight, targets, reduction="none", impl=kind))


def liger(p: Problem) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss, LigerFusedLinearGRPOLoss

    if p.method.name == "dpo":
        assert p.batch.label is not None
        order = torch.argsort((p.batch.label < 0).int(), stable=True)  # it wants all chosen, then all rejected
        loss = LigerFusedLinearDPOLoss(beta=DPO_BETA, use_ref_model=False)
        targets = p.targets.masked_fill(~p.batch.mask, -100)
        return torch.as_tensor(loss(p.weight, p.hidden[order], targets[order])[0])
    advantages = p.method.evaluate(p.batch.replace(logp=p.batch.logp_old)).parts["advantage"][:, 0]
    loss = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False, loss_type="grpo")
    mask = p.batch.mask.float()
    return torch.as_tensor(
        loss(p.hidden, p.weight, p.targets, mask, advantages, old_per_token_logps=p.batch.logp_old)[0]
    )


CONTENDERS: dict[str, Callable[[Problem], Tensor]] = {
    "grolang": compiled,
    "grolang, Triton": with_kernels,
    "plain logits": plain,
    "TRL fused head": trl_fused,
    "TRL selective_log_softmax": trl_selective,
    "Liger": liger,
    "cut-cross-entropy": cut_cross_entropy,
    "torch linear_cross_entropy": torch_chunked,
    "verl FusedLinearForPPO": verl_chunked,
    "prime-rl FusedOutputLinear": prime_rl,
}
