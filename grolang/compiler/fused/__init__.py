"""Log-probs from hidden states, and their gradients, without [N, V] logits.

The engine knows rows and numbers, no methods: hidden states [N, D] of valid tokens, their targets [N], and
coefficients c [N] in front of ∇logp. All gradients are those of −Σ c·logp with c held fixed.

    c needs                         pass                          cost (N·D·V), frozen head
    no gradient is asked            logps                         2              2
    nothing, or its row's own logp  single_pass                   6              4
    its unit's logp, c = s · w      factored_pass                 6              4
    its unit's logp, any c          factored_pass(weights=None)   6 to 8         4

6 to 8: a unit that the tile does not hold costs 2 more for what is not kept. Rows with c = 0 cost 2.
"""

from .attach import attach
from .factored import KEEP, factored_pass
from .forward import forward, logps
from .head import Head
from .rows import Rows
from .single import Pass, single_pass
from .sweep import BUDGET, Gradients

__all__ = [
    "BUDGET",
    "KEEP",
    "Gradients",
    "Head",
    "Pass",
    "Rows",
    "attach",
    "factored_pass",
    "forward",
    "logps",
    "single_pass",
]
