"""`law N: unbiased`, exactly: the expected estimate against the true gradient, every completion enumerated.

A policy with one free logit per prefix and token, over two words and an end, completions of at most two tokens:
seven of them. A batch is one group of two; all 49 are weighted by their probability, and the sum of
Σ_i Σ_t c_{i,t} ∇ log π(y_{i,t}) is held against ∇ Σ_y π(y) R(y), in float64 to 1e-10.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from grolang.compiler.batch import Batch
from grolang.compiler.execute import Run
from grolang.compiler.method import Method
from grolang.language.diagnostics import GroError
from grolang.language.scopes import Scope

END = 2
COMPLETIONS = ((END,), (0, END), (1, END), (0, 0), (0, 1), (1, 0), (1, 1))
PREFIXES = ((), (0,), (1,))
GROUP = 2
TOLERANCE = 1e-10


@dataclass(frozen=True, eq=False)
class Bias:
    """The expected estimate and the true gradient in the logits [prefix, token]."""

    expected: Tensor
    true: Tensor

    @property
    def gap(self) -> float:
        """The largest difference."""
        return float((self.expected - self.true).abs().max())

    @property
    def unbiased(self) -> bool:
        """Whether the two are one to rounding."""
        return self.gap <= TOLERANCE


def bias(method: Method, seed: int = 0) -> Bias:
    """Both sides on one random policy and one random table of scores.

    Raises GroError for a method that draws no completions, or whose reward is not one number per completion.
    """
    if "prompts" not in method.data:
        help = "the claim is about completions that the policy draws: use `data prompts`"
        raise GroError.plain(f"`{method.name}` draws no completions, so it cannot be unbiased", help=help)
    reward = method.ir.definitions.get("reward")
    if reward is None or reward.body.scope > Scope.SEQUENCE:
        help = "give one `reward` per completion"
        raise GroError.plain(f"the reward of `{method.name}` is not one number per completion", help=help)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(PREFIXES), 3, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(len(PREFIXES), 3, generator=generator, dtype=torch.float64).log_softmax(1)
    scores = {name: torch.randn(len(COMPLETIONS), generator=generator, dtype=torch.float64) for name in method.scores}
    policy = logits.log_softmax(1)
    totals = torch.stack([_logps(policy, one).sum() for one in COMPLETIONS])
    greedy = int(totals.argmax())
    chances = totals.detach().exp()
    expected = torch.zeros_like(logits)
    rewards = torch.full((len(COMPLETIONS),), torch.nan, dtype=torch.float64)
    for drawn in product(range(len(COMPLETIONS)), repeat=GROUP):
        batch = _batch(policy.detach(), reference, scores, drawn, greedy)
        run = Run(method.program, batch, method.name)
        found, places = run.per_slot("reward")[:, 0], list(drawn)
        known = rewards[places].where(~rewards[places].isnan(), found)
        if not torch.allclose(known, found, rtol=1e-9, atol=1e-9, equal_nan=True):
            help = (
                "give a reward of the completion alone; what compares it with others is a `baseline` or an `advantage`"
            )
            message = f"the reward of `{method.name}` depends on the other completions of its group"
            raise GroError.plain(message, help=help)
        rewards[places] = found
        now = torch.stack([_padded(_logps(policy, COMPLETIONS[index])) for index in drawn])
        (gradient,) = torch.autograd.grad((run.per_slot("coefficient") * now).sum(), logits, retain_graph=True)
        expected += chances[list(drawn)].prod() * gradient
    (true,) = torch.autograd.grad((totals.exp() * rewards).sum(), logits)
    return Bias(expected, true)


def _logps(policy: Tensor, completion: tuple[int, ...]) -> Tensor:
    return torch.stack([policy[PREFIXES.index(completion[:place]), token] for place, token in enumerate(completion)])


def _padded(values: Tensor) -> Tensor:
    return torch.cat([values, values.new_zeros(2 - values.numel())])


def _batch(policy: Tensor, reference: Tensor, scores: dict[str, Tensor], drawn: tuple[int, ...], greedy: int) -> Batch:
    now = torch.stack([_padded(_logps(policy, COMPLETIONS[index])) for index in drawn])
    places = list(drawn)
    return Batch(
        mask=torch.tensor([[True, len(COMPLETIONS[index]) == 2] for index in drawn]),
        group=torch.zeros(len(drawn), dtype=torch.long),
        logp=now,
        logp_old=now,
        logp_sampler=now,
        logp_ref=torch.stack([_padded(_logps(reference, COMPLETIONS[index])) for index in drawn]),
        entropy=torch.ones_like(now),
        demonstration=torch.zeros(len(drawn), dtype=torch.float64),
        scores={name: values[places] for name, values in scores.items()},
        greedy_scores={name: values[greedy].expand(len(drawn)) for name, values in scores.items()},
    )
