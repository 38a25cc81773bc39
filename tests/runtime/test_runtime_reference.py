"""Log-probs under the reference, kept between epochs, resumes and runs: the same bits, without the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Write, lines, rows_of
from rich.console import Console
from safetensors.torch import load_file

import grolang.runtime.step
from grolang.runtime import reference, start
from grolang.runtime.reference import Store
from grolang.runtime.settings import RunSettings
from grolang.runtime.step import Engine

GIVEN = {"method": "dpo", "batch": 8, "lr": 1e-2, "steps": 6, "eval_rows": 4, "micro_batch": 5}


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """How many pairs went through a reference model, a number for each pass; the cache is empty."""
    monkeypatch.setenv("GROLANG_CACHE", str(tmp_path / "cache"))
    found: list[int] = []
    real = Engine.log_probs

    def counted(self: Engine, policy: Any, pairs: Any, *args: Any, **options: Any) -> Any:
        if policy is self.reference:
            found.append(len(pairs))
        return real(self, policy, pairs, *args, **options)

    monkeypatch.setattr(Engine, "log_probs", counted)
    return found


def run(output: Path, **given: Any) -> list[dict[str, Any]]:
    start(GIVEN | given | {"output": str(output)}, None, Console(quiet=True))
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines(output)]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model/model.safetensors")


def test_a_second_epoch_and_a_second_run_ask_the_reference_nothing(
    passes: list[int], tiny: str, tmp_path: Path, write: Write
) -> None:
    given = {"model": tiny, "data": write(rows_of("preference", 16))}  # two steps an epoch
    first = run(tmp_path / "first", **given)
    assert passes == [16, 16] and first[0]["rewards/margins"] == 0
    passes.clear()
    assert run(tmp_path / "again", **given) == first and passes == []
    assert run(tmp_path / "other", **given, set={"beta": 0.3}) != first and passes == []
    run(tmp_path / "seed", **given, seed=1)
    assert passes


def test_a_step_in_which_an_epoch_begins_has_the_same_bits_with_the_file_and_without_it(
    passes: list[int], tiny: str, tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a second pass would say of the same rows in another batch is another rounding, here a large one."""
    real = Engine.log_probs

    def rounded(self: Engine, policy: Any, *args: Any, **options: Any) -> Any:
        logp, entropy = real(self, policy, *args, **options)
        return (logp - 0.01 * len(passes) if policy is self.reference else logp), entropy

    monkeypatch.setattr(Engine, "log_probs", rounded)
    given = {"model": tiny, "data": write(rows_of("preference", 11)), "eval_rows": 0}
    first = run(tmp_path / "first", **given)
    assert passes == [16, 16]  # the second has rows of both epochs
    passes.clear()
    assert run(tmp_path / "again", **given) == first and passes == []


def test_a_resumed_run_has_the_same_bits_with_the_file_and_without_it(
    passes: list[int], tiny: str, tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"model": tiny, "data": write(rows_of("preference", 16))}
    run(tmp_path / "whole", **given)
    for name in ("kept", "lost"):
        monkeypatch.setenv("GROLANG_CACHE", str(tmp_path / name / "cache-of-it"))
        run(tmp_path / f"run-{name}", **given, steps=2)
        run(tmp_path / f"run-{name}", resume=True, steps=6)
        one, two = weights(tmp_path / "whole"), weights(tmp_path / f"run-{name}")
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_online_methods_have_no_store(passes: list[int], tiny: str, tmp_path: Path, write: Write) -> None:
    given = {"method": "gro", "model": tiny, "data": write(rows_of("prompts")), "max_completion": 4, "steps": 2}
    run(tmp_path / "out", **given)
    assert not (tmp_path / "cache").exists()


def test_a_store_reads_what_it_wrote_and_computes_again_what_is_broken(tmp_path: Path) -> None:
    path, pairs = tmp_path / "a" / "store.safetensors", [([1, 2], [3]), ([1], [2, 3]), ([], [1, 2, 3])]
    logp = torch.tensor([[-1.0, 0, 0], [-2.0, -3.0, 0], [-4.0, -5.0, -6.0]])
    made = Store(path)
    made.put(pairs, logp)
    made.put(pairs[:1], logp[:1] * 9)
    made.save()
    again = Store(path)
    found = again.get(pairs[::-1], torch.zeros(3, 3))
    assert found is not None and torch.equal(found, logp.flip(0))
    assert again.get([([1, 2], [4])], torch.zeros(1, 3)) is None
    path.write_bytes(path.read_bytes()[:50])
    assert Store(path).get(pairs, torch.zeros(3, 3)) is None


def test_what_one_process_knows_is_computed_again_where_another_does_not(
    passes: list[int], tiny: str, tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them go into the pass, or none: it ends with what each waits for."""
    given = {"model": tiny, "data": write(rows_of("preference", 16)), "steps": 1}
    run(tmp_path / "first", **given)
    passes.clear()
    monkeypatch.setattr(grolang.runtime.step, "anywhere", lambda accelerator, here: True)
    run(tmp_path / "again", **given)
    assert passes == [16]


def test_another_layout_of_packed_rows_is_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, model = RunSettings(method="dpo", steps=1, batch=1, lr=1.0), torch.nn.Linear(2, 2)
    before = reference.store(model, settings, [], 1).path
    assert before == reference.store(model, settings, [], 1).path
    monkeypatch.setattr(reference, "LAYOUT", reference.LAYOUT + 1)
    assert before != reference.store(model, settings, [], 1).path


def test_a_user_without_a_home_has_a_cache_in_no_folder_named_by_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GROLANG_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert reference.cache_folder().is_absolute()


def test_a_folder_that_cannot_be_written_keeps_them_in_memory() -> None:
    made = Store(Path("/dev/null/nobody/store.safetensors"))
    made.put([([1], [2])], torch.tensor([[-1.0]]))
    made.save()
    assert made.get([([1], [2])], torch.zeros(1, 1)) is not None
