"""Log-probs from hidden states, and their gradients, without [N, V] logits.

The engine knows rows and numbers, no methods: hidden states [N, D] of valid tokens, their targets [N], and
coefficients c [N] in front of ∇logp. All gradients are those of −Σ c·logp with c held fixed.

    scope of c                                       pass                              cost (N·D·V)
    no gradient                                      logps                             2
    a row's own logp, or known before                single_pass, attach               6, frozen head 4
    its unit's logp, c = s · w                       factored_pass, attach             6, frozen head 4
    its unit's logp, not factored                    factored_pass(weights=None)       6, a unit beyond the
    budget 8 anything                                         forward, surrogate(known=…)       8
    anything, frozen head                            frozen_logps                      4
"""

from .attach import attach, surrogate
from .factored import factored_pass
from .forward import forward, logps
from .frozen import directions, frozen_logps
from .head import Head
from .recompute import gradients
from .rows import Rows
from .single import Pass, single_pass
from .sweep import BUDGET, Gradients

__all__ = [
    "BUDGET",
    "Gradients",
    "Head",
    "Pass",
    "Rows",
    "attach",
    "directions",
    "factored_pass",
    "forward",
    "frozen_logps",
    "gradients",
    "logps",
    "single_pass",
    "surrogate",
]
