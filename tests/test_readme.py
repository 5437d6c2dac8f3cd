"""Everything README.md shows runs: blocks here, and again from the built wheel in `.ci/run`."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def readme() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_blocks", ROOT / "tests" / "readme_blocks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_python_blocks_run(
    readme: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert readme.run_python(README) == 7
    assert "[22 26 30]" in capsys.readouterr().out


def test_commands_run(readme: ModuleType, tmp_path: Path) -> None:
    assert readme.run_commands(README, tmp_path, ROOT) == 11


def test_a_broken_block_would_fail(readme: ModuleType) -> None:
    with pytest.raises(AssertionError):
        readme.run_python("```python\nassert 1 == 2\n```\n")


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#([^)]+))?\)", README)
    missing = [t for t, _ in targets if "://" not in t and not (ROOT / t).exists()]
    for target, anchor in targets:
        if anchor:
            heads = re.findall(r"^#+ (.+)$", (ROOT / target).read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads]
    assert targets
    assert not missing


def test_sockets_example_prints_the_sum() -> None:
    script = ROOT / "examples" / "sockets.py"
    done = subprocess.run(
        [sys.executable, "-W", "error", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "sum [22, 26, 30] of graz, oslo, pisa, york\n"
    assert not done.stderr
