"""Odd files that nobody wrote the compiler for, with the coefficients that another reader of the page got."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import grolang
from grolang.compiler.method import from_source
from grolang.language.source import Source

#: log-probs on a grid, so that there are ties; masks with holes, a row of padding, groups of two and of four
MASKED = ["1111", "1010", "1000", "0000", "0110", "1110", "0001"]
MASK = torch.tensor([[int(on) for on in row] for row in MASKED]).bool()
ROW, SLOT = torch.arange(7.0, dtype=torch.float64)[:, None], torch.arange(4.0, dtype=torch.float64)
CASES = [
    case.rpartition("\n= ") for case in (Path(__file__).parent / "unseen.txt").read_text("utf-8").split("---\n")[1:]
]


def batch(pairs: bool) -> grolang.Batch:
    def hidden(x: Tensor, mask: Tensor) -> Tensor:
        return x.where(mask, torch.nan)

    def rows(*numbers: float) -> Tensor:
        return hidden(torch.tensor(numbers, dtype=torch.float64), MASK.any(1))

    logp = -(1 + (7 * ROW + 3 * SLOT) % 11) / 4
    logps = {
        "logp": logp,
        "logp_old": logp + ((ROW + SLOT) % 3 - 1) / 8,
        "logp_ref": -(1 + (5 * ROW + 2 * SLOT) % 9) / 4,
        "logp_sampler": logp - ((2 * ROW + SLOT) % 3) / 8,
        "entropy": (1 + (ROW * SLOT) % 5) / 2,
    }
    other = MASK.flip(1)
    shown: dict[str, Any] = {name: hidden(x, MASK) for name, x in logps.items()}
    there: dict[str, Any] = {name: hidden(x.flip(0), other) for name, x in logps.items()}
    group = torch.tensor([4, 4, 9, 3, 9, 5, 5] if pairs else [4, 9, 4, 9, 9, 4, 9])
    greedy = {"r": 0.75, "s": 0.5, "len_ok": 1.0}
    return grolang.Batch(
        mask=MASK,
        group=group,
        label=rows(1, -1, -1, 1, 1, 1, -1) if pairs else rows(1, -1, -1, 1, 1, -1, -1),
        demonstration=rows(0, 1, 0, 1, 1, 0, 0),
        scores={
            "r": rows(1, 0, 2, 9, -1, 0.5, 0.5),
            "s": rows(0.25, 1, 0, 9, 1, -1, 0.5),
            "len_ok": rows(1, 0, 0, 9, 1, 1, 0),
        },
        greedy_scores={name: torch.where(group == 4, x, -x / 2) for name, x in greedy.items()},
        mismatched=grolang.Batch(mask=other, **there),
        **shown,
    )


@pytest.mark.parametrize("case", CASES, ids=[text.split()[1] for text, _, _ in CASES])
def test_an_odd_file_has_the_coefficients_of_another_reader(case: tuple[str, str, str]) -> None:
    text, _, numbers = case
    method, given = from_source(Source("odd.gro", text + "\n")), batch("data preference" in text)
    expected = torch.zeros_like(MASK, dtype=torch.float64)
    expected[MASK] = torch.tensor([float(number) for number in numbers.split()], dtype=torch.float64)
    torch.testing.assert_close(method.coefficients(given), expected, rtol=1e-9, atol=1e-12)
    assert given.logp is not None
    live = given.replace(logp=given.logp.clone().requires_grad_())
    torch.autograd.backward(method.loss(live))
    assert live.logp is not None and live.logp.grad is not None
    torch.testing.assert_close(-live.logp.grad, expected, rtol=1e-9, atol=1e-12)
