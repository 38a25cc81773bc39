"""TRL's losses, each with the method that should equal it; trainers.py runs them."""

from __future__ import annotations

from grolang.integrations.peer import Loss, Peer, row
from grolang.integrations.trainers import known, under


def _row(name: str, compared: str, *changes: str, **words: str) -> Loss:
    """A row; the call that is its name is what is run."""
    return row(name, under(name), compared, *changes, **words)


_STD = "σ_g = sample_std(reward over group) + 0.0001"
_SCALED = "advantage = (reward - baseline) / (sample_std(reward over group) + 0.0001)"
_NLL = "penalty = -logp * sum((label > 0) over batch) / sum(length * (label > 0) over batch) if label > 0 else 0"
_MEAN = "aggregate = mean over tokens, sum over group, mean over groups"
_LOGRATIO = "ratio = sum(logp - logp_ref over tokens)"
_RATIO = (
    "measure = sum(logp - logp_old over tokens)",
    "omega(z) = 0 if (exp(z) > 1.2 if advantage > 0 else exp(z) < 0.8) else exp(z)",
)

_GRPO = (
    _row(
        "GRPOConfig()",
        "dapo epsilon=0.2 epsilon_high=0.2",
        _STD,
        trap="loss_type is dapo; the upper clip is epsilon, 0.2, where DAPO's is 0.28",
    ),
    _row('GRPOConfig(loss_type="dapo", epsilon_high=0.28)', "dapo", _STD),
    _row(
        'GRPOConfig(loss_type="grpo")',
        "grpo beta=0",
        _STD,
        trap="the spread divides by N − 1, and 0.0001 is added to it",
    ),
    _row('GRPOConfig(loss_type="grpo", scale_rewards="none")', "grpo beta=0", "advantage = reward - baseline"),
    _row(
        "GRPOConfig(beta=0.04)",
        "dapo epsilon=0.2 epsilon_high=0.2",
        _STD,
        "penalty = 0.04 * (exp(logp_ref - logp_old) - exp(logp - logp_old) * (logp_ref - logp + 1))",
        trap="the KL is multiplied by the ratio, which is differentiated too",
    ),
    _row(
        'GRPOConfig(loss_type="grpo", scale_rewards="batch")',
        "grpo beta=0",
        "advantage = (reward - baseline) / (sample_std(reward over batch) + 0.0001)",
        note="the spread is that of the batch's raw rewards, not of the centred ones",
    ),
    _row(
        'GRPOConfig(loss_type="grpo", multi_objective_aggregation="normalize_then_sum")',
        "grpo beta=0",
        "centred = (reward - baseline) / (sample_std(reward over group) + 0.0001)",
        "advantage = (centred - mean(centred over batch)) / (sample_std(centred over batch) + 0.0001)",
        note="scaled twice, by the group and by the batch",
    ),
    _row(
        'GRPOConfig(loss_type="grpo", beta=0.04)',
        "grpo_k3_weighted",
        _STD,
        trap="the KL is multiplied by the ratio, which is differentiated too; use_bias_correction_kl=False is GRPO's",
    ),
    _row('GRPOConfig(loss_type="grpo", beta=0.04, use_bias_correction_kl=False)', "grpo", _STD),
    _row(
        'GRPOConfig(loss_type="grpo", delta=2.0)',
        "grpo beta=0",
        _STD,
        "omega(z) = 0 if (exp(z) > 1.2 if advantage > 0 else exp(z) < 0.8 or exp(z) > 2) else exp(z)",
    ),
    _row(
        'GRPOConfig(loss_type="grpo", importance_sampling_level="sequence")',
        "gspo epsilon=0.2 epsilon_high=0.2",
        _STD,
        trap="GSPO's clips are 0.0003 and 0.0004, the default of epsilon is 0.2",
    ),
    _row('GRPOConfig(loss_type="bnpo")', "bnpo beta=0", _STD, note="the mean is over the tokens of a micro-batch"),
    _row(
        'GRPOConfig(loss_type="dr_grpo")',
        "dr_grpo max_length=8",
        _SCALED,
        trap='still divides by the spread, which Dr. GRPO removes; scale_rewards="none" mends it',
    ),
    _row('GRPOConfig(loss_type="dr_grpo", scale_rewards="none")', "dr_grpo max_length=8"),
    _row(
        'GRPOConfig(loss_type="cispo")',
        "cispo",
        _STD,
        "omega(z) = min(exp(z), 0.2)",
        trap="epsilon_high bounds the ratio itself, and its default is 0.2: in the first update every weight is 0.2",
    ),
    _row('GRPOConfig(loss_type="cispo", epsilon_high=5.0)', "cispo epsilon_high=4", _STD),
    _row('GRPOConfig(loss_type="sapo")', "sapo", _STD),
    _row(
        'GRPOConfig(loss_type="luspo")',
        "grpo beta=0",
        _STD,
        "aggregate = sum over tokens, mean over sequences",
        note="ratios are per token by default, LUSPO's are per completion",
    ),
    _row(
        'GRPOConfig(loss_type="luspo", importance_sampling_level="sequence")',
        "luspo epsilon=0.2 epsilon_high=0.2",
        _STD,
    ),
    _row('GRPOConfig(loss_type="vespo")', "vespo", _STD),
    _row(
        'GRPOConfig(loss_type="grpo", off_policy_mask_threshold=0.1)',
        "grpo beta=0",
        _STD,
        "credit = advantage >= 0 or mean(logp_old - logp over tokens) <= 0.1",
    ),
    _row(
        'GRPOConfig(loss_type="grpo", top_entropy_quantile=0.5)',
        "grpo beta=0",
        _STD,
        "credit = entropy >= quantile(entropy, 0.5 over batch)",
        note="the quantile is that of a micro-batch",
    ),
    _row("GMPOConfig()", "gmpo", _STD),
)

