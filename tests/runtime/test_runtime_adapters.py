"""LoRA, recomputed activations, attention: what is trained, what is saved, and that nothing else changes."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Write, lines, rows_of, tiny_model, tokenizer
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from grolang import GroError
from grolang.runtime import adapters, resolve, sharding, start
from grolang.runtime.rollout import offline_draw
from grolang.runtime.setup import prepare

GIVEN = {"batch": 4, "lr": 1e-2, "max_completion": 6, "eval_rows": 0, "steps": 2, "micro_batch": 3}
LORA = {"lora": 4}


def run(output: Path, **given: Any) -> list[dict[str, Any]]:
    start(GIVEN | given | {"output": str(output)}, None, Console(quiet=True))
    return lines(output)


def prepared(**given: Any) -> Any:
    from accelerate import Accelerator

    method, settings = resolve(GIVEN | given)
    return prepare(method, settings, Accelerator(cpu=True))


@pytest.fixture
def pairs(tiny: str, write: Write) -> dict[str, Any]:
    return {"method": "dpo", "model": tiny, "data": write(rows_of("preference"))}


def test_only_the_adapter_is_trained_and_saved_in_the_format_of_peft(pairs: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path / "out", **pairs, **LORA, merge=True)
    folder = tmp_path / "out/model"
    saved = load_file(folder / "adapter_model.safetensors")
    assert saved and all("lora_" in name for name in saved) and not any("lm_head" in name for name in saved)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == pairs["model"]
    ids = torch.arange(9)[None]
    base = AutoModelForCausalLM.from_pretrained(pairs["model"])
    before = base(ids).logits
    ours = PeftModel.from_pretrained(base, str(folder)).eval()(ids).logits
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out/merged")(ids).logits
    torch.testing.assert_close(whole, ours, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, ours, atol=1e-4)
    (checkpoint,) = (tmp_path / "out/checkpoints").iterdir()
    assert set(load_file(checkpoint / "model.safetensors")) == {
        name.replace("base_model.model.", "").replace(".weight", ".default.weight") for name in saved
    }


def test_an_adapter_alone_is_no_model(pairs: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path / "out", **pairs, **LORA)
    with pytest.raises(GroError, match=r"out/model holds a LoRA adapter(.|\n)*help: give the whole model"):
        run(tmp_path / "next", **pairs | {"model": str(tmp_path / "out/model")})


def test_the_reference_is_the_model_with_the_adapter_off(pairs: dict[str, Any]) -> None:
    made = prepared(**pairs, **LORA)
    engine, model = made.engine, made.model
    assert isinstance(engine.reference, adapters.WithoutAdapter)
    assert not model.get_output_embeddings().weight.requires_grad
    pair = [([1, 2, 3], [4, 5])]
    mask = torch.ones(1, 2, dtype=torch.bool)
    first, _ = engine.log_probs(engine.policy, pair, mask)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 0.1
    now, _ = engine.log_probs(engine.policy, pair, mask)
    reference, _ = engine.log_probs(engine.reference, pair, mask)
    assert torch.equal(reference, first) and not torch.allclose(now, first, atol=1e-3)
    assert any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("more", [{}, {"lora_dropout": 0.3}, {"lora_targets": ("q_proj", "v_proj"), "lora_alpha": 1.0}])
def test_an_adapter_resumes_to_the_same_bits(more: dict[str, Any], pairs: dict[str, Any], tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", **pairs, **LORA, **more, steps=4)
    run(tmp_path / "cut", **pairs, **LORA, **more, steps=2)
    cut = run(tmp_path / "cut", resume=True, steps=4)
    assert [line["loss"] for line in cut] == [line["loss"] for line in whole]
    one, two = (load_file(tmp_path / name / "model/adapter_model.safetensors") for name in ("whole", "cut"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_dropout_is_of_the_gradient_alone(pairs: dict[str, Any]) -> None:
    made = prepared(**pairs, **LORA, lora_dropout=0.5)
    engine, pair, mask = made.engine, [([1, 2, 3], [4, 5])], torch.ones(1, 2, dtype=torch.bool)
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            if "lora_B" in name:
                parameter += 0.1
    one, two = (engine.log_probs(engine.policy, pair, mask)[0] for _ in range(2))
    assert torch.equal(one, two)
    dropped = made.model(torch.arange(8)[None]).logits, made.model(torch.arange(8)[None]).logits
    assert not torch.equal(*dropped)


def test_recomputed_activations_and_attention_change_nothing(pairs: dict[str, Any], tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", **pairs, precision="fp64")
    for more in ({"checkpointing": True}, {"attention": "eager"}, {"checkpointing": True, "attention": "sdpa"}):
        name = "-".join(more)
        for one, other in zip(plain, run(tmp_path / name, **pairs, **more, precision="fp64"), strict=True):
            assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)  # norms of the model round to fp32
            assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)


def test_layers_are_run_again_in_the_backward_pass(pairs: dict[str, Any]) -> None:
    made = prepared(**pairs, checkpointing=True)
    calls: list[int] = []
    made.model.get_decoder().layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    made.model(torch.arange(4)[None], use_cache=False).logits.sum().backward()
    assert len(calls) == 2
    with torch.no_grad():
        made.model(torch.arange(4)[None], use_cache=False)
    assert len(calls) == 3


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_steps(pairs: dict[str, Any], tmp_path: Path) -> None:
    plain, fast = run(tmp_path / "plain", **pairs), run(tmp_path / "fast", **pairs, compile=True)
    for one, other in zip(plain, fast, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lora_alpha": 4.0}, "--lora-alpha is of an adapter: give --lora RANK as well"),
        ({"quantize": "4bit"}, "--quantize is of an adapter"),
        ({"lora": 4, "lora_targets": ("nothing",)}, "the linear maps are down_proj, gate_proj"),
        ({"lora": 4, "lora_targets": ("lm_head",)}, "names the head, which stays as it is"),
    ],
)
def test_what_cannot_be_adapted_is_said(given: dict[str, Any], said: str, pairs: dict[str, Any]) -> None:
    with pytest.raises(GroError) as caught:
        prepared(**pairs, **given)
    assert said in str(caught.value)


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    pairs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda package: None)
    for given, package in (({}, "peft"), ({"quantize": "4bit"}, "quantize")):
        with pytest.raises(GroError, match=rf"pip install 'grolang\[{package}\]'"):
            prepared(**pairs, **LORA, **given)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_packed_weights_train_an_adapter(bits: str, tmp_path: Path, write: Write) -> None:
    """The gradient says by how much a small step lowers the loss."""
    folder = tmp_path / "wide"  # in blocks of 64
    tiny_model(hidden_size=64, intermediate_size=64).save_pretrained(folder)
    tokenizer().save_pretrained(str(folder))
    data = write(rows_of("demonstrations"))
    made = prepared(method="sft", model=str(folder), data=data, **LORA, quantize=bits)  # its products are fp32 here
    engine = made.engine
    step = engine.prepare(
        offline_draw(made.feed.rows.parts[0].take(range(4)), "demonstrations", made.feed.scoring).samples
    )
    trained = [parameter for parameter in made.model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter += 0.05
    before = made.method.evaluate(engine.backward(step)).loss
    gradients = [parameter.grad for parameter in trained]
    square = float(sum((gradient**2).sum() for gradient in gradients))
    with torch.no_grad():
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter -= 1e-2 / square * gradient
    after = made.method.evaluate(engine.current(step)).loss
    assert float(before - after) == pytest.approx(1e-2, rel=0.2 if bits == "4bit" else 0.5)
    given = {
        "method": "dpo",
        "model": str(folder),
        "data": write(rows_of("preference"), "pairs.jsonl"),
        "quantize": bits,
    }
    whole = run(tmp_path / "whole", **given, **LORA, steps=3, schedule="constant")
    run(tmp_path / "cut", **given, **LORA, steps=2, schedule="constant")
    again = run(tmp_path / "cut", resume=True, steps=3)
    assert [line["loss"] for line in again] == [line["loss"] for line in whole] and whole[-1]["rewards/margins"] != 0


def test_the_first_fsdp_is_refused(pairs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made = prepared(**pairs)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.delenv("FSDP_VERSION", raising=False)
    with pytest.raises(GroError, match="fsdp_version: 2"):
        sharding.wanted(False, made.engine.accelerator)
