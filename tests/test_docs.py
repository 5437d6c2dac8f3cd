"""The pages in docs/ say what is so: links lead somewhere, and settings are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedavg.adapters.opening import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    assert not [t for t in targets if "://" not in t and not (page.parent / t).exists()]


def test_every_setting_stands_in_the_page_for_flower_with_its_default() -> None:
    page = (ROOT / "docs/flower.md").read_text().split("\n## ")[1]
    rows = re.findall(r"^\| (`secagg-.*?) \| (.*?) \|", page, re.MULTILINE)
    shown: dict[str, str] = {}
    for keys, default in rows:
        names = re.findall(rf"`{PREFIX}([a-z-]+)`", keys)
        values = default.split(", ") if len(names) > 1 and "," in default else [default] * len(names)
        shown |= dict(zip(names, values, strict=True))
    fields = {name.replace("_", "-"): getattr(Settings(), name) for name in Settings.__struct_fields__}
    expert = {"degree", "threshold", "ring-bits"}
    own = {"roster", "identity", "policy"}  # paths and floors, which are no settings
    assert set(fields) - expert == set(shown) - own
    for name, value in fields.items():
        if name not in expert and value not in ("", 0):
            assert shown[name].strip("`") in (str(value), str(value).removesuffix(".0")), name
