"""verl: its registered advantage estimators, then the actor's own `ppo_loss`, backward for each micro-batch.

The engines run `ppo_loss` on each micro-batch and add the gradients without another divisor, so that is done here.
"""

from __future__ import annotations

import ast
import warnings
from typing import Any

import torch
from tensordict import TensorDict

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from verl.trainer.config import AlgoConfig, RolloutCorrectionConfig
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY, get_adv_estimator_fn
    from verl.workers.config import ActorConfig, PolicyLossConfig
    from verl.workers.utils.losses import ppo_loss

from grolang.compiler.batch import Batch
from grolang.integrations.peer import Gradient, Loss, Peer, Run, row


def _run(adv_estimator: str, norm_adv_by_std_in_grpo: bool = True, **settings: Any) -> Run:
    """An advantage estimator and the actor's settings, under the names of verl's command line.

    With `loss_mode=bypass_mode` the loss itself corrects for the sampler; else `rollout_is` makes weights beforehand.
    """

    def of(config: Any) -> dict[str, Any]:
        return {name: settings.pop(name) for name in config.__dataclass_fields__.keys() & settings.keys()}

    policy, correction = of(PolicyLossConfig), of(RolloutCorrectionConfig)
    bypass = policy.get("loss_mode") == "bypass_mode"
    if bypass:
        policy["rollout_correction"] = RolloutCorrectionConfig(**correction)

    def run(batch: Batch, parts: int) -> Gradient:
        assert batch.logp is not None and batch.logp_old is not None and batch.logp_ref is not None
        rows = batch.mask.shape[0]
        fixed: dict[str, Any] = {"strategy": "fsdp", "rollout_n": 1, "ppo_micro_batch_size_per_gpu": rows // parts}
        config = ActorConfig(**fixed, policy_loss=PolicyLossConfig(**policy), **settings)
        advantages = _advantages(batch, adv_estimator, norm_adv_by_std_in_grpo)
        logp = batch.logp.clone().requires_grad_()
        fields = {
            "response_mask": batch.mask.long(),
            "old_log_probs": batch.logp_old,
            "ref_log_prob": batch.logp_ref,
            "advantages": advantages,
        }
        if correction and not bypass:
            fields["rollout_is_weights"] = _weights(batch, RolloutCorrectionConfig(**correction))
        step = rows // parts
        torch.manual_seed(0)
        for start in range(0, rows, step):
            part = slice(start, start + step)
            loss, _ = ppo_loss(config, {"log_probs": _flat(logp[part], batch.mask[part])}, _data(fields, part, batch))
            loss.backward()
        assert logp.grad is not None
        return Gradient(logp.grad * batch.mask, float((logp.grad * ~batch.mask).abs().max()))

    return run


def _advantages(batch: Batch, estimator: str, std: bool) -> torch.Tensor:
    """[S, T]: the rewards stand on the last tokens."""
    rows = torch.arange(batch.mask.shape[0])
    assert batch.group is not None
    rewards = torch.zeros(batch.mask.shape, dtype=torch.float64)
    rewards[rows, batch.mask.sum(1) - 1] = batch.scores["correct"]
    given: dict[str, Any] = {"index": batch.group.numpy()}
    if estimator == "grpo":  # as verl's `compute_advantage` calls it
        given["norm_adv_by_std_in_grpo"] = std
    if estimator == "remax":
        given["reward_baselines"] = batch.greedy_scores["correct"]
    config = AlgoConfig(gamma=1.0, norm_adv_by_std_in_grpo=std)
    advantages: torch.Tensor
    advantages, _ = get_adv_estimator_fn(estimator)(
        token_level_rewards=rewards,
        response_mask=batch.mask.long(),
        config=config,
        **given,
    )
    return advantages


def _weights(batch: Batch, given: RolloutCorrectionConfig) -> torch.Tensor:
    """The weights of verl's own rollout correction."""
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights

    assert batch.logp_old is not None and batch.logp_sampler is not None
    weights: torch.Tensor
    with torch.no_grad():
        weights, _ = compute_rollout_correction_weights(
            batch.logp_old - batch.logp_sampler,
            batch.mask.long(),
            given.rollout_is,
            given.rollout_is_threshold,
            given.rollout_is_batch_normalize,
        )
    return weights


def _flat(logp: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Log-probs as the engines give them: one after the other, each row a prompt of one token and its completion."""
    end = logp.new_zeros(1)
    return torch.cat([part for row in range(logp.shape[0]) for part in (logp[row][mask[row]], end)])


def _data(fields: dict[str, torch.Tensor], part: slice, batch: Batch) -> TensorDict:
    """A micro-batch with what the engines say of the whole step."""
    mask = batch.mask[part].long()
    rows, slots = mask.shape
    made = {name: tensor[part] for name, tensor in fields.items()}
    prompts = torch.ones(rows, 1, dtype=torch.long)
    made |= {
        "prompts": prompts,
        "responses": torch.zeros(rows, slots, dtype=torch.long),
        "attention_mask": torch.cat([prompts, mask], 1),
    }
    data = TensorDict(made, batch_size=[rows])
    data.set_non_tensor("dp_size", 1)
    data.set_non_tensor("batch_num_tokens", int(batch.mask.sum()))
    data.set_non_tensor("global_batch_size", batch.mask.shape[0])
    return data


_STD = "σ_g = sample_std(reward over group) + 0.000001"
_DUAL = "omega(z) = 0 if (exp(z) > 1 + epsilon if advantage > 0 else exp(z) < 1 - epsilon or exp(z) > 3) else exp(z)"
_TOKENS = "aggregate = mean over batch"
_WHITE = (
    "level = sum(length * centred over batch) / sum(length over batch)",
    "spread = sqrt(sum(length * (centred - level) ^ 2 over batch) / (sum(length over batch) - 1))",
    "advantage = (centred - level) / spread if spread > 0 else 0",
)


def _row(name: str, compared: str, *changes: str, **words: str) -> Loss:
    """A row; its name is the settings as on verl's command line, and what is run."""
    settings = dict(word.split("=") for word in name.split())
    return row(name, _run(**{key: _value(word) for key, word in settings.items()}), compared, *changes, **words)


def _value(word: str) -> Any:
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word


_ESTIMATORS = (
    _row(
        "adv_estimator=grpo loss_mode=vanilla loss_agg_mode=token-mean",
        "bnpo beta=0",
        _STD,
        _DUAL,
        trap="verl's GRPO as it comes: N − 1, dual clip at 3 (clip_ratio_c), the mean over all tokens, no KL",
    ),
    _row("adv_estimator=grpo loss_mode=vanilla loss_agg_mode=seq-mean-token-mean", "grpo beta=0", _STD, _DUAL),
    _row(
        "adv_estimator=grpo_vectorized loss_mode=vanilla loss_agg_mode=seq-mean-token-mean", "grpo beta=0", _STD, _DUAL
    ),
    _row(
        "adv_estimator=grpo loss_mode=vanilla loss_agg_mode=seq-mean-token-sum-norm loss_scale_factor=8 "
        "norm_adv_by_std_in_grpo=False",
        "dr_grpo max_length=8",
        _DUAL,
        note="the divisor is the padded width where loss_scale_factor is not set",
    ),
    _row(
        "adv_estimator=grpo_passk loss_mode=gpg loss_agg_mode=seq-mean-token-sum",
        "raft",
        "second = max(correct over others)",
        "advantage = (correct - second) / (sample_std(correct over group) + 0.000001) if correct > second else 0",
    ),
    _row("adv_estimator=rloo loss_mode=gpg loss_agg_mode=seq-mean-token-sum", "rloo"),
    _row("adv_estimator=rloo_vectorized loss_mode=gpg loss_agg_mode=seq-mean-token-sum", "rloo"),
    _row("adv_estimator=remax loss_mode=gpg loss_agg_mode=seq-mean-token-sum", "remax"),
    _row("adv_estimator=opo loss_mode=gpg loss_agg_mode=seq-mean-token-mean", "opo"),
    _row(
        "adv_estimator=reinforce_plus_plus loss_mode=vanilla loss_agg_mode=token-mean",
        "reinforce_pp beta=0",
        "σ_b = sample_std(reward over batch)",
        _DUAL,
    ),
    _row(
        "adv_estimator=reinforce_plus_plus_baseline loss_mode=vanilla loss_agg_mode=token-mean",
        "reinforce_pp_baseline",
        *_WHITE,
        _DUAL,
        note="whitened over tokens, so long completions count more in the mean and the spread",
    ),
    _row(
        "adv_estimator=gdpo loss_mode=vanilla loss_agg_mode=token-mean",
        "reinforce_pp_baseline",
        "centred = (reward - baseline) / (sample_std(reward over group) + 0.000001)",
        *_WHITE,
        _DUAL,
        note="with one reward",
    ),
    _row(
        "adv_estimator=gpg loss_mode=gpg loss_agg_mode=token-mean",
        "gpg",
        "valid = mean(reward != 0 over batch)",
        trap="the scale counts rewards that are not 0, where the paper counts groups that are not all equal",
    ),
)

_POLICIES = (
    _row(
        "adv_estimator=grpo loss_mode=vanilla clip_ratio_high=0.28",
        "dapo",
        _STD,
        "omega(z) = 0 if (exp(z) > 1 + epsilon_high if advantage > 0 else exp(z) < 1 - epsilon or exp(z) > 3) "
        "else exp(z)",
    ),
    _row(
        "adv_estimator=grpo loss_mode=dppo_tv",
        "cispo",
        _STD,
        "omega(z) = min(exp(z), 3) if "
        "(exp(logp) - exp(logp_old) <= 0.2 if advantage > 0 else exp(logp) - exp(logp_old) >= -0.2) else 0",
        trap="clip_ratio_c caps the ratio, and its default is 3 here, not the 20 that the code falls back on",
    ),
    _row(
        "adv_estimator=grpo loss_mode=dppo_kl",
        "cispo",
        _STD,
        "kl = exp(logp_old) * (logp_old - logp) + (1 - exp(logp_old)) * log((1 - exp(logp_old)) / (1 - exp(logp)))",
        "omega(z) = min(exp(z), 3) if (kl <= 0.2 or (logp <= logp_old if advantage > 0 else logp >= logp_old)) else 0",
    ),
    _row(
        "adv_estimator=grpo loss_mode=gspo loss_agg_mode=seq-mean-token-mean",
        "gspo epsilon=0.2 epsilon_high=0.2",
        _STD,
        note="the default clips are 0.2, GSPO's are 0.0003 and 0.0004",
    ),
    _row("adv_estimator=grpo loss_mode=gspo", "gspo epsilon=0.2 epsilon_high=0.2", _STD, _TOKENS),
    _row(
        "adv_estimator=grpo loss_mode=sapo", "sapo", _STD, trap="averaged per completion, whatever loss_agg_mode says"
    ),
    _row(
        "adv_estimator=grpo loss_mode=gpg",
        "gpg",
        "advantage = (reward - baseline) / (sample_std(reward over group) + 0.000001)",
    ),
    _row(
        "adv_estimator=grpo loss_mode=clip_cov clip_cov_lb=-10.0",
        "grpo beta=0",
        beyond="tokens are dropped at random within a micro-batch",
    ),
    _row(
        "adv_estimator=grpo loss_mode=kl_cov kl_cov_ratio=0.2",
        "grpo beta=0",
        beyond="a KL on the tokens of largest covariance in a micro-batch",
    ),
    _row(
        "adv_estimator=grpo loss_mode=geo_mean",
        "gmpo epsilon=0.2",
        _STD,
        trap="averages over the micro-batch, and the engines add micro-batches up: two of them double the gradient",
    ),
    _row(
        "adv_estimator=grpo loss_mode=dro dro_beta=0.1",
        "grpo beta=0",
        _STD,
        "omega(z) = 1",
        "penalty = 0.05 * (logp - logp_old) ^ 2",
        _TOKENS,
    ),
    _row(
        "adv_estimator=grpo loss_mode=cispo",
        "cispo",
        _STD,
        "omega(z) = clip(exp(z), 0.8, 1.2)",
        trap="the ratio is clipped from below as well, at 0.8",
    ),
    _row(
        "adv_estimator=grpo loss_mode=vanilla rollout_is=token loss_agg_mode=seq-mean-token-mean",
        "tis beta=0",
        _STD,
        _DUAL,
    ),
    _row(
        "adv_estimator=grpo loss_mode=vanilla rollout_is=sequence rollout_is_threshold=1.5 "
        "loss_agg_mode=seq-mean-token-mean",
        "tis beta=0 cap=1.5",
        _STD,
        _DUAL,
        "credit = min(exp(sum(logp_old - logp_sampler over tokens)), cap)",
    ),
    _row(
        "adv_estimator=grpo loss_mode=bypass_mode loss_type=reinforce rollout_is=token",
        "cispo",
        _STD,
        "omega(z) = min(exp(z), 2)",
    ),
    _row("adv_estimator=grpo loss_mode=bypass_mode loss_type=ppo_clip", "bnpo beta=0", _STD, _DUAL),
)

_MODES = (
    _row("adv_estimator=grpo loss_agg_mode=token-mean", "grpo beta=0", _STD, _DUAL, _TOKENS),
    _row("adv_estimator=grpo loss_agg_mode=token-sum", "grpo beta=0", _STD, _DUAL, "aggregate = sum over batch"),
    _row(
        "adv_estimator=grpo loss_agg_mode=seq-mean-token-sum",
        "grpo beta=0",
        _STD,
        _DUAL,
        "aggregate = sum over tokens, mean over sequences",
    ),
    _row("adv_estimator=grpo loss_agg_mode=seq-mean-token-mean", "grpo beta=0", _STD, _DUAL),
    _row(
        "adv_estimator=grpo loss_agg_mode=seq-mean-token-sum-norm loss_scale_factor=8",
        "grpo beta=0",
        _STD,
        _DUAL,
        "aggregate = sum over tokens / 8, mean over sequences",
    ),
)

_KL = (
    _row(
        "adv_estimator=grpo use_kl_loss=True kl_loss_type=kl kl_loss_coef=0.04 loss_agg_mode=seq-mean-token-mean",
        "grpo_k1",
        _STD,
        _DUAL,
        note="its gradient is a constant, 0 in expectation",
    ),
    _row(
        "adv_estimator=grpo use_kl_loss=True kl_loss_type=abs kl_loss_coef=0.04 loss_agg_mode=seq-mean-token-mean",
        "grpo",
        _STD,
        _DUAL,
        "penalty = beta * abs(logp - logp_ref)",
    ),
    _row(
        "adv_estimator=grpo use_kl_loss=True kl_loss_type=mse kl_loss_coef=0.04 loss_agg_mode=seq-mean-token-mean",
        "grpo_k2",
        _STD,
        _DUAL,
    ),
    _row(
        "adv_estimator=grpo use_kl_loss=True kl_loss_type=low_var_kl kl_loss_coef=0.04 "
        "loss_agg_mode=seq-mean-token-mean",
        "grpo",
        _STD,
        _DUAL,
        "penalty = beta * min(exp(logp_ref - logp) - (logp_ref - logp) - 1, 10)",
        note="clamped at 10: a token that is far off has no KL gradient",
    ),
    _row(
        "adv_estimator=grpo use_kl_loss=True kl_loss_type=k1+ kl_loss_coef=0.04 loss_agg_mode=seq-mean-token-mean",
        "grpo_k2",
        _STD,
        _DUAL,
        note="the value of k1, the gradient of k2",
    ),
    _row(
        "adv_estimator=grpo use_kl_loss=True kl_loss_type=k3+ kl_loss_coef=0.04 loss_agg_mode=seq-mean-token-mean",
        "grpo_k2",
        _STD,
        _DUAL,
        note="the value of k3, the gradient of k2",
    ),
)


PEER = Peer(
    name="verl",
    about="verl's registered advantage estimators and its actor's `ppo_loss`",
    tolerance=1e-6,
    losses={
        "Advantage estimators": _ESTIMATORS,
        "Policy losses": _POLICIES,
        "Aggregation modes": _MODES,
        "KL losses": _KL,
    },
    recurring={_STD: "N − 1, plus 0.000001", _DUAL: "dual clip"},
    there=(
        *(f"adv_estimator={name}" for name in sorted(ADV_ESTIMATOR_REGISTRY)),
        *(f"loss_mode={name}" for name in sorted(POLICY_LOSS_REGISTRY)),
    ),
    left_out={
        "adv_estimator=gae": "needs a critic's values",
        "adv_estimator=optimal_token_baseline": "needs the sum of squared probabilities at each token",
        "adv_estimator=tir_optimal_token_baseline": "the same, over turns",
        "kl_loss_type=full": "not implemented in verl",
        "rollout_is_threshold=0.5_2.0": "a metric divides by 0 where no token of the step lies within the bounds",
        "use_kl_in_reward": "a change of the rewards before the estimator; see reinforce_pp",
        "losses of pairs (DPO, IPO, …)": "verl has none",
    },
)
