"""The wheel, and the wheel made from the sdist, hold everything: installed elsewhere, every built-in method checks."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*words: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A wheel from the checkout's files, and one from the sdist made of them."""
    folder = tmp_path_factory.mktemp("dist")
    source = folder / "checkout"  # a copy, so that nothing is built beside the sources
    tracked = run("git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines()
    for name in tracked:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = (sys.executable, "-m", "build", "--no-isolation")
    run(*build, "--wheel", "--outdir", folder / "direct", source, cwd=folder)
    run(*build, "--sdist", "--outdir", folder / "sdist", source, cwd=folder)
    (sdist,) = (folder / "sdist").glob("*.tar.gz")
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder / "second",
        sdist,
        cwd=folder,
    )
    return {name: next((folder / name).glob("*.whl")) for name in ("direct", "second")}


@pytest.mark.parametrize("origin", ["direct", "second"])
def test_an_installed_wheel_checks_every_built_in_method(origin: str, wheels: dict[str, Path], tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheels[origin], cwd=elsewhere)
    where = run(sys.executable, "-c", "import grolang; print(grolang.__file__)", cwd=elsewhere, PYTHONPATH=str(site))
    assert where.startswith(str(site))
    names = [path.stem for path in sorted((ROOT / "methods").glob("*.gro"))]
    listed = run(sys.executable, "-m", "grolang", "list", cwd=elsewhere, PYTHONPATH=str(site))
    assert all(f"\n{name} " in listed for name in names)
    run(sys.executable, "-m", "grolang", "check", *names, cwd=elsewhere, PYTHONPATH=str(site))


def test_the_wheel_holds_the_embedded_model_and_rows(wheels: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheels["direct"]) as wheel:
        sizes = {entry.filename: entry.file_size for entry in wheel.infolist()}
    inside = {
        name.removeprefix("grolang/runtime/defaults/"): size for name, size in sizes.items() if "/defaults/" in name
    }
    assert {"model/model.safetensors", "model/tokenizer.json", "data/unpaired-train.jsonl"} <= set(inside)
    assert sum(inside.values()) < 8_000_000