_RLOO = (
    _row("RLOOConfig(beta=0.0)", "rloo", *_RATIO, trap="PPO's clip, on the ratio of whole completions"),
    _row(
        "RLOOConfig()",
        "rloo",
        *_RATIO,
        "reward = correct - 0.05 * sum(logp_old - logp_ref over tokens)",
        note="the reward is minus 0.05 times the log-ratio to the reference",
    ),
    _row(
        "RLOOConfig(beta=0.0, normalize_advantages=True)",
        "rloo",
        *_RATIO,
        "apart = reward - baseline",
        "advantage = (apart - mean(apart over batch)) / (sample_std(apart over batch) + 0.0001)",
    ),
)

#: with beta = 0.5, so that both ends of every loss are met
_DPO = (
    _row('DPOConfig(loss_type="sigmoid", beta=0.5)', "dpo beta=0.5"),
    _row(
        'DPOConfig(loss_type="sigmoid", beta=0.5, label_smoothing=0.1)',
        "dpo beta=0.5",
        trap="label_smoothing is not used: this is not cdpo",
    ),
    _row('DPOConfig(loss_type="hinge", beta=0.5)', "rso beta=0.5"),
    _row(
        'DPOConfig(loss_type="ipo", beta=0.5)',
        "ipo beta=0.5",
        "measure = mean(logp - logp_ref over tokens)",
        _MEAN,
        trap="log-ratios are averaged over tokens, where the paper sums them",
    ),
    _row('DPOConfig(loss_type="exo_pair", beta=0.5, label_smoothing=0.001)', "exo beta=0.5 epsilon=0.001"),
    _row('DPOConfig(loss_type="nca_pair", beta=0.5)', "nca beta=0.5"),
    _row('DPOConfig(loss_type="robust", beta=0.5, label_smoothing=0.1)', "robust_dpo beta=0.5 epsilon=0.1"),
    _row('DPOConfig(loss_type="bco_pair", beta=0.5)', "dpo beta=0.5", "anchor = 0", note="without BCO's reward shift"),
    _row('DPOConfig(loss_type="sppo_hard", beta=0.5)', "sppo beta=0.5"),
    _row('DPOConfig(loss_type="aot", beta=0.5)', "dpo beta=0.5", beyond="margins are sorted over the micro-batch"),
    _row(
        'DPOConfig(loss_type="aot_unpaired", beta=0.5)',
        "dpo beta=0.5",
        beyond="log-ratios are sorted over the micro-batch",
    ),
    _row('DPOConfig(loss_type="apo_zero", beta=0.5)', "apo_zero beta=0.5"),
    _row('DPOConfig(loss_type="apo_down", beta=0.5)', "apo_down beta=0.5"),
    _row('DPOConfig(loss_type="discopop", beta=0.5, discopop_tau=0.5)', "discopop beta=0.5 tau=0.5"),
    _row(
        'DPOConfig(loss_type="sft", beta=0.5)',
        "dpo beta=0.5",
        "omega(z) = 0",
        "aggregate = sum over batch",
        "penalty = -logp / sum(length * (label > 0) over batch) if label > 0 else 0",
        note="the mean is over the chosen tokens of a micro-batch",
    ),
    _row('DPOConfig(loss_type="sigmoid_norm", beta=0.5)', "dpo_norm beta=0.5"),
    _row(
        'DPOConfig(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 1.0], beta=0.5)',
        "rpo beta=0.5",
        _NLL,
        note="RPO averages the likelihood term within each response",
    ),
    _row(
        'DPOConfig(loss_type="sigmoid", beta=0.5, f_divergence_type="forward_kl")',
        "dpo beta=0.5",
        _LOGRATIO,
        "measure = 1 - exp(-ratio)",
        "credit = exp(-ratio)",
    ),
    _row('DPOConfig(loss_type="sigmoid", beta=0.5, f_divergence_type="js_divergence")', "f_dpo beta=0.5"),
    _row(
        'DPOConfig(loss_type="sigmoid", beta=0.5, f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.5)',
        "dpo beta=0.5",
        _LOGRATIO,
        "measure = 2 - 2 * exp(-0.5 * ratio)",
        "credit = exp(-0.5 * ratio)",
    ),
    _row(
        'DPOConfig(loss_type="sigmoid", beta=0.5, ld_alpha=0.5)',
        "dpo beta=0.5",
        "credit = 1 if position < min(length over group) else 0.5",
        "measure = sum(credit * (logp - logp_ref) over tokens)",
    ),
    _row(
        'DPOConfig(loss_type="sigmoid", beta=0.5, use_weighting=True)',
        "dpo beta=0.5",
        beyond="weights need the sum of squared probabilities at each token",
    ),
)

