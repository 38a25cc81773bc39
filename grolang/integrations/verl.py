"""verl: its registered advantage estimators, then the actor's own `ppo_loss`, backward for each micro-batch.

The engines run `ppo_loss` on each micro-batch and add the gradients without another divisor, so that is done here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
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
from grolang.integrations.peer import Gradient, Loss, Peer


def verl(
    estimator: str = "grpo",
    policy_loss: dict[str, Any] | None = None,
    std: bool = True,
    truncated: bool = False,
    **actor: Any,
) -> Callable[[Batch, int], Gradient]:
    """An advantage estimator and the actor's settings.

    std: GRPO's `norm_adv_by_std_in_grpo`. truncated: the weights of verl's own rollout correction, capped at 2.
    """

    def run(batch: Batch, parts: int) -> Gradient:
        assert batch.logp is not None and batch.logp_old is not None and batch.logp_ref is not None
        rows = batch.mask.shape[0]
        settings: dict[str, Any] = {"strategy": "fsdp", "rollout_n": 1, "ppo_micro_batch_size_per_gpu": rows // parts}
        config = ActorConfig(**settings, policy_loss=PolicyLossConfig(**(policy_loss or {})), **actor)
        advantages = _advantages(batch, estimator, std)
        logp = batch.logp.clone().requires_grad_()
        fields = {
            "response_mask": batch.mask.long(),
            "old_log_probs": batch.logp_old,
            "ref_log_prob": batch.logp_ref,
            "advantages": advantages,
        }
        if truncated:
            fields["rollout_is_weights"] = _weights(batch)
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


def _weights(batch: Batch) -> torch.Tensor:
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights

    assert batch.logp_old is not None and batch.logp_sampler is not None
    weights: torch.Tensor
    with torch.no_grad():
        weights, _ = compute_rollout_correction_weights(
            batch.logp_old - batch.logp_sampler, batch.mask.long(), rollout_is="token", rollout_is_threshold=2.0
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
_SEQUENCES: dict[str, Any] = {"loss_agg_mode": "seq-mean-token-mean"}


def _said(estimator: str, **settings: Any) -> str:
    """The settings as they are given on verl's command line."""
    words = [f"adv_estimator={estimator}"] + [f"{name}={value}" for name, value in settings.items()]
    return " ".join(words)


def _estimator(name: str, mode: str, aggregation: str, method: str, *changes: str, **rest: Any) -> Loss:
    note, params, std = rest.pop("note", ""), rest.pop("params", {}), rest.pop("std", True)
    trap = rest.pop("trap", False)
    said = _said(name, loss_mode=mode, loss_agg_mode=aggregation, **rest)
    said += "" if std else " norm_adv_by_std_in_grpo=False"
    run = verl(name, {"loss_mode": mode}, std, loss_agg_mode=aggregation, **rest)
    return Loss(said, run, method, params, changes, note=note, trap=trap)


