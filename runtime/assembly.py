"""The models of a run, and the engine around them, as the settings want them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from grolang import Method
from grolang.compiler.forming import kernel_failure
from grolang.compiler.fused import launch
from grolang.language.diagnostics import GroError
from grolang.runtime.adapters import WithoutAdapter, add_lora, need, quantization
from grolang.runtime.models import frozen_copy, load_model, recompute_activations, vocabulary, window
from grolang.runtime.packing import enable
from grolang.runtime.policy import Policy, check_head
from grolang.runtime.settings import RunSettings
from grolang.runtime.sharding import deepspeed, share_out, wanted
from grolang.runtime.step import Engine


def autocast(settings: RunSettings, device: torch.device) -> torch.dtype | None:
    """The dtype of the models' products; weights are fp32 (or fp64) whatever it is."""
    if settings.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(settings.precision)


@dataclass(frozen=True)
class Assembly:
    """What models and engine are made by: the settings, the processes, and where to say what was decided."""

    settings: RunSettings
    accelerator: Accelerator
    say: Callable[[str], None]

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    @property
    def autocast(self) -> torch.dtype | None:
        return autocast(self.settings, self.device)

    def model(self, path: str) -> PreTrainedModel:
        """A model of this folder or hub name, on the device."""
        settings = self.settings
        dtype = torch.float64 if settings.precision == "fp64" else torch.float32
        if settings.lora:  # weights that are not trained need no more digits than the products that they are in
            dtype = self.autocast or dtype
        if settings.attention == "flash_attention_2":
            need("flash_attn", "--attention flash_attention_2", "flash")
        model = load_model(
            path,
            dtype=dtype,
            device=self.device,
            trust_remote_code=settings.trust_remote_code,
            attn_implementation=settings.attention,
            quantization_config=quantization(settings, dtype),
        )
        check_head(model)
        return model

    def engine(self, method: Method, model: PreTrainedModel, tokens: int, end: int, *, every: bool) -> Engine:
        """The engine of a model whose tokenizer has so many tokens, `end` among them.

        The reference is the model as it is now, before an adapter is added, or one of its own.
        """
        settings, kernels = self.settings, self.kernels()
        policy = self._policy(model, kernels)
        reference: Policy | WithoutAdapter | None = None
        if method.needs.reference and settings.lora and settings.reference is None:
            reference = WithoutAdapter(policy, model)
        elif method.needs.reference:
            reference = self._policy(self._reference(model, tokens).requires_grad_(False), kernels)
        if settings.lora:
            add_lora(model, settings.model_path, settings)
        if settings.checkpointing:
            recompute_activations(model)
        sharded = wanted(settings.shard, self.accelerator)
        if sharded and not deepspeed():
            for part in (policy, reference):
                if isinstance(part, Policy):
                    share_out(part, self.accelerator, end)
        return Engine(
            method=method,
            accelerator=self.accelerator,
            policy=policy,
            reference=reference,
            pad=end,
            micro_batch=settings.micro_batch,
            sharded=sharded,
            kernels=kernels,
            every=every,
            say=self.say,
            window=window(model),
            dtype=torch.float64 if settings.precision == "fp64" else torch.float32,
            autocast=self.autocast,
        )

    def _policy(self, model: PreTrainedModel, kernels: bool) -> Policy:
        packed, settings = self.packed(model), self.settings
        return Policy(model, settings.temperature, compiled=settings.compile, packed=packed, kernels=kernels)

    def _reference(self, model: PreTrainedModel, tokens: int) -> PreTrainedModel:
        path = self.settings.reference
        if path is None:
            return frozen_copy(model)
        reference = self.model(path)
        if vocabulary(reference) < min(vocabulary(model), tokens):
            message = f"--reference {path} knows {vocabulary(reference)} tokens, fewer than the model"
            raise GroError.plain(message, help="give a reference with the model's own tokenizer")
        return reference

    def kernels(self) -> bool:
        """Whether Triton's kernels are taken; where that was left to us and a trial of them fails, a line says why."""
        if self.settings.kernels == "off":
            return False
        refusal = "they have no float64" if self.settings.precision == "fp64" else launch.refusal(self.device)
        failure = None
        if refusal is None:
            half = self.autocast == torch.bfloat16
            failure = kernel_failure(self.device, torch.bfloat16 if half else torch.float32)
        if self.settings.kernels == "on" and (refusal or failure):
            message = f"--kernels on: {refusal or failure}"
            raise GroError.plain(message, help="leave it out: torch's operations are taken then")
        if failure is not None:
            self.say(f"note: the loss goes through torch's operations, not through kernels: {failure}")
        return not (refusal or failure)

    def packed(self, model: PreTrainedModel) -> bool:
        """Whether sequences go through it packed; where that was left to us and cannot be, a line says why."""
        if self.settings.packing == "off" or self.settings.compile:
            return False
        refusal = enable(model)
        if refusal is None:
            return True
        if self.settings.packing == "on":
            raise GroError.plain(f"--packing on: {refusal}", help="leave it out: sequences are padded then")
        self.say(f"note: sequences are padded: {refusal}")
        return False
