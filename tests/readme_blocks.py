"""Run what README.md shows: its Python blocks in order, and with --commands its `.venv/bin/...` lines.

    python tests/readme_blocks.py README.md FOLDER [--commands]

Imports only the standard library, so that it runs beside an installed wheel. Commands run in FOLDER with
the scripts of the interpreter that runs this. The lines that install are run by `.ci/run`.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run_python(text: str) -> int:
    """Run all Python blocks in one namespace; returns how many there were.

    Without those that need what is not installed, and say so.
    """
    found, namespace = blocks(text, "python"), {"__name__": "readme"}
    if find_spec("gmpy2") is None:
        found = [block for block in found if not block.startswith("# needs the extra paillier")]
    for i, block in enumerate(found):
        exec(compile(block, f"README block {i + 1}", "exec"), namespace)
    return len(found)


def commands(text: str) -> list[list[str]]:
    """The command lines to run, with this interpreter's scripts."""
    scripts = Path(sys.executable).parent
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    found = [shlex.split(line) for line in lines if line.startswith(".venv/bin/")]
    found = [words for words in found if words[0] != ".venv/bin/pip"]  # installed by `.ci/run`
    return [[str(scripts / Path(words[0]).name), *words[1:]] for words in found]


def run_commands(text: str, folder: Path, root: Path) -> int:
    """Run every command line; returns how many there were."""
    found = commands(text)
    for words in found:
        there = [str(root / w) if w.startswith(("examples/", "benchmarks/")) else w for w in words]
        subprocess.run(there, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return len(found)


if __name__ == "__main__":
    readme, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    content = readme.read_text()
    os.chdir(folder)
    count = run_python(content)
    if "--commands" in sys.argv:
        count += run_commands(content, folder, readme.parent)
    if not count:
        sys.exit("README: nothing to run was found")
    print(f"README: {count} blocks and commands ran")