_ONLINE = (
    _row(
        'OnlineDPOConfig(loss_type="sigmoid", beta=0.5)',
        "dpo beta=0.5",
        trap="micro-batches are added up, not averaged: gradient_accumulation_steps multiplies the gradient",
    ),
    _row(
        'OnlineDPOConfig(loss_type="ipo", beta=0.5)',
        "ipo beta=0.5",
        trap="log-ratios are summed, as the paper has it; DPOConfig averages them",
    ),
)

_KTO = (
    _row('KTOConfig(loss_type="kto", beta=0.5)', "kto beta=0.5", note="the KL is that of a micro-batch"),
    _row(
        'KTOConfig(loss_type="kto", beta=0.5, desirable_weight=2.0, undesirable_weight=0.5)',
        "kto beta=0.5 desirable=2 undesirable=0.5",
    ),
    _row('KTOConfig(loss_type="apo_zero_unpaired", beta=0.5)', "kto beta=0.5", "anchor = 0"),
)

_CPO = (
    _row(
        'CPOConfig(loss_type="sigmoid", beta=0.5)',
        "cpo beta=0.5",
        _NLL,
        trap="the likelihood term is a mean over the chosen tokens of a micro-batch, not a sum within each response",
    ),
    _row('CPOConfig(loss_type="sigmoid", beta=0.5, cpo_alpha=0.0)', "cpl beta=0.5 gamma=1"),
    _row('CPOConfig(loss_type="hinge", beta=0.5, cpo_alpha=0.0)', "slic delta=2 nll=0"),
    _row(
        'CPOConfig(loss_type="ipo", beta=0.5, cpo_alpha=0.0)',
        "ipo beta=0.5",
        "measure = mean(logp over tokens)",
        _MEAN,
        trap="log-probs are averaged over tokens, and there is no reference",
    ),
    _row(
        'CPOConfig(loss_type="simpo", beta=2.0, simpo_gamma=1.0)',
        "simpo",
        "penalty = -logp * length * sum((label > 0) over batch) / sum(length * (label > 0) over batch) "
        "if label > 0 else 0",
        trap="cpo_alpha is 1 by default and adds CPO's likelihood term, which SimPO does not have",
    ),
    _row('CPOConfig(loss_type="simpo", beta=2.0, simpo_gamma=1.0, cpo_alpha=0.0)', "simpo"),
    _row(
        'CPOConfig(loss_type="simpo", beta=2.0, simpo_gamma=1.0, cpo_alpha=0.0, alpha=0.5)',
        "simpo",
        "average = mean(logp over tokens)",
        "measure = 2 - 2 * exp(-0.5 * average)",
        "credit = exp(-0.5 * average)",
        note="AlphaPO",
    ),
)

_TPO = (
    _row('TPOConfig(loss_type="sigmoid", beta=0.5, tpo_alpha=0.0)', "cpl beta=0.5 gamma=1"),
    _row('TPOConfig(loss_type="hinge", beta=0.5, tpo_alpha=0.0)', "slic delta=2 nll=0"),
    _row(
        'TPOConfig(loss_type="ipo", beta=0.5, tpo_alpha=0.0)',
        "ipo beta=0.5",
        "measure = mean(logp over tokens)",
        _MEAN,
        note="log-probs are averaged over tokens, and there is no reference",
    ),
    _row('TPOConfig(loss_type="tpo-l", beta=2.0, tpo_l_gamma=1.0, tpo_alpha=0.0)', "simpo"),
)

_ORPO = (
    _row(
        "ORPOConfig(beta=0.1)",
        "orpo lambda=0.1",
        "predicted = sum((length + 1) * (label > 0) over batch)  # a prompt's first token is not predicted",
        "penalty = -logp * length * sum((label > 0) over batch) / predicted if label > 0 else 0",
        trap="the likelihood term is a mean over all tokens of the micro-batch, those of the prompts among them",
    ),
)


PEER = Peer(
    name="trl",
    about="`training_step` of TRL's trainers, with a model that gives the log-probs of a batch",
    tolerance=1e-5,
    losses={
        "GRPO": _GRPO,
        "RLOO": _RLOO,
        "DPO": _DPO,
        "Online DPO": _ONLINE,
        "KTO": _KTO,
        "CPO": _CPO,
        "TPO": _TPO,
        "ORPO": _ORPO,
    },
    recurring={_STD: "N − 1, plus 0.0001", _NLL: "likelihood per token of the batch"},
    there=tuple(known()),
    left_out={
        "entropy_coef": "an entropy bonus: the entropy is a number in the language, without a gradient",
        "tpo_alpha": "the likelihood of a gold response, which stands beside the pair",
        "use_vllm": "weights against the sampling engine, which need vLLM",
        "tool masks, truncated completions, several rewards, other trainers of trl.experimental": "not run",
    },
)
