"""The site builds without a warning, and fetches nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from grolang.language import library

pytest.importorskip("mkdocs_gen_files", reason="the site needs `pip install .[docs]`")
pytest.importorskip("material", reason="the site needs `pip install .[docs]`")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_site_builds_and_needs_no_network(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name in library.built_in():
        assert (tmp_path / "methods" / name / "index.html").is_file()
    for source in (ROOT / "docs").rglob("*.md"):  # no section of the manual is taken for code
        plain = re.sub(r"(?ms)^```.*?^```", "", source.read_text("utf-8"))
        shown = (tmp_path / source.relative_to(ROOT / "docs").with_suffix("") / "index.html").read_text("utf-8")
        assert len(re.findall(r"<h[2-4] id=", shown)) == len(re.findall(r"(?m)^#{2,4} ", plain)), source
    for path in tmp_path.rglob("*.html"):
        fetched = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', path.read_text("utf-8"))
        assert not [url for url in fetched if "canonical" not in url], path
