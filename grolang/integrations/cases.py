"""The batches that every peer is run on: seeded, smallest first, in the shapes that all of them accept.

Completions begin in slot 0 and have no holes, groups stand together and have one size, and no row is padding. Log-probs
are eighths, so that clip bounds are passed on both sides and never met.
"""

from __future__ import annotations

import torch
from torch import Tensor

from grolang.compiler.batch import Batch

#: groups, rows in each, slots; the first batch that tells two losses apart is the smallest one
SHAPES = ((1, 2, 1), (1, 2, 2), (2, 2, 2), (1, 3, 3), (2, 3, 4), (2, 4, 3), (2, 4, 5), (2, 2, 5))
#: the shape that is cut into two micro-batches
CUT = (2, 4, 5)
#: of every vocabulary
VOCABULARY = 128
#: what dr_grpo divides by
LENGTH = 8


def cases(kind: str) -> list[Batch]:
    """The batches for a kind of data."""
    return [case(kind, shape, seed) for seed, shape in enumerate(SHAPES)]


def case(kind: str, shape: tuple[int, int, int], seed: int) -> Batch:
    """One batch in float64; for pairs a group is a pair, and unpaired rows belong to nothing."""
    generator = torch.Generator().manual_seed(seed)
    groups, size, slots = shape
    if kind == "preference":
        groups, size = groups * size // 2, 2
    rows = groups * size
    lengths = torch.randint(1, slots + 1, (rows,), generator=generator)
    lengths[0] = slots

    def draw(low: int, high: int, *sizes: int) -> Tensor:
        return torch.randint(low, high + 1, sizes or (rows, slots), generator=generator).double()

    def beside(logp: Tensor) -> Tensor:
        """Log-probs near others: most within the usual clip bounds or a little outside, some far away."""
        near, far = draw(-5, 5) / 16, draw(-2, 2) * 1.5
        return (logp + torch.where(draw(0, 9) < 8, near, far)).clamp(max=-1 / 32)

    logp = -draw(2, 40) / 8
    group = torch.arange(groups).repeat_interleave(size)
    label = torch.where(torch.arange(rows) % 2 == 0, 1.0, -1.0) if kind == "preference" else draw(0, 1, rows) * 2 - 1
    if kind == "unpaired":
        label[:2] = torch.tensor([1.0, -1.0])
    scores = draw(-2, 4, rows) / 4
    scores[:2] = torch.tensor([0.25, 1.0])
    scores[size : 2 * size if seed == 2 else size] = 0.5  # a group without spread
    other = -draw(2, 40) / 8
    return Batch(
        mask=torch.arange(slots) < lengths[:, None],
        group=group,
        label=label,
        demonstration=torch.zeros(rows).double(),
        logp=logp,
        logp_old=beside(logp),
        logp_ref=beside(logp),
        logp_sampler=beside(logp),
        entropy=entropy(logp),
        scores={"correct": scores},
        greedy_scores={"correct": (draw(-2, 4, groups) / 4)[group]},
        mismatched=Batch(mask=torch.arange(slots) < draw(1, slots, rows)[:, None], logp=other, logp_ref=beside(other)),
    )


def on_policy(batch: Batch) -> Batch:
    """The same before the first update: logp_old = logp."""
    return batch.replace(logp_old=batch.logp)


def logits(logp: Tensor, target: Tensor) -> Tensor:
    """[…, V] whose log-softmax is `logp` at the target; the other tokens share the rest equally."""
    rest = torch.log(-torch.expm1(logp)) - torch.log(torch.tensor(VOCABULARY - 1.0))
    spread = rest[..., None].expand(*logp.shape, VOCABULARY)
    return spread.scatter(-1, target[..., None], logp[..., None])


def entropy(logp: Tensor) -> Tensor:
    """Of the distribution that `logits` makes, in nats."""
    p = logp.exp()
    return -p * logp - (1 - p) * (torch.log(-torch.expm1(logp)) - torch.log(torch.tensor(VOCABULARY - 1.0)))
