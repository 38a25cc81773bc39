"""A packed row gives every token the state that its own sequence gives it, or is not used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SIZES, Write, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from test_runtime_exact import engine, samples
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
)

import grolang
from grolang.runtime import policy as policies
from grolang.runtime import start
from grolang.runtime.models import recompute_activations
from grolang.runtime.packing import PREFIX, Layout, enable, lay_out, states
from grolang.runtime.policy import Policy, Tokens

GPT2 = {"vocab_size": 258, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
NO_END = {"bos_token_id": 0, "eos_token_id": 0}
SMALL = {**SIZES, **NO_END, "num_key_value_heads": 2}


def gpt2(**changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**GPT2, **NO_END, initializer_range=0.1, **changes)).eval()


def windowed(attention: str, family: str = "mistral") -> PreTrainedModel:
    """Attention that looks back over four tokens, in all layers or in every other one."""
    torch.manual_seed(0)
    extra = {"sliding_window": 4, "attn_implementation": attention}
    if family == "gemma2":
        return Gemma2ForCausalLM(Gemma2Config(**SMALL, **extra, head_dim=8)).eval()
    return MistralForCausalLM(MistralConfig(**SMALL, **extra)).eval()


MODELS = {
    "llama": lambda: tiny_model(num_key_value_heads=2),
    "llama, eager": lambda: tiny_model(attn_implementation="eager"),
    "gpt2": gpt2,
    "gpt2, eager": lambda: gpt2(attn_implementation="eager"),
    "mistral, a window": lambda: windowed("sdpa"),
    "mistral, a window, eager": lambda: windowed("eager"),
    "gemma2, a window in every other layer": lambda: windowed("eager", "gemma2"),
}


def precise(model: PreTrainedModel) -> PreTrainedModel:
    """float64 with nothing rounded to float32 on the way."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ in ("MistralRMSNorm", "LlamaRMSNorm"):
            model.set_submodule(name, torch.nn.RMSNorm(len(module.weight), eps=module.variance_epsilon))
    return model.double()


def close(name: str) -> dict[str, float]:
    """Eager attention takes its softmax in float32, and so do Gemma's norms."""
    return dict.fromkeys(("rtol", "atol"), 1e-5 if "eager" in name or "gemma" in name else 1e-10)


SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=6)


@given(SEQUENCES)
def test_a_row_holds_every_beginning_once_and_every_sequence(sequences: list[list[int]]) -> None:
    layout = lay_out(sequences)
    beginnings = {tuple(one[: end + 1]) for one in sequences for end in range(len(one))}
    assert len(layout.ids) == len(beginnings)
    for row, one in enumerate(sequences):
        place = layout.place[row, : len(one)]
        assert layout.ids[place].tolist() == one
        assert layout.positions[place].tolist() == list(range(len(one)))
    assert layout.asked[layout.gather].tolist() == list(range(len(layout.ids)))
    gathered, spread, slot = set(layout.gather.tolist()), layout.spread.tolist(), 0
    for rows, queries, keys in layout.blocks:
        for _ in range(rows):
            seen, spread = spread[:keys], spread[keys:]
            for place in layout.asked[slot : slot + queries].tolist():  # each sees all tokens before it
                if slot in gathered:  # else it is padding, or asked for in another sequence as well
                    end = int(layout.positions[place])
                    assert seen[end] == place and beginning(layout, seen[: end + 1]) in beginnings
                slot += 1
    assert slot == len(layout.asked) and not spread


def beginning(layout: Layout, places: list[int]) -> tuple[int, ...]:
    assert layout.positions[places].tolist() == list(range(len(places)))
    return tuple(layout.ids[places].tolist())


def test_what_most_of_a_sequence_shares_is_asked_for_once() -> None:
    prompt = list(range(20))
    layout = lay_out([[*prompt, 30, 31], [*prompt, 30, 32, 33], [*prompt, 40], [*prompt, 30, 31]])
    assert layout.blocks == ((1, 22, 22), (2, 2, 23))
    assert len(layout.ids) == 20 + 2 + 2 + 1
    assert lay_out([prompt, [*prompt, 1]], inf).blocks == ((2, 21, 21),)


