"""The published vectors are what the code makes, and would be seen to differ if it made others."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from secagg import labels
from secagg.labels import Label

FOLDER = Path(__file__).resolve().parent / "vectors"


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_vectors", FOLDER / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_vectors_are_what_the_script_makes(make: ModuleType) -> None:
    made = make.everything()
    assert made == {path.name: path.read_text() for path in FOLDER.glob("*.json")}


def test_another_label_would_be_noticed(make: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(labels._HEADS, Label.MASK, labels._HEADS[Label.CHANNEL])
    made = make.everything()
    assert made["secagg-malicious.json"] != (FOLDER / "secagg-malicious.json").read_text()


@pytest.mark.parametrize(
    "name", ["secagg-honest-but-curious", "secagg-malicious", "secagg-plus-semi-malicious"]
)
def test_sums_are_those_of_the_inputs(name: str) -> None:
    content = json.loads((FOLDER / f"{name}.json").read_text())
    columns = zip(*(content["inputs"][who] for who in content["included"]), strict=True)
    assert content["sum"] == [sum(column) for column in columns]
    assert "p01" not in content["included"]


@pytest.mark.parametrize("name", ["secagg-honest-but-curious", "secagg-malicious"])
def test_bad_messages_name_their_sender(name: str) -> None:
    rows = json.loads((FOLDER / f"{name}-bad.json").read_text())
    for row in rows:
        named = [culprit for fault in row["faults"] for culprit in fault["culprits"]]
        # A flipped bit inside sealed or secret-shared bytes is noticed only by whoever opens them.
        sealed = row["change"] == "last bit flipped" and row["stage"] in ("shares", "reveals")
        assert row["from"] in named or sealed, row