_ESTIMATORS = (
    _estimator(
        "grpo",
        "vanilla",
        "token-mean",
        "bnpo",
        _STD,
        _DUAL,
        params={"beta": 0},
        note="verl's GRPO as it comes: N − 1, dual clip at 3 (clip_ratio_c), the mean over all tokens, no KL",
        trap=True,
    ),
    _estimator("grpo", "vanilla", "seq-mean-token-mean", "grpo", _STD, _DUAL, params={"beta": 0}),
    _estimator("grpo_vectorized", "vanilla", "seq-mean-token-mean", "grpo", _STD, _DUAL, params={"beta": 0}),
    _estimator(
        "grpo",
        "vanilla",
        "seq-mean-token-sum-norm",
        "dr_grpo",
        _DUAL,
        loss_scale_factor=8,
        std=False,
        params={"max_length": 8},
        note="the divisor is the padded width where loss_scale_factor is not set",
    ),
    _estimator(
        "grpo_passk",
        "gpg",
        "seq-mean-token-sum",
        "raft",
        "second = max(correct over others)",
        "advantage = (correct - second) / (sample_std(correct over group) + 0.000001) if correct > second else 0",
    ),
    _estimator("rloo", "gpg", "seq-mean-token-sum", "rloo"),
    _estimator("rloo_vectorized", "gpg", "seq-mean-token-sum", "rloo"),
    _estimator("remax", "gpg", "seq-mean-token-sum", "remax"),
    _estimator("opo", "gpg", "seq-mean-token-mean", "opo"),
    _estimator(
        "reinforce_plus_plus",
        "vanilla",
        "token-mean",
        "reinforce_pp",
        "σ_b = sample_std(reward over batch)",
        _DUAL,
        params={"beta": 0},
    ),
    _estimator(
        "reinforce_plus_plus_baseline",
        "vanilla",
        "token-mean",
        "reinforce_pp_baseline",
        *_WHITE,
        _DUAL,
        note="whitened over tokens, so long completions count more in the mean and the spread",
    ),
    _estimator(
        "gdpo",
        "vanilla",
        "token-mean",
        "reinforce_pp_baseline",
        "centred = (reward - baseline) / (sample_std(reward over group) + 0.000001)",
        *_WHITE,
        _DUAL,
        note="with one reward",
    ),
    _estimator(
        "gpg",
        "gpg",
        "token-mean",
        "gpg",
        "valid = mean(reward != 0 over batch)",
        note="the scale counts rewards that are not 0, where the paper counts groups that are not all equal",
        trap=True,
    ),
)


def _policy(mode: str, method: str, *changes: str, **rest: Any) -> Loss:
    note, params, beyond = rest.pop("note", ""), rest.pop("params", {}), rest.pop("beyond", "")
    own, trap = rest.pop("own", {}), rest.pop("trap", False)
    first = (_STD,) if rest.pop("std", True) and not beyond else ()
    said = _said("grpo", loss_mode=mode, **own, **rest)
    run = verl("grpo", {"loss_mode": mode, **own}, **rest)
    return Loss(said, run, method, params, (*first, *changes), beyond, note, trap)


def _kept(bound: str) -> str:
    return f"omega(z) = min(exp(z), 3) if ({bound}) else 0"


