"""LoRA (Hu et al., 2021) through peft: a few small matrices are trained beside a model that stays as it is."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grolang.language.diagnostics import GroError
from grolang.runtime.examples import key
from grolang.runtime.settings import RunSettings


class GradientDropout(nn.Dropout):
    """Dropout of the gradient's pass alone: log-probs that are only read, and samples, are those of the whole model."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.dropout(input, self.p, torch.is_grad_enabled())


@dataclass(frozen=True)
class WithoutAdapter:
    """The policy with its adapter off, which is the model that it began as: the reference, without a second model."""

    policy: nn.Module
    model: PreTrainedModel

    def __call__(self, *args: Any, **options: Any) -> Any:
        with adapter_off(self.model):
            return self.policy(*args, **options)


@contextmanager
def adapter_off(model: PreTrainedModel) -> Iterator[None]:
    """While this holds, the model is the one that the adapter was added to."""
    cast(Any, model).disable_adapters()
    try:
        yield
    finally:
        cast(Any, model).enable_adapters()


def need(package: str, flag: str, extra: str) -> None:
    """Raise GroError where an optional package is not installed."""
    if find_spec(package) is None:
        raise GroError.plain(f"{flag} needs the package {package}", help=f"pip install 'grolang[{extra}]'")


def add_lora(model: PreTrainedModel, path: str, settings: RunSettings) -> None:
    """Freeze the model and put W + (alpha / rank) B A in the place of each of its linear maps W but the head.

    A is drawn by the seed and B is 0, so that nothing changes at first. A and B are fp32.
    """
    need("peft", "--lora", "peft")
    from peft import LoraConfig
    from peft.tuners.tuners_utils import BaseTunerLayer

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora,
        lora_alpha=cast(int, settings.lora_alpha or 2 * settings.lora),
        lora_dropout=settings.lora_dropout,
        target_modules=list(settings.lora_targets) or "all-linear",
        base_model_name_or_path=path,
    )
    with torch.random.fork_rng([]):  # the adapter is drawn on the CPU
        torch.manual_seed(key(settings.seed, "lora"))
        try:
            cast(Any, model).add_adapter(config)
        except ValueError as error:
            linear = sorted({name.rpartition(".")[2] for name, one in model.named_modules() if type(one) is nn.Linear})
            names = ", ".join(linear)
            mend = f"the linear maps are {names}; repeat the flag for several, leave it out for all but the head"
            raise GroError.plain(f"--lora-targets: {error}", help=mend) from None
    if isinstance(cast(Any, model).get_output_embeddings(), BaseTunerLayer):
        raise GroError.plain("--lora-targets names the head, which stays as it is", help="leave it out")
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer) and hasattr(layer, "lora_dropout") and settings.lora_dropout:
            layer.lora_dropout = nn.ModuleDict(
                {name: GradientDropout(settings.lora_dropout) for name in cast(Any, layer).lora_A}
            )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float() if parameter.dtype != torch.float64 else parameter.data


def quantization(settings: RunSettings, dtype: torch.dtype) -> Any:
    """How the frozen weights are packed: None, or bitsandbytes' configuration (Dettmers et al., 2023).

    `dtype` is that of the products that they are unpacked for.
    """
    if settings.quantize is None:
        return None
    need("bitsandbytes", "--quantize", "quantize")
    from transformers import BitsAndBytesConfig

    config = cast(Any, BitsAndBytesConfig)
    if settings.quantize == "8bit":
        return config(load_in_8bit=True)
    return config(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def merged(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """A model, fresh from its files, with the adapter of a folder added into its weights."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads a name that transformers is about to drop
        whole: PreTrainedModel = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return whole
