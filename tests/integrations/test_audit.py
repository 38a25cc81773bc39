"""Where a peer of the tested version is installed: every verdict of docs/audit.md, and what its notes rest on."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from grolang.integrations.audit import Finding, compared, run
from grolang.integrations.cases import cases
from grolang.integrations.page import section
from grolang.integrations.peer import KNOWN, Peer, installed, peer, rows

PAGE = Path(__file__).parents[2] / "docs" / "audit.md"
pytestmark = pytest.mark.slow


@pytest.fixture(params=KNOWN)
def name(request: pytest.FixtureRequest) -> str:
    """A peer that is installed in the version that its rows were written for."""
    found, known = installed(request.param), KNOWN[request.param]
    if found is None:
        pytest.skip(f"{known.distribution} is not installed: pip install {known.distribution}=={known.tested}")
    if found != known.tested:
        pytest.skip(f"{known.distribution} {found} is installed, its rows were written for {known.tested}")
    return str(request.param)


@cache
def audited(name: str) -> tuple[Peer, dict[str, list[Finding]]]:
    found = peer(name)
    return found, run(found)


def test_every_row_is_what_it_claims(name: str) -> None:
    _, groups = audited(name)
    assert not [finding.loss.name for group in groups.values() for finding in group if not finding.holds]


def test_the_page_holds_these_verdicts(name: str) -> None:
    assert section(*audited(name)) in PAGE.read_text(encoding="utf-8"), "run `grolang audit trl verl liger -o …`"


def test_every_change_of_a_row_is_needed(name: str) -> None:
    """With one statement less the method is another, or does not check: no note about it is stale."""
    found = peer(name)
    for loss in rows(found):
        batches = cases(loss.kind)
        theirs = [loss.run(batch, 1).of for batch in batches] if loss.changes else []
        for line in loss.changes:
            try:
                method = loss.exact(line)
                ours = [found.ours(method, batch) for batch in batches]
            except Exception as error:  # what another line defined is missing now
                assert "E2" in str(error), f"{loss.name}: {error}"
                continue
            assert compared(theirs, ours, found.tolerance).word != "equal", f"{loss.name}: without {line}"


def test_every_loss_that_the_peer_lists_has_a_row_or_a_reason(name: str) -> None:
    found = peer(name)
    names = [*(loss.name for loss in rows(found)), *found.left_out]
    assert found.there
    for one in found.there:
        words = [re.compile(rf"{re.escape(word)}(?!\w)") for word in one.split()]
        assert any(all(word.search(name) for word in words) for name in names), one


def test_no_two_rows_say_the_same(name: str) -> None:
    names = [loss.name for loss in rows(peer(name))]
    assert len(set(names)) == len(names)