@pytest.fixture(scope="module")
def prepared() -> dict[str, tuple[PreTrainedModel, PreTrainedModel]]:
    """Each model as it is, and prepared."""
    pairs = {name: (precise(make()), precise(make())) for name, make in MODELS.items()}
    for _, packed in pairs.values():
        assert enable(packed) is None
    return pairs


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=12, deadline=None)
@given(sequences=SEQUENCES)
def test_a_state_is_that_of_its_own_sequence_alone(
    name: str, prepared: dict[str, tuple[PreTrainedModel, PreTrainedModel]], sequences: list[list[int]]
) -> None:
    plain, packed = prepared[name]
    layout = lay_out(sequences)
    with torch.no_grad():
        row = states(packed.get_decoder(), layout)
        for place, one in zip(layout.place, sequences, strict=True):
            alone = plain.get_decoder()(input_ids=torch.tensor([one]))[0][0]
            torch.testing.assert_close(row[place[: len(one)]], alone, **close(name))


def gradients(model: PreTrainedModel, parts: Sequence[Sequence[Any]], *, packed: bool) -> list[Tensor]:
    """Of Σ c · logp over micro-batches, c drawn for every token."""
    policy, draw = Policy(model, 0.7, packed=packed), torch.Generator().manual_seed(4)
    for part in parts:
        tokens = Tokens.of(part, 0, torch.device("cpu"))
        c = torch.randn(int(tokens.target.sum()), generator=draw, dtype=torch.float64)
        policy(tokens, policies.given(c))[0].backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    return found


