"""The policy shared out over the processes: each holds a part of every weight, gradient and optimizer state.

By FSDP2, or by DeepSpeed (`zero`); what both need is here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import cast

from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from grolang.language.diagnostics import GroError
from grolang.runtime.policy import Policy, Tokens


def wanted(shard: bool, accelerator: Accelerator) -> bool:
    """Whether the settings, or accelerate's own configuration (`fsdp_version: 2`), ask for it."""
    asked = _told("ACCELERATE_USE_FSDP")
    if asked and os.environ.get("FSDP_VERSION", "1") != "2":
        raise GroError.plain("accelerate's configuration asks for FSDP 1", help="write `fsdp_version: 2` there")
    if shard and deepspeed():
        message = "--shard: accelerate's configuration asks for DeepSpeed, which shares out the same things"
        raise GroError.plain(message, help="leave out --shard, or --use_deepspeed")
    return deepspeed() or ((shard or asked) and accelerator.num_processes > 1)


def deepspeed() -> bool:
    """Whether accelerate's configuration asks for DeepSpeed."""
    return _told("ACCELERATE_USE_DEEPSPEED")


def _told(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"


def share_out(policy: Policy, accelerator: Accelerator, token: int) -> None:
    """Layer by layer, and what is left together. From now on every pass is one of all processes together."""
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for layer in policy.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            fully_shard(layer, mesh=mesh)
    fully_shard(policy, mesh=mesh)
    policy(Tokens.of([([token], [token])], token, accelerator.device))  # the first pass settles what the root is
    cast(FSDPModule, policy).reshard()


@contextmanager
def whole(policy: nn.Module) -> Iterator[None]:
    """While this holds, every process has all weights and runs the model on its own: for sampling."""
    if any(hasattr(parameter, "ds_id") for parameter in policy.parameters()):
        with _gathered_by_deepspeed(list(policy.parameters())), _without_hooks(policy):
            yield
        return
    parts = [part for part in policy.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not policy, recurse=False)


@contextmanager
def _without_hooks(policy: nn.Module) -> Iterator[None]:
    """DeepSpeed's, with which a layer lets go of its weights."""
    names = ("_forward_hooks", "_forward_pre_hooks")
    kept = [(part, name, getattr(part, name)) for part in policy.modules() for name in names]
    for part, name, hooks in kept:
        setattr(part, name, type(hooks)())
    try:
        yield
    finally:
        for part, name, hooks in kept:
            setattr(part, name, hooks)


def _gathered_by_deepspeed(parameters: list[nn.Parameter]) -> AbstractContextManager[None]:
    import deepspeed

    found: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(parameters)
    return found


def gathered(value: Tensor) -> Tensor:
    """All of a tensor that may be shared out; every process has to ask."""
    if isinstance(value, nn.Parameter) and hasattr(value, "ds_id"):
        with _gathered_by_deepspeed([value]):
            return value.detach().clone()
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach()


def like(value: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, shared out as `other` is."""
    if not isinstance(other, DTensor):
        return value
    return distribute_tensor(value.to(other.device), other.device_mesh, other.placements)