_BINARY = "log((1 - exp(logp_old)) / (1 - exp(logp)))"
_POLICIES = (
    _policy(
        "vanilla",
        "dapo",
        "omega(z) = 0 if (exp(z) > 1 + epsilon_high if advantage > 0 else exp(z) < 1 - epsilon or exp(z) > 3) "
        "else exp(z)",
        clip_ratio_high=0.28,
    ),
    _policy(
        "dppo_tv",
        "cispo",
        _kept("exp(logp) - exp(logp_old) <= 0.2 if advantage > 0 else exp(logp) - exp(logp_old) >= -0.2"),
        note="clip_ratio_c caps the ratio, and its default is 3 here, not the 20 that the code falls back on",
        trap=True,
    ),
    _policy(
        "dppo_kl",
        "cispo",
        f"kl = exp(logp_old) * (logp_old - logp) + (1 - exp(logp_old)) * {_BINARY}",
        _kept("kl <= 0.2 or (logp <= logp_old if advantage > 0 else logp >= logp_old)"),
    ),
    _policy(
        "gspo",
        "gspo",
        params={"epsilon": 0.2, "epsilon_high": 0.2},
        note="the default clips are 0.2, GSPO's are 0.0003 and 0.0004",
        **_SEQUENCES,
    ),
    _policy("gspo", "gspo", _TOKENS, params={"epsilon": 0.2, "epsilon_high": 0.2}),
    _policy("sapo", "sapo", note="averaged per completion, whatever loss_agg_mode says", trap=True),
    _policy("gpg", "gpg", "advantage = (reward - baseline) / (sample_std(reward over group) + 0.000001)", std=False),
    _policy(
        "clip_cov",
        "grpo",
        own={"clip_cov_lb": -10.0},
        params={"beta": 0},
        beyond="tokens are dropped at random within a micro-batch",
    ),
    _policy(
        "kl_cov",
        "grpo",
        own={"kl_cov_ratio": 0.2},
        params={"beta": 0},
        beyond="a KL on the tokens of largest covariance in a micro-batch",
    ),
    _policy(
        "geo_mean",
        "gmpo",
        params={"epsilon": 0.2},
        note="averages over the micro-batch, and the engines add micro-batches up: two of them double the gradient",
        trap=True,
    ),
    _policy(
        "dro",
        "grpo",
        "omega(z) = 1",
        "penalty = 0.05 * (logp - logp_old) ^ 2",
        _TOKENS,
        own={"dro_beta": 0.1},
        params={"beta": 0},
    ),
    _policy(
        "cispo",
        "cispo",
        "omega(z) = clip(exp(z), 0.8, 1.2)",
        note="the ratio is clipped from below as well, at 0.8",
        trap=True,
    ),
    Loss(
        _said("grpo", loss_mode="vanilla", rollout_is="token", **_SEQUENCES),
        verl("grpo", truncated=True, **_SEQUENCES),
        "tis",
        {"beta": 0},
        (_STD, _DUAL),
    ),
    Loss(
        _said("grpo", loss_mode="bypass_mode", loss_type="reinforce", rollout_is="token"),
        verl(
            "grpo",
            {
                "loss_mode": "bypass_mode",
                "rollout_correction": RolloutCorrectionConfig(loss_type="reinforce", rollout_is="token"),
            },
        ),
        "cispo",
        {},
        (_STD, "omega(z) = min(exp(z), 2)"),
    ),
    Loss(
        _said("grpo", loss_mode="bypass_mode", loss_type="ppo_clip"),
        verl(
            "grpo",
            {"loss_mode": "bypass_mode", "rollout_correction": RolloutCorrectionConfig(loss_type="ppo_clip")},
        ),
        "bnpo",
        {"beta": 0},
        (_STD, _DUAL),
    ),
)


def _aggregated(mode: str, *changes: str, **rest: Any) -> Loss:
    run = verl("grpo", loss_agg_mode=mode, **rest)
    return Loss(_said("grpo", loss_agg_mode=mode, **rest), run, "grpo", {"beta": 0}, (_STD, _DUAL, *changes))


_MODES = (
    _aggregated("token-mean", _TOKENS),
    _aggregated("token-sum", "aggregate = sum over batch"),
    _aggregated("seq-mean-token-sum", "aggregate = sum over tokens, mean over sequences"),
    _aggregated("seq-mean-token-mean"),
    _aggregated("seq-mean-token-sum-norm", "aggregate = sum over tokens / 8, mean over sequences", loss_scale_factor=8),
)


def _kl(kind: str, method: str, *changes: str, note: str = "") -> Loss:
    settings: dict[str, Any] = {"use_kl_loss": True, "kl_loss_type": kind, "kl_loss_coef": 0.04, **_SEQUENCES}
    return Loss(_said("grpo", **settings), verl("grpo", **settings), method, {}, (_STD, _DUAL, *changes), note=note)


_KL = (
    _kl("kl", "grpo_k1", note="its gradient is a constant, 0 in expectation"),
    _kl("abs", "grpo", "penalty = beta * abs(logp - logp_ref)"),
    _kl("mse", "grpo_k2"),
    _kl(
        "low_var_kl",
        "grpo",
        "penalty = beta * min(exp(logp_ref - logp) - (logp_ref - logp) - 1, 10)",
        note="clamped at 10: a token that is far off has no KL gradient",
    ),
    _kl("k1+", "grpo_k2", note="the value of k1, the gradient of k2"),
    _kl("k3+", "grpo_k2", note="the value of k3, the gradient of k2"),
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
        "use_kl_in_reward": "a change of the rewards before the estimator; see reinforce_pp",
        "losses of pairs (DPO, IPO, …)": "verl has none",
    },
)
