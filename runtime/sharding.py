"""The policy shared out over the processes: each holds a part of every weight, gradient and optimizer state (FSDP2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
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
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if asked and os.environ.get("FSDP_VERSION", "1") != "2":
        raise GroError.plain("accelerate's configuration asks for FSDP 1", help="write `fsdp_version: 2` there")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        message = "accelerate's configuration asks for DeepSpeed, which grolang does not use"
        raise GroError.plain(message, help="use FSDP2, which shares out the same things as ZeRO: --shard")
    return (shard or asked) and accelerator.num_processes > 1


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


def gathered(value: Tensor) -> Tensor:
    """All of a tensor that may be shared out; every process has to ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def like(value: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, shared out as `other` is."""
    if not isinstance(other, DTensor):
        return value
    return distribute_tensor(value.to(other.device), other.device_mesh, other.placements)