def drawn(shared: int) -> list[list[tuple[list[int], list[int]]]]:
    """Two micro-batches of uneven sequences, so many of which stand under one prompt."""
    draw = torch.Generator().manual_seed(2)

    def ids(low: int, high: int) -> list[int]:
        count = int(torch.randint(low, high, (1,), generator=draw))
        return torch.randint(0, 250, (count,), generator=draw).tolist()

    parts = []
    for _ in range(2):
        prompts = [ids(3, 12) for _ in range(8 // shared)]
        parts.append([(prompts[row // shared], ids(1, 20)) for row in range(8)])
    return parts


@pytest.mark.parametrize("shared", [1, 2, 4])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt2, eager", "mistral, a window"])
def test_the_gradient_is_that_of_the_padded_pass(name: str, shared: int) -> None:
    model, parts = precise(MODELS[name]()), drawn(shared)
    padded = gradients(model, parts, packed=False)
    assert enable(model) is None
    for one, other in zip(padded, gradients(model, parts, packed=True), strict=True):
        torch.testing.assert_close(other, one, **close(name))


def test_activations_that_are_recomputed_are_packed_again() -> None:
    model, parts = precise(tiny_model()), drawn(4)
    padded = gradients(model, parts, packed=False)
    assert enable(model) is None
    recompute_activations(model)
    for one, other in zip(padded, gradients(model, parts, packed=True), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-10)


def test_tokens_that_go_through_the_model_are_those_that_differ() -> None:
    """Nothing is padded, and a prompt is there once for its group."""
    model, seen = tiny_model(), list[int]()
    assert enable(model) is None
    model.get_decoder().layers[0].register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0][..., 0].numel())
    )
    pairs = [([1, 2, 3, 4], [5, 6, 7]), ([1, 2, 3, 4], [8]), ([9, 9], [1, 2, 3, 4, 5, 6])]
    Policy(model, packed=True)(Tokens.of(pairs, 0, torch.device("cpu")))
    assert seen == [4 + 2 + 2 + 5]  # the last token of a sequence predicts nothing


def test_where_packing_saves_nothing_sequences_are_padded() -> None:
    model, seen = tiny_model(), list[Any]()
    assert enable(model) is None
    model.get_decoder().register_forward_pre_hook(lambda *args: seen.append(args[2]), with_kwargs=True)
    Policy(model, packed=True)(Tokens.of([([row], [1] * 29) for row in range(4)], 0, torch.device("cpu")))
    assert "packed" not in seen[0] and seen[0]["input_ids"].shape == (4, 30)


@pytest.mark.parametrize("name", ["dpo", "kto", "grpo", "gspo", "sft"])
def test_every_micro_batch_gives_the_same_gradient_packed(name: str) -> None:
    """A whole step with its reference, cut in several ways, out of memory at first."""
    chosen = grolang.load(name)
    rows = samples(chosen.data[0], 4)
    found = []
    for packed, micro_batch in ((False, 64), (True, 64), (True, 5), (True, 4), (True, 1)):
        made = engine(chosen, micro_batch)
        for source in (made.policy, made.reference):
            if source is not None and packed:
                assert enable(source.model) is None
                source.packed = True
        step = made.prepare(rows)
        batch = made.backward(step, entropy=True)
        found.append(([parameter.grad.clone() for parameter in made.policy.parameters()], batch))
    (whole, batch), *others = found
    assert max(float(part.abs().max()) for part in whole) > 1e-6
    for cut, same in others:
        for one, other in zip(whole, cut, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-11)
        for value in ("logp", "logp_ref", "entropy"):
            torch.testing.assert_close(getattr(same, value), getattr(batch, value), rtol=1e-10, atol=1e-11)


def refused() -> dict[str, PreTrainedModel]:
    torch.manual_seed(0)
    local = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 4}
    faint = {**SMALL, "initializer_range": 0.02}  # layers that do little: in half precision it looks like rounding
    return {
        "position biases": MptForCausalLM(MptConfig(vocab_size=50, d_model=32, n_layers=2, n_heads=4)),
        "attention of its own": GPTNeoForCausalLM(GPTNeoConfig(vocab_size=50, hidden_size=32, **NO_END, **local)),
        "convolutions": Lfm2ForCausalLM(Lfm2Config(**faint, layer_types=["conv", "full_attention"])),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["position biases", "attention of its own", "convolutions"])
def test_an_architecture_that_would_mix_sequences_is_refused_and_left_as_it_was(kind: str, dtype: torch.dtype) -> None:
    model = refused()[kind].eval().to(dtype)
    before = model.config._attn_implementation
    reason = enable(model)
    assert reason is not None and model.config.model_type in reason
    assert model.config._attn_implementation == before


def test_half_precision_is_not_taken_for_a_difference() -> None:
    assert enable(tiny_model().bfloat16()) is None and enable(gpt2().bfloat16()) is None


def test_a_prepared_model_samples_and_is_saved_as_before(tmp_path: Path) -> None:
    plain, packed = tiny_model(), tiny_model()
    assert enable(packed) is None and enable(packed) is None  # a second time is no change
    ids = torch.tensor([[0, 0, 1, 2, 3], [5, 6, 7, 8, 9]])
    attention = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    told = {"attention_mask": attention, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(plain.generate(ids, **told), packed.generate(ids, **told))
    packed.save_pretrained(tmp_path)
    assert PREFIX not in (tmp_path / "config.json").read_text()
    assert LlamaForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


class TestSetting:
    @pytest.fixture
    def rows(self, write: Write) -> str:
        texts = ["a", "bb longer", "ccc"]
        return write([{"prompt": f"say {text}", "chosen": text * 3, "rejected": "no"} for text in texts * 2])

    @staticmethod
    def run(folder: Path, said: Console, **flags: Any) -> list[dict[str, float]]:
        start({"method": "dpo", "steps": 2, "batch": 3, "eval_rows": 0, "output": str(folder), **flags}, console=said)
        return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]

    def test_it_changes_no_figure(self, tiny: str, rows: str, tmp_path: Path) -> None:
        flags = {"model": tiny, "data": rows, "precision": "fp64", "lr": 1e-3}
        quiet = Console(quiet=True)
        on, off = (self.run(tmp_path / one, quiet, **flags, packing=one) for one in ("on", "off"))
        for left, right in zip(on, off, strict=True):
            assert left.keys() == right.keys()
            for name in left.keys() - {"seconds"}:
                assert left[name] == pytest.approx(right[name], rel=1e-5), name

    def test_where_it_cannot_be_a_line_says_so(self, rows: str, tmp_path: Path) -> None:
        from conftest import tokenizer

        torch.manual_seed(0)
        local = {"num_layers": 1, "num_heads": 4, "attention_types": [[["global"], 1]]}
        small = {"vocab_size": 258, "hidden_size": 32, "max_position_embeddings": 64}
        GPTNeoForCausalLM(GPTNeoConfig(**small, **local, **NO_END)).save_pretrained(tmp_path / "model")
        tokenizer().save_pretrained(str(tmp_path / "model"))
        said, flags = Console(record=True, quiet=False, file=None), {"model": str(tmp_path / "model"), "data": rows}
        self.run(tmp_path / "auto", said, **flags)
        assert "note: sequences are padded: the layers of gpt_neo" in said.export_text()
        with pytest.raises(grolang.GroError, match="--packing on: the layers of gpt_neo"):
            self.run(tmp_path / "on", Console(quiet=True), **flags, packing="on")

    def test_it_does_not_go_with_compile(self, tiny: str, rows: str, tmp_path: Path) -> None:
        with pytest.raises(grolang.GroError, match="--packing on gives rows of ever new shapes"):
            self.run(tmp_path / "x", Console(quiet=True), model=tiny, data=rows, packing="on", compile=True)
