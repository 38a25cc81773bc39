"""The eleven methods' coefficients, derived by hand from the losses that their authors published.

Each function takes one plain batch and returns c [S, T] float64, the method's coefficients:

    c[s, t] = −∂loss/∂logp[s, t]      so that the step's gradient is ĝ = Σ c[s, t] ∇θ log πθ(y_t | y_<t, x)

and 0 where `mask` is off. Nothing here reads a .gro file or imports the compiler: these functions are
what the compiler is judged by. Loops run over sequences, pairs, groups and tokens one at a time, as a
paper writes them.

Axis letters: S sequences, T token slots. Symbols of the docstrings: i a sequence, t one of its tokens, N
the number of sequences, n_i the number of tokens of sequence i, ℓ_it = log πθ(y_it | x_i, y_i,<t)
(`logp`, the one variable that a loss is differentiated in), ℓref and ℓold the same under the reference
and the old policy, and m_i = Σ_t (ℓ_it − ℓref_it), so that ∂m_i/∂ℓ_it = 1.

What is a number, not a function of ℓ: rewards, advantages, the old and the reference policy, KTO's z₀,
group statistics, and in `gro` the whole weight ω. This is as published in each case, and said again where
it matters.

A row whose mask is all off is padding: it is no sequence, whatever stands in its other fields.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Mismatched(TypedDict):
    """For every row i: the completion of the next prompt under prompt i (KTO). All [S, T]."""

    mask: Bools
    logp: Floats
    logp_ref: Floats


class Masked(TypedDict):
    """The one field that every batch has."""

    mask: Bools  # [S, T], on for completion tokens: ragged, may have holes; a row all off is padding


class Batch(Masked, total=False):
    """One optimizer step: a plain dict of arrays. S sequences, T token slots."""

    group: Ints  # [S], prompt ids in no particular order
    logp: Floats  # [S, T]
    logp_old: Floats  # [S, T]
    logp_ref: Floats  # [S, T]
    logp_sampler: Floats  # [S, T]
    entropy: Floats  # [S, T]
    label: Floats  # [S], +1 or −1
    demonstration: Floats  # [S], 1 or 0
    scores: dict[str, Floats]  # each [S]
    greedy_scores: dict[str, Floats]  # each [S], the value of the row's prompt
    mismatched: Mismatched


# ------------------------------------------------------------------------------------------------------------
# The online methods (data prompts): each completion has a score.
# ------------------------------------------------------------------------------------------------------------


def reinforce(batch: Batch, *, score: str = "correct") -> Floats:
    """REINFORCE (Williams, 1992; Eq. 6 of arXiv:2503.19523), no baseline.

    Objective J = E_y~π [R(y)], with ∇J = E[R(y) ∇ log π(y|x)] (the score function), over N completions:

        ĝ = 1/N Σ_i R_i Σ_t ∇ log π(y_it | ·)

    It is the derivative of the loss −1/N Σ_i R_i Σ_t ℓ_it with R_i a number:

        ∂loss/∂ℓ_it = −R_i / N,        c_it = R_i / N.
    """
    rewards = batch["scores"][score]
    sequences = _sequences(batch)
    c = _zeros(batch)
    for i in sequences:
        for t in _tokens(batch, i):
            c[i, t] = rewards[i] / len(sequences)
    return c


def rloo(batch: Batch, *, score: str = "correct") -> Floats:
    """RLOO, REINFORCE leave-one-out (Ahmadian et al., 2024, arXiv:2402.14740, §2; Kool et al., 2019).

    For the k completions of one prompt the published estimator is

        1/k Σ_i [ R(y_i) − 1/(k−1) Σ_{j≠i} R(y_j) ] ∇ log π(y_i | x)

    averaged over prompts. With N completions in all, as many for each prompt, 1/#prompts · 1/k = 1/N;
    with unequal groups each completion still counts the same (1/N). The bracket A_i holds no ℓ, so

        loss = −1/N Σ_i A_i Σ_t ℓ_it,        c_it = A_i / N.

    A prompt with one completion leaves nobody else: ValueError.
    """
    rewards = batch["scores"][score]
    sequences = _sequences(batch)
    c = _zeros(batch)
    for members in _groups(batch):
        if len(members) < 2:
            raise ValueError("rloo: a group of one completion has no others to compare with")
        for i in members:
            others = [float(rewards[j]) for j in members if j != i]
            advantage = rewards[i] - _mean(others)
            for t in _tokens(batch, i):
                c[i, t] = advantage / len(sequences)
    return c


def remax(batch: Batch, *, score: str = "correct") -> Floats:
    """ReMax (Li et al., 2023, arXiv:2310.10505, Algorithm 1): the baseline is the greedy completion's reward.

        ĝ = 1/N Σ_i Σ_t ∇ log π(a_t | x_i, a_<t) · ( r(x_i, a_1:T) − b(x_i) )
        b(x) = r(x, ā),   ā_t ∈ argmax π(·| x, ā_<t)

    b is a reward, a number (no gradient runs through ā):

        loss = −1/N Σ_i (R_i − b_i) Σ_t ℓ_it,        c_it = (R_i − b_i) / N.
    """
    rewards, greedy = batch["scores"][score], batch["greedy_scores"][score]
    sequences = _sequences(batch)
    c = _zeros(batch)
    for i in sequences:
        for t in _tokens(batch, i):
            c[i, t] = (rewards[i] - greedy[i]) / len(sequences)
    return c


def grpo(batch: Batch, *, epsilon: float = 0.2, beta: float = 0.04, score: str = "correct") -> Floats:
    """GRPO with outcome rewards (Shao et al., 2024, arXiv:2402.03300, Eq. 3 with the KL estimate of Eq. 4).

        J = E_q [ 1/G Σ_i 1/|o_i| Σ_t { min( ρ_it A_i, clip(ρ_it, 1−ε, 1+ε) A_i ) − β D_it } ]
        ρ_it = exp(ℓ_it − ℓold_it),      D_it = exp(d_it) − d_it − 1   with d_it = ℓref_it − ℓ_it  ("k3")
        A_i = (r_i − mean(r)) / std(r) over the G completions of the prompt; std divides by G

    The loss is −J. With as many completions for each prompt, the two means are one mean over the N
    completions.

    Step by step, for one token:
      ρ:    ∂ρ/∂ℓ = ρ.
      min:  A > 0: min(ρA, clip A) = A·min(ρ, 1+ε): derivative ρA while ρ ≤ 1+ε, and 0 above (a constant).
            A < 0: min(ρA, clip A) = A·max(ρ, 1−ε): derivative ρA while ρ ≥ 1−ε, and 0 below.
            A = 0: 0.
      D:    ∂D/∂ℓ = −exp(d) + 1, so −β D contributes +β (exp(d) − 1) (as in the paper's Eq. 21).

        c_it = 1/N · 1/n_i · ( ρ_it A_i [not clipped] + β (exp(ℓref_it − ℓ_it) − 1) )

    A group whose rewards are all equal has std 0; it teaches nothing (A = 0) but keeps its KL term.
    """
    rewards = batch["scores"][score]
    logp, logp_old, logp_ref = batch["logp"], batch["logp_old"], batch["logp_ref"]
    sequences = _sequences(batch)
    c = _zeros(batch)
    for members in _groups(batch):
        advantages = _standardised([float(rewards[i]) for i in members])
        for i, advantage in zip(members, advantages, strict=True):
            tokens = _tokens(batch, i)
            for t in tokens:
                push = _clipped_push(logp[i, t] - logp_old[i, t], advantage, epsilon)
                pull = beta * math.expm1(logp_ref[i, t] - logp[i, t])
                c[i, t] = (push + pull) / len(tokens) / len(sequences)
    return c


def reinforce_pp(batch: Batch, *, epsilon: float = 0.2, beta: float = 0.01, score: str = "correct") -> Floats:
    """REINFORCE++ (Hu, 2025, arXiv:2501.03262): PPO's clip without a critic, the KL as a reward per token.

        r_it = [t is the last token] r(x_i, y_i) − β KL_it
        KL_it = log( πold(a_t|s_t) / πref(a_t|s_t) ) = ℓold_it − ℓref_it
        A_it = Σ_{k ≥ t} r_ik = r(x_i, y_i) − β Σ_{k ≥ t} KL_ik
        Â_it = ( A_it − µ ) / σ      µ and σ over the batch's M = Σ_i n_i tokens; σ divides by M
        J    = E_t [ min( ρ_it Â_it, clip(ρ_it, 1−ε, 1+ε) Â_it ) ]      E_t: the mean over those M tokens

    The KL holds the OLD policy, so A and Â are numbers. The derivative of the min is GRPO's (see `grpo`):

        c_it = 1/M · ρ_it Â_it [not clipped].

    Where all A_it are equal, σ is 0 and Â = 0. (The sums run over completion tokens only: a slot that the
    mask drops between two of them is not a step of the episode.)
    """
    rewards = batch["scores"][score]
    logp, logp_old, logp_ref = batch["logp"], batch["logp_old"], batch["logp_ref"]
    places: list[tuple[int, int]] = []
    returns: list[float] = []
    for i in _sequences(batch):
        tokens = _tokens(batch, i)
        for first, t in enumerate(tokens):
            kl_to_go = math.fsum(logp_old[i, k] - logp_ref[i, k] for k in tokens[first:])
            places.append((i, t))
            returns.append(float(rewards[i]) - beta * kl_to_go)
    c = _zeros(batch)
    for (i, t), advantage in zip(places, _standardised(returns), strict=True):
        c[i, t] = _clipped_push(logp[i, t] - logp_old[i, t], advantage, epsilon) / len(places)
    return c


def gro(batch: Batch, *, beta: float = 0.1, tau: float = 1.0, score: str = "correct") -> Floats:
    """GRO (Cai, 2025, arXiv:2503.19523, Eq. 36) with ω(z) = 2σ(−z) and υ(a) = tanh(a).

        ĝ = 1/N Σ_i Σ_t ω( α_i (log π^sg(y_i) − ε*_i) ) υ(A_i / τ) ∇ log π(y_it | ·)

    with log π^sg(y_i) − measured against the reference − m_i = Σ_t (ℓ_it − ℓref_it), the anchor ε* = the
    mean of m over the completions of the prompt (i's own included), A_i = (r_i − mean r)/std r in the
    group (std divides by G; 0 where all rewards are equal), α_i = β sign(A_i). Everything before ∇ is a
    number (sg), so

        c_it = 1/N · 2 σ( −β sign(A_i) (m_i − ε*) ) · tanh(A_i / τ).

    The loss whose gradient this is, with ε* and A held, comes from integrating ω in m. As d/dm log σ(αm)
    = α σ(−αm),

        loss = −1/N Σ_{i: A_i ≠ 0} w_i log σ( α_i (m_i − ε*) ),      w = 2 tanh(A/τ)/α = 2 tanh(|A|/τ)/β ≥ 0

    a logistic regression of "is good" on m − ε*, weighted by the advantage's size. Check: for A > 0, c >
    0 and falls from 2·tanh to 0 as m_i rises above ε*; for A < 0, c < 0 and fades as m_i falls below ε*.
    """
    rewards, logp, logp_ref = batch["scores"][score], batch["logp"], batch["logp_ref"]
    sequences = _sequences(batch)
    c = _zeros(batch)
    for members in _groups(batch):
        advantages = _standardised([float(rewards[i]) for i in members])
        m = {i: math.fsum(logp[i, t] - logp_ref[i, t] for t in _tokens(batch, i)) for i in members}
        anchor = _mean(list(m.values()))
        for i, advantage in zip(members, advantages, strict=True):
            alpha = beta * float(np.sign(advantage))
            omega = 2.0 * _sigmoid(-alpha * (m[i] - anchor))
            for t in _tokens(batch, i):
                c[i, t] = omega * math.tanh(advantage / tau) / len(sequences)
    return c


# ------------------------------------------------------------------------------------------------------------
# The offline methods: pairs, labelled completions, demonstrations.
# ------------------------------------------------------------------------------------------------------------


def dpo(batch: Batch, *, beta: float = 0.1) -> Floats:
    """DPO (Rafailov et al., 2023, arXiv:2305.18290, Eq. 7).

        L = −E_(x, y_w, y_l) [ log σ( β log π(y_w|x)/πref(y_w|x) − β log π(y_l|x)/πref(y_l|x) ) ]
          = −1/P Σ_pairs log σ(h),        h = β (m_w − m_l)

    Step by step: d/dh log σ(h) = σ(−h);  ∂h/∂ℓ_wt = +β;  ∂h/∂ℓ_lt = −β. Hence ∂L/∂ℓ_wt = −β σ(−h)/P and

        c_wt = + β σ(−h) / P        for every token of the chosen response
        c_lt = − β σ(−h) / P        for every token of the rejected one: the SAME weight, by minus the margin.

    (The paper prints ∇L as −β E[σ(r̂(y_l) − r̂(y_w)) (∇ log π(y_w) − ∇ log π(y_l))], after Eq. 7: the same.)
    """
    logp, logp_ref = batch["logp"], batch["logp_ref"]
    pairs = _pairs(batch)
    c = _zeros(batch)
    for won, lost in pairs:
        m_w = math.fsum(logp[won, t] - logp_ref[won, t] for t in _tokens(batch, won))
        m_l = math.fsum(logp[lost, t] - logp_ref[lost, t] for t in _tokens(batch, lost))
        weight = beta * _sigmoid(-beta * (m_w - m_l))
        for t in _tokens(batch, won):
            c[won, t] = weight / len(pairs)
        for t in _tokens(batch, lost):
            c[lost, t] = -weight / len(pairs)
    return c


def cpl(batch: Batch, *, beta: float = 0.1, gamma: float = 1.0) -> Floats:
    """CPL (Hejna et al., 2023, arXiv:2310.13639, Eq. 5; no conservative bias). The paper's α is `beta`.

        L = −E_(σ+, σ−) [ log ( e^a / (e^a + e^b) ) ],   a = Σ_{σ+} γ^t α log π(a_t|s_t),   b = the same of σ−
          = −1/P Σ_pairs log σ(h),   h = β (D_w − D_l),   D_i = Σ_t γ^p(t) ℓ_it

    with p(t) the number of completion tokens before t (0 for the first), since e^a / (e^a + e^b) = σ(a − b).
    There is no reference. ∂h/∂ℓ_wt = β γ^p(t), ∂h/∂ℓ_lt = −β γ^p(t), so

        c_wt = + β γ^p(t) σ(−h) / P,        c_lt = − β γ^p(t) σ(−h) / P.
    """
    logp = batch["logp"]
    pairs = _pairs(batch)
    c = _zeros(batch)
    for won, lost in pairs:
        d_w = math.fsum(gamma**p * logp[won, t] for p, t in enumerate(_tokens(batch, won)))
        d_l = math.fsum(gamma**p * logp[lost, t] for p, t in enumerate(_tokens(batch, lost)))
        weight = beta * _sigmoid(-beta * (d_w - d_l))
        for p, t in enumerate(_tokens(batch, won)):
            c[won, t] = gamma**p * weight / len(pairs)
        for p, t in enumerate(_tokens(batch, lost)):
            c[lost, t] = -(gamma**p) * weight / len(pairs)
    return c


def kto(batch: Batch, *, beta: float = 0.1, desirable: float = 1.0, undesirable: float = 1.0) -> Floats:
    """KTO (Ethayarajh et al., 2024, arXiv:2402.01306, Eq. 8).

        L = E_(x, y) [ λ_y − v(x, y) ]          r_θ(x, y) = log π(y|x)/πref(y|x) = m  (the WHOLE completion)
        v = λ_D σ( β (r_θ − z₀) ) for a desirable y,   λ_U σ( β (z₀ − r_θ) ) for an undesirable one
        z₀ = max( 0, 1/N Σ_i log π(y_{i+1 mod N}|x_i)/πref(y_{i+1 mod N}|x_i) ), by the paper a constant

    With y ∈ {+1, −1} the label and λ its weight: L = 1/N Σ_i λ_i (1 − σ(u_i)), u_i = β y_i (m_i − z₀). Then
    σ'(u) = σ(u) σ(−u), ∂u_i/∂ℓ_it = β y_i, hence ∂L/∂ℓ_it = −λ_i β y_i σ(u_i) σ(−u_i)/N and

        c_it = λ_i β y_i σ(u_i) σ(−u_i) / N.

    N counts desirable and undesirable completions together. Both σ's are positive, so c has the sign of y.
    """
    logp, logp_ref, label = batch["logp"], batch["logp_ref"], batch["label"]
    other = batch["mismatched"]
    sequences = _sequences(batch)
    log_ratios: list[float] = []
    for i in sequences:
        tokens = [t for t in range(other["mask"].shape[1]) if other["mask"][i, t]]
        log_ratios.append(math.fsum(other["logp"][i, t] - other["logp_ref"][i, t] for t in tokens))
    z0 = max(0.0, _mean(log_ratios))
    c = _zeros(batch)
    for i in sequences:
        y = float(label[i])
        weight = desirable if y > 0 else undesirable
        m = math.fsum(logp[i, t] - logp_ref[i, t] for t in _tokens(batch, i))
        u = beta * y * (m - z0)
        for t in _tokens(batch, i):
            c[i, t] = weight * beta * y * _sigmoid(u) * _sigmoid(-u) / len(sequences)
    return c


def awr(batch: Batch, *, beta: float = 1.0, weight_max: float = 20.0) -> Floats:
    """AWR (Peng et al., 2019, arXiv:1910.00177, Eq. 8; Eq. 33 of arXiv:2503.19523) on whole completions.

        π_{k+1} = argmax_π E_(s, a)~D [ log π(a|s) exp( (R_{s,a} − V(s)) / β ) ],   the weight cut at ω_max

    For a labelled completion R_i = label (±1). The paper's V(s) is a learnt value per state; where each
    prompt is seen once, one number takes its place: V = the mean of R over the batch (a departure, as in
    awr.gro). The weight is a number:

        loss = −1/N Σ_i w_i Σ_t ℓ_it,   w_i = min( exp((R_i − V)/β), ω_max ),      c_it = w_i / N > 0.
    """
    label = batch["label"]
    sequences = _sequences(batch)
    value = _mean([float(label[i]) for i in sequences])
    c = _zeros(batch)
    for i in sequences:
        exponent = (float(label[i]) - value) / beta
        weight = weight_max if exponent >= math.log(weight_max) else math.exp(exponent)
        for t in _tokens(batch, i):
            c[i, t] = weight / len(sequences)
    return c


def sft(batch: Batch) -> Floats:
    """Supervised fine-tuning (Ouyang et al., 2022, arXiv:2203.02155, stage one): maximum likelihood.

    The mean negative log-likelihood of the batch's M = Σ_i n_i tokens, which all weigh the same:

        loss = −1/M Σ_i Σ_t ℓ_it,        c_it = 1 / M.
    """
    sequences = _sequences(batch)
    count = sum(len(_tokens(batch, i)) for i in sequences)
    c = _zeros(batch)
    for i in sequences:
        for t in _tokens(batch, i):
            c[i, t] = 1.0 / count
    return c


GRADIENTS: dict[str, Callable[..., Floats]] = {
    "reinforce": reinforce,
    "rloo": rloo,
    "grpo": grpo,
    "remax": remax,
    "reinforce_pp": reinforce_pp,
    "dpo": dpo,
    "kto": kto,
    "cpl": cpl,
    "awr": awr,
    "gro": gro,
    "sft": sft,
}
"""Every method's function by the name of its .gro file."""


# ------------------------------------------------------------------------------------------------------------
# Who is in the batch, and four small formulas.
# ------------------------------------------------------------------------------------------------------------


def _zeros(batch: Batch) -> Floats:
    """No coefficient anywhere, [S, T]."""
    return np.zeros(batch["mask"].shape, dtype=np.float64)


def _tokens(batch: Batch, i: int) -> list[int]:
    """The slots of sequence i's completion tokens, in order."""
    return [t for t in range(batch["mask"].shape[1]) if batch["mask"][i, t]]


def _sequences(batch: Batch) -> list[int]:
    """The rows that are sequences: those with a token. The others are padding."""
    return [i for i in range(batch["mask"].shape[0]) if _tokens(batch, i)]


def _groups(batch: Batch) -> list[list[int]]:
    """The sequences of each prompt, prompts in order of appearance."""
    members: dict[int, list[int]] = {}
    for i in _sequences(batch):
        members.setdefault(int(batch["group"][i]), []).append(i)
    return list(members.values())


def _pairs(batch: Batch) -> list[tuple[int, int]]:
    """(chosen, rejected) of each prompt; ValueError where a prompt has not exactly one of each."""
    pairs: list[tuple[int, int]] = []
    for members in _groups(batch):
        chosen = [i for i in members if batch["label"][i] > 0]
        rejected = [i for i in members if batch["label"][i] < 0]
        if len(members) != 2 or len(chosen) != 1 or len(rejected) != 1:
            raise ValueError("a preference pair is one chosen and one rejected response")
        pairs.append((chosen[0], rejected[0]))
    return pairs


def _mean(values: Sequence[float]) -> float:
    """Σ/n; of equal values exactly that value, which a rounded Σ/n is not (three times 0.1)."""
    return values[0] if min(values) == max(values) else math.fsum(values) / len(values)


def _standardised(values: Sequence[float]) -> list[float]:
    """(x − mean)/std with the std that divides by n; all 0 where the values are all equal."""
    if min(values) == max(values):
        return [0.0] * len(values)
    centre = _mean(values)
    spread = math.sqrt(math.fsum((x - centre) ** 2 for x in values) / len(values))
    return [(x - centre) / spread for x in values]


def _clipped_push(log_ratio: float, advantage: float, epsilon: float) -> float:
    """d/dℓ of min(ρA, clip(ρ, 1−ε, 1+ε) A) at ρ = exp(log_ratio): ρA, or 0 where the min is a constant."""
    ratio = math.exp(log_ratio)
    if advantage > 0 and ratio > 1 + epsilon:
        return 0.0
    if advantage < 0 and ratio < 1 - epsilon:
        return 0.0
    return ratio * advantage


def _sigmoid(x: float) -> float:
    """σ(x) = 1/(1 + e^−x), without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
