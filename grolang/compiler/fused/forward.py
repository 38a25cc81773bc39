"""Log-probs without gradient: 2NDV."""

from __future__ import annotations

from torch import Tensor

from . import launch
from .exact import exact
from .head import Head
from .rows import Rows
from .sweep import Sweep, check, row_chunks


@exact
def forward(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    *,
    entropy: bool = False,
    budget: int | None = None,
    kernels: bool = False,
) -> Rows:
    """logp_i = log softmax(logits_i)[y_i], lse_i = log Σ_v exp(logits_iv), entropy_i = −Σ_v p_iv log p_iv.

    hidden [N, D] are the states of valid tokens only, targets [N] their tokens. All results [N] are fp32
    (fp64 for fp64 inputs). One chunk of logits lives at a time, in one buffer of at most `budget` bytes (one
    row at least; below about 256 rows a chunk the matrix products lose speed). With `kernels`, on CUDA, logits are
    reduced where they are formed and never written.
    """
    if kernels and launch.usable(hidden, head.weight):
        check(hidden, head, targets)
        found = launch.reduced(hidden, head, targets)
        return found if entropy else found._replace(entropy=None)
    chunks = row_chunks(hidden, head, budget)
    sweep = Sweep(hidden, head, targets, chunks, entropy=entropy)
    for rows in chunks:
        sweep.read_log_probs(rows)
    return sweep.seen()


def logps(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    *,
    entropy: bool = False,
    budget: int | None = None,
    kernels: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """(logp [N], entropy [N] or None) of `forward`."""
    rows = forward(hidden, head, targets, entropy=entropy, budget=budget, kernels=kernels)
    return rows.logp, rows.entropy
