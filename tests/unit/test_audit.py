"""The audit's comparison, on losses written down here: what it must call equal, scaled and different."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import grolang
from grolang.cli import main
from grolang.integrations import peer as peers
from grolang.integrations.audit import against, compared, finding, run
from grolang.integrations.cases import CUT, SHAPES, VOCABULARY, case, cases, entropy, logits
from grolang.integrations.page import INTRO, page, text
from grolang.integrations.peer import Gradient, Loss, Peer

PEER = Peer("trl", "losses of a test", 1e-9, {}, {}, (), {})


def differentiated(loss: Callable[[grolang.Batch, Tensor], Tensor]) -> Callable[[grolang.Batch, int], Gradient]:
    """A loss of whole batches as a peer's code: micro-batches of rows, averaged."""

    def run(batch: grolang.Batch, parts: int) -> Gradient:
        assert batch.logp is not None
        logp = batch.logp.clone().requires_grad_()
        step = batch.mask.shape[0] // parts
        for start in range(0, batch.mask.shape[0], step):
            part = slice(start, start + step)
            names = {name: tensor[part] for name, tensor in batch.tensors() if "[" not in name}
            scores = {name: tensor[part] for name, tensor in batch.scores.items()}
            cut = grolang.Batch(mask=batch.mask[part], scores=scores, **names)
            (loss(cut, logp[part]) / parts).backward()
        assert logp.grad is not None
        return Gradient(logp.grad)

    return run


def margins(batch: grolang.Batch, logp: Tensor) -> Tensor:
    ratios = ((logp - batch.logp_ref) * batch.mask).sum(1)
    return ratios[::2] - ratios[1::2]


def dpo(batch: grolang.Batch, logp: Tensor) -> Tensor:
    return -torch.nn.functional.logsigmoid(0.5 * margins(batch, logp)).mean()


def reinforce(batch: grolang.Batch, logp: Tensor) -> Tensor:
    return -((logp * batch.mask).sum(1) * batch.scores["correct"]).mean()


def test_a_published_loss_equals_its_method() -> None:
    found = finding(PEER, Loss("dpo", differentiated(dpo), "dpo", {"beta": 0.5}))
    assert found.holds and found.claim is not None and found.claim.word == "equal"
    assert "dpo" in found.equal and "ipo" not in found.equal
    assert found.cut is not None and found.cut.word == "equal" and found.difference is None


def test_a_factor_is_told() -> None:
    found = finding(PEER, Loss("three", differentiated(lambda *b: 3 * dpo(*b)), "dpo", {"beta": 0.5}))
    assert found.claim is not None and found.claim.word == "proportional"
    assert found.claim.factors == pytest.approx((3, 3))
    assert "dpo" in found.proportional and not found.equal


def test_a_factor_that_depends_on_the_batch_is_told() -> None:
    summed = Loss("sum", differentiated(lambda b, logp: dpo(b, logp) * (b.mask.shape[0] / 2)), "dpo", {"beta": 0.5})
    found = finding(PEER, summed)
    assert found.claim is not None and found.claim.word == "scaled"
    assert found.claim.factors == pytest.approx((1, 4))
    assert found.cut is not None and found.cut.word == "proportional" and found.cut.factors[0] == pytest.approx(0.5)


def test_a_difference_is_told_on_the_smallest_batch_with_the_part_and_its_values() -> None:
    found = finding(
        PEER, Loss("reinforce", differentiated(reinforce), "rloo", changes=("baseline = 0",), note="no baseline")
    )
    assert found.claim is not None and found.claim.word == "different"
    assert found.exact is not None and found.exact.word == "equal" and found.holds
    assert found.difference is not None and found.difference.part == "advantage"
    assert found.difference.batch.mask.shape == SHAPES[0][1:]
    rewards = found.difference.batch.scores["correct"]
    assert found.difference.theirs - found.difference.ours == pytest.approx(
        float(rewards.flip(0)[rewards.argmax()]), abs=1
    )
    assert {"reinforce", "bandit"} <= set(found.equal)


def test_what_holds_before_the_first_update_alone_is_told() -> None:
    def ratio(batch: grolang.Batch, logp: Tensor) -> Tensor:
        assert batch.logp_old is not None
        ratios = torch.exp(logp - batch.logp_old) * batch.mask
        return -(ratios.sum(1) * batch.scores["correct"]).mean()

    found = finding(
        PEER, Loss("ratio", differentiated(ratio), "reinforce", changes=("omega(z) = exp(logp - logp_old)",))
    )
    assert found.claim is not None and found.claim.word == "different"
    assert found.first_step is not None and found.first_step.word == "equal"
    assert "equal while `logp_old = logp`" in text(PEER, {"": [found]})


def test_a_row_that_is_wrong_does_not_hold() -> None:
    wrong = Loss("wrong", differentiated(dpo), "dpo", {"beta": 0.4})
    assert not finding(PEER, wrong).holds
    assert not finding(PEER, replace(wrong, changes=("anchor = 0",))).holds
    assert not finding(PEER, Loss("said to differ", differentiated(dpo), "dpo", {"beta": 0.5}, beyond="nothing")).holds


