"""The policy shared out by DeepSpeed: ZeRO (Rajbhandari et al., 2020), where accelerate's configuration asks for it.

Stage 1 shares out the optimizer's state, stage 2 also the gradients, stage 3 also the weights. DeepSpeed gathers the
gradients of a step's micro-batches, and clips and moves; what is formed in a micro-batch is what it is without it.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from accelerate.utils import DeepSpeedPlugin
from torch import Tensor, nn

from grolang.language.diagnostics import GroError
from grolang.runtime.adapters import WithoutAdapter, need
from grolang.runtime.descent import Descent
from grolang.runtime.policy import Policy, Tokens, given
from grolang.runtime.settings import RunSettings
from grolang.runtime.step import Engine

MOMENTS = ("exp_avg", "exp_avg_sq")


def check(settings: RunSettings) -> None:
    """Raise GroError where DeepSpeed cannot do what the settings ask for."""
    need("deepspeed", "DeepSpeed in accelerate's configuration", "deepspeed")
    if settings.precision in ("fp16", "fp64"):
        message = f"--precision {settings.precision}: the weights that DeepSpeed shares out are fp32"
        raise GroError.plain(message, help="give fp32 or bf16, or FSDP2 in place of DeepSpeed: --shard")


@dataclass(frozen=True)
class Shared:
    """The policy as DeepSpeed runs it, which keeps the gradients to itself."""

    module: Any  # its engine
    token: int

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.module(*args, **options)

    def parameters(self) -> tuple[nn.Parameter, ...]:
        """Those whose `grad` is to be read: none."""
        return ()

    def zero_grad(self) -> None:
        """Let go of the gradients so far: DeepSpeed does where it leaves a step out, which is not finite then."""
        self.turn(math.nan)

    def turn(self, scale: float) -> None:
        """A step with the gradient `scale` · 0."""
        tokens = Tokens.of([([self.token], [self.token])], self.token, self.module.device)
        loss, _, _ = self.module(tokens, given(None))
        (loss * scale).backward()
        self.module.step()


@dataclass
class ZeroDescent(Descent):
    """AdamW as DeepSpeed has shared it out."""

    policy: Shared = field(kw_only=True)

    def __post_init__(self) -> None:
        self.optimizer = self.policy.module.optimizer.optimizer

    def __call__(self, taken: int) -> float:
        self.rate(taken)
        self.policy.module.step()  # which leaves the step out where this is not finite
        norm = float(self.policy.module.get_global_grad_norm())
        if not math.isfinite(norm):
            raise self._not_finite(norm)
        return norm

    def state(self) -> dict[str, Any]:
        from deepspeed.utils import safe_get_full_optimizer_state

        (count, *_) = (state["step"] for state in self.optimizer.state.values())
        state = {
            number: {"step": count.clone()} | {name: safe_get_full_optimizer_state(parameter, name) for name in MOMENTS}
            for number, parameter in enumerate(self.named.values())
        }
        (group, *_) = self.optimizer.param_groups
        return {"state": state, "param_groups": [group | {"params": list(state)}]}

    def put(self, before: dict[Tensor, dict[str, Tensor]]) -> None:
        """Share out a state of whole tensors."""
        counts = {float(state["step"]) for state in before.values()} or {0.0}
        for state in self.optimizer.state.values():
            state["step"].fill_(*counts)
        for parameter, state in before.items():
            for name in MOMENTS:
                _put(parameter, state[name], name)


def share_out(engine: Engine, descent: Descent) -> ZeroDescent:
    """From now on every pass is one of all processes together. The optimizer's state goes over."""
    import deepspeed

    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # on what it calls, pass after pass
    policy, reference, before = engine.policy, engine.reference, dict(descent.optimizer.state)
    descent.optimizer.state.clear()
    descent.optimizer.param_groups[0]["lr"] = 0.0
    config = _config(descent.settings)
    for one in (cast(Any, one) for one in (policy, reference) if isinstance(one, Policy)):
        # The head's weight is read outside of the layer that it is of.
        deepspeed.zero.register_external_parameter(one, one.model.get_output_embeddings().weight)
        if engine.autocast is not None:  # DeepSpeed switches off what is on around it
            one.forward = torch.autocast(engine.device.type, engine.autocast)(one.forward)
    engine.autocast = None
    shared, *_ = deepspeed.initialize(model=policy, optimizer=descent.optimizer, config=config)
    engine.policy = Shared(shared, engine.pad)
    if isinstance(reference, WithoutAdapter):
        engine.reference = replace(reference, policy=engine.policy)
    elif reference is not None and config["zero_optimization"]["stage"] == 3:
        engine.reference, *_ = deepspeed.initialize(model=reference, config=config)
    made = ZeroDescent(descent.named, descent.settings, policy=engine.policy)
    engine.policy.turn(1.0)  # a step of nothing at rate 0, after which the optimizer has a state
    made.put(before)
    return made


def _config(settings: RunSettings) -> dict[str, Any]:
    """DeepSpeed's: of what accelerate's says how to share out, the rest as the run has it."""
    zero = DeepSpeedPlugin().deepspeed_config["zero_optimization"]
    return {
        "zero_optimization": {name: value for name, value in zero.items() if value != "auto"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "managed_gradient_accumulation": False,  # a step takes what has come since the last one
        "gradient_clipping": settings.max_grad_norm,
        "train_micro_batch_size_per_gpu": 1,  # is not used for anything
        "steps_per_print": None,
    }


def _put(parameter: Any, value: Tensor, name: str) -> None:
    """Set a part of the optimizer's state of a parameter, given as a whole in every process."""
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if not hasattr(parameter, "ds_id"):
        safe_set_full_optimizer_state(parameter, value, name)
        return
    processes, process = torch.distributed.get_world_size(), torch.distributed.get_rank()
    padded = value.new_zeros(processes * parameter.ds_tensor.numel())
    padded[: value.numel()] = value.flatten()
    safe_set_local_optimizer_state(parameter, padded.view(processes, -1)[process], name)
