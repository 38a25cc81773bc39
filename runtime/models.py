"""Models and tokenizers as transformers has them: loaded from a folder or the hub, and what the rest asks of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from grolang.language.diagnostics import GroError, cause

_MODEL = "--model takes a folder of save_pretrained, safetensors weights and tokenizer, or a hub name"
_CLASSIFIER = "it takes a folder that `grolang reward train` saves, or another sequence classifier with one output"


@contextmanager
def _named(path: str, what: str, help: str) -> Iterator[None]:
    """Whatever transformers raises on what a user named is an error that says so."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no type for it
    try:
        yield
    except GroError:
        raise
    except Exception as error:  # of any library that a model needs
        raise GroError.plain(f"no {what} can be loaded from {path}: {cause(error)}", help=help) from error


def load_tokenizer(
    path: str, *, trust_remote_code: bool = False, template: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name, which must have an end token; `template` is a chat template's file."""
    with _named(path, "tokenizer", _MODEL):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise GroError.plain(
            f"the tokenizer of {path} has no end-of-sequence token, and a completion must be able to end",
            help="set `eos_token` in its tokenizer_config.json",
        )
    if template is not None:
        try:
            tokenizer.chat_template = Path(template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise GroError.plain(f"cannot read the chat template {template}: {error}") from error
    return tokenizer


def load_model(
    path: str, *, dtype: torch.dtype, device: torch.device, trust_remote_code: bool = False, **options: Any
) -> PreTrainedModel:
    """A causal model from safetensors, without dropout. Weights in another format are refused: they can hold code.

    `options` that are None are left to the model: `attn_implementation`, `quantization_config`.
    """
    options = {name: value for name, value in options.items() if value is not None}
    if "quantization_config" in options:
        options["device_map"] = {"": device}
    with _named(path, "model", _MODEL):
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code, **options
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        message = f"{path} holds a LoRA adapter alone, not the model that it was trained beside"
        raise GroError.plain(message, help="give the whole model, which --merge leaves in merged/")
    if model.config.is_encoder_decoder:
        raise GroError.plain(f"{path} is an encoder-decoder; grolang trains decoder-only models")
    # Evaluation mode throughout: with dropout a log-prob would depend on when it was computed.
    if "device_map" not in options:
        model.to(device)  # type: ignore[arg-type]  # its `to` is decorated without a type
    nn.Module.eval(model)
    for module in model.modules():
        if "quantization_config" in options and type(module).__module__.startswith("bitsandbytes"):
            module.training = True  # else it may repack its weights into a form without a backward pass
    return model


def load_classifier(
    path: str, device: torch.device | str, *, fresh: bool = False, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A sequence classifier with one output, from safetensors, in float32, without dropout.

    With `fresh` any model will do, and a new head is put on it; else the folder must hold a classifier.
    """
    head: dict[str, Any] = {"num_labels": 1} if fresh else {}
    told = logging.get_verbosity()
    if fresh:  # that the head is new needs no warning
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # nor for it
    try:
        with _named(path, "reward model", _CLASSIFIER):
            config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, **head)
            if not fresh:
                _check_kind(path, config)
            model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
                path, config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=trust_remote_code
            )
    finally:
        logging.set_verbosity(told)
    model.to(device)  # type: ignore[arg-type]  # its `to` is decorated without a type
    nn.Module.eval(model)
    return model


def _check_kind(path: str, config: Any) -> None:
    kinds = config.architectures or ["nothing"]
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise GroError.plain(
            f"{path} holds {', '.join(kinds)}, and a reward model is a …ForSequenceClassification",
            help="`grolang reward train` makes one from pairs",
        )
    if config.num_labels != 1:
        raise GroError.plain(f"{path} has {config.num_labels} outputs, and a reward model has one")


def recompute_activations(model: PreTrainedModel) -> None:
    """Keep only what enters each layer, and run the layer again in the backward pass.

    transformers' own switch asks for training mode, in which a model with dropout would not say the same twice.
    """
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.forward = partial(_recomputed, layer.forward)


def _recomputed(forward: Callable[..., Any], *args: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **options)
    return checkpoint(forward, *args, use_reentrant=False, **options)


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The reference: the model as it is now."""
    return copy.deepcopy(model).requires_grad_(False)


def window(model: PreTrainedModel) -> int | None:
    """Tokens that the model was made for, where its configuration says."""
    found = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def vocabulary(model: PreTrainedModel) -> int:
    """Tokens that the model has an embedding for."""
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]  # torch types it loosely