def test_zero_is_not_proportional_to_anything() -> None:
    ones, zeros = torch.ones(2, 2), torch.zeros(2, 2)
    assert compared([zeros], [ones], 1e-9).word == "different"
    assert compared([-ones], [ones], 1e-9).word == "different"
    assert compared([ones, zeros], [2 * ones, zeros], 1e-9).factors == (0.5, 0.5)
    assert compared([ones, ones], [2 * ones, ones], 1e-9).word == "scaled"
    assert compared([zeros], [zeros], 1e-9).word == "equal"


def test_the_batches_are_of_use() -> None:
    """Both sides of the usual clips, groups with and without spread, lengths that differ."""
    batches = cases("prompts")
    assert batches[0].mask.numel() == 2 and batches[0].mask.all()
    for batch in batches:
        assert batch.logp is not None and batch.logp_old is not None
        assert (batch.logp < 0).all() and (batch.logp_old < 0).all()
    ratios = torch.cat([(b.logp - b.logp_old)[b.mask].exp() for b in batches])
    for low, high in ((0, 0.8), (0.8, 1.2), (1.2, 2), (3, 20)):
        assert ((ratios > low) & (ratios < high)).any()
    assert not ((ratios - 1.2).abs() < 1e-3).any() and not ((ratios - 0.8).abs() < 1e-3).any()
    spreads = [b.scores["correct"].reshape(groups, size).std(1) for b, (groups, size, _) in zip(batches, SHAPES)]
    assert any((spread == 0).any() for spread in spreads) and all((spread > 0).any() for spread in spreads)
    assert len({int(length) for length in case("unpaired", CUT, 1).mask.sum(1)}) > 2


def test_logits_give_the_log_probs_that_are_asked_for() -> None:
    logp, target = torch.tensor([-0.125, -3.0, -7.0], dtype=torch.float64), torch.tensor([0, 5, VOCABULARY - 1])
    given = torch.log_softmax(logits(logp, target), -1)
    assert torch.allclose(given.gather(1, target[:, None])[:, 0], logp, atol=1e-12)
    assert torch.allclose(-(given.exp() * given).sum(1), entropy(logp), atol=1e-12)


def test_one_method_against_every_loss_of_its_data() -> None:
    mine = Peer("trl", "", 1e-9, {"all": (Loss("a", differentiated(dpo), "dpo", {"beta": 0.5}),)}, {}, (), {})
    method = grolang.load("cpl")
    found = against(mine, mine.losses["all"][0], method)
    assert found.claim is not None and found.claim.word == "different" and found.difference is not None
    assert run(mine, only=grolang.load("dpo"))["all"][0].equal == ("dpo",)
    assert run(mine, only=grolang.load("rloo")) == {} and run(mine, containing="b") == {}


def test_an_unknown_peer_and_one_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", "ltr"]) == 2
    assert "audited are trl, verl, liger" in capsys.readouterr().err

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert main(["audit", "verl"]) == 1
    told = capsys.readouterr().err
    assert "verl is not installed" in told and f'pip install "verl=={peers.KNOWN["verl"].tested}"' in told


def test_another_version_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "installed", lambda name: "0.0.1")
    assert "trl 0.0.1 is installed; its rows were written for" in peers.untested("trl")
    monkeypatch.setattr(peers, "installed", lambda name: peers.KNOWN[name].tested)
    assert peers.untested("trl") == ""


def test_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.2+cpu")
    found = finding(
        PEER,
        Loss('reinforce(x="a|b")', differentiated(reinforce), "rloo", {}, ("baseline = 0",), "", "no baseline", True),
    )
    told = page([(replace(PEER, left_out={"other": "no time"}), {"All": [found]})])
    short = page([(replace(PEER, recurring={"baseline = 0": "no baseline"}), {"All": [found]})])
    assert "- **no baseline**: `baseline = 0`" in short and "| **no baseline** |" in short
    words = " ".join(told.split())
    assert "with trl 1.2, torch 1.2, transformers 1.2, Python" in words
    assert "Of 1 losses, 0 equal a built-in method" in words and "1 equal one with changed statements" in words
    assert '- `reinforce(x="a|b")`: no baseline.' in told and "- `other`: no time." in told
    (row,) = [line for line in told.splitlines() if line.startswith("| `reinforce")]
    assert '`reinforce(x="a\\|b")`' in row and "| `baseline = 0` |" in row and "differs in advantage" in row


def test_the_differences_that_the_page_names_first_are_rows_of_it() -> None:
    listed = INTRO.split("Differences that one may look for")[1]
    named = [
        *re.findall(r"`((?:\w+Config|Liger\w+)\([^`]*)\)`", listed),
        *re.findall(r"`(adv_estimator=[^`]+)`", listed),
    ]
    text = (Path(__file__).parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
    assert text.startswith(INTRO) and len(named) == 6
    assert not [name for name in named if f"| `{name}" not in text]
