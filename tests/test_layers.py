"""The one law, read from the source: imports run one way, and below `fedavg/` no float is data.

Also: where randomness comes from, and that the packages are typed.

Each check takes a file's name and source and returns complaints, so that each can be shown a bad source.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protocols import session

ROOT = Path(__file__).parents[1]
LAYERS = ("secagg", "protocols", "fedavg")  # from the ground up: each imports only itself and those before
FRONT_DOOR = ("secagg/__init__.py", "secagg/__main__.py")

Check = Callable[[str, str], list[str]]


def sources(*layers: str) -> list[tuple[str, str]]:
    """Each module of these layers as its name from the root and its text."""
    found = [path for layer in layers for path in sorted((ROOT / layer).rglob("*.py"))]
    return [(path.relative_to(ROOT).as_posix(), path.read_text()) for path in found]


def complaints(check: Check, *layers: str) -> list[str]:
    """What a check has against these layers."""
    files = sources(*layers)
    assert {name.split("/")[0] for name, _ in files} == set(layers)
    return [found for name, source in files for found in check(name, source)]


# --------------------------------------------------------------------------------------- imports


_DOTTED = re.compile(rf"({'|'.join(LAYERS)})(\.\w+)+")


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Every module a source imports, at the top or not, and every name it imports from a module.

    A string that is the dotted name of one of our modules counts: it can be meant for `import_module`.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Constant) and _DOTTED.fullmatch(str(node.value)):
            yield node.lineno, str(node.value)


def check_imports(name: str, source: str) -> list[str]:
    """A layer imports from no layer above it, nor through the front door, which leads up."""
    if name in FRONT_DOOR:
        return []
    layer = name.split("/")[0]
    above = LAYERS[LAYERS.index(layer) + 1 :]
    found = []
    for line, module in imported(source):
        package, _, rest = module.partition(".")
        if not package:
            found.append(f"{name}:{line}: {module} is relative: it hides the layer")
        elif package in above:
            found.append(f"{name}:{line}: {layer} imports {module} from above")
        elif package == "secagg" and above and not (rest and is_module(f"secagg/{rest.split('.')[0]}")):
            found.append(f"{name}:{line}: {layer} imports {module} through the front door")
    return found


def is_module(path: str) -> bool:
    """Whether there is a module or package of this name."""
    return (ROOT / f"{path}.py").exists() or (ROOT / path / "__init__.py").exists()


def check_seam(name: str, source: str) -> list[str]:
    """Nobody in `protocols/` imports the file of a protocol: protocols share by calling `secagg`."""
    homes = set(session._HOMES.values())
    own = name.removesuffix(".py").replace("/", ".")
    if name == "protocols/session.py":  # names them, and loads the one that is asked for
        return [f"{name}: {m}" for node in ast.walk(ast.parse(source)) for m in direct(node) if m in homes]
    return [
        f"{name}:{line}: imports {module}, the file of a protocol"
        for line, module in imported(source)
        if any(f"{module}.".startswith(f"{home}.") and home != own for home in homes)
    ]


def direct(node: ast.AST) -> list[str]:
    """Modules a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def test_imports_run_one_way() -> None:
    assert complaints(check_imports, *LAYERS) == []


def test_protocols_never_import_each_other() -> None:
    assert session._HOMES
    assert all(is_module(home.replace(".", "/")) for home in session._HOMES.values())
    assert complaints(check_seam, "protocols") == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("secagg/ring.py", "import protocols"),
        ("secagg/ring.py", "import protocols.wire as w"),
        ("secagg/ring.py", "from protocols import wire"),
        ("secagg/ring.py", "from protocols.wire import Envelope"),
        ("secagg/ring.py", "import numpy, fedavg"),
        ("secagg/ring.py", "def f():\n    from fedavg.codec import decode"),
        ("secagg/ring.py", "if TYPE_CHECKING:\n    from protocols.session import Session"),
        ("secagg/ring.py", "from importlib import import_module\nimport_module('protocols.session')"),
        ("secagg/ring.py", "from secagg import Session"),
        ("secagg/ring.py", "from . import field"),
        ("protocols/wire.py", "from fedavg import codec"),
        ("protocols/wire.py", "import fedavg.codec"),
        ("protocols/wire.py", "HOMES = {'x': 'fedavg.codec'}"),
        ("protocols/wire.py", "from secagg import simulate"),
        ("protocols/wire.py", "import secagg"),
        ("protocols/audit/leaks.py", "from fedavg.codec import decode"),
        ("protocols/audit/leaks.py", "from ..wire import Envelope"),
        ("fedavg/codec.py", "from .params import flatten"),
    ],
)
def test_an_import_from_above_is_noticed(name: str, source: str) -> None:
    assert len(check_imports(name, source)) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        (
            "fedavg/codec.py",
            "from protocols.session import Session\nfrom secagg import simulate\nimport fedavg.params",
        ),
        (
            "protocols/wire.py",
            "from secagg.labels import VERSION\nfrom secagg import box, keys\nimport protocols.errors",
        ),
        ("protocols/wire.py", "NAME = 'secagg'\nWORDS = 'the fedavg layer'"),
        ("secagg/ring.py", "from secagg.invalid import Invalid\nimport numpy as np"),
        ("secagg/__init__.py", "from protocols.session import Session"),
        ("secagg/__main__.py", "from fedavg.cli import cli"),
    ],
)
def test_an_import_from_below_is_not(name: str, source: str) -> None:
    assert check_imports(name, source) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("protocols/simulator.py", "from protocols import pairwise"),
        ("protocols/simulator.py", "from protocols.pairwise import Masked"),
        ("protocols/simulator.py", "import protocols.pairwise"),
        ("protocols/machine.py", "import_module('protocols.pairwise')"),
        ("protocols/session.py", "from protocols.pairwise import client"),
        ("protocols/session.py", "from protocols import pairwise"),
    ],
)
def test_an_import_of_a_protocol_is_noticed(name: str, source: str) -> None:
    assert check_seam(name, source)
    assert not check_seam("protocols/pairwise.py", "from protocols.machine import Input")


# ------------------------------------------------------------------------------------ randomness

SOURCES = {"urandom", "secrets", "getrandom", "uuid", "uuid1", "uuid4", "SystemRandom", "generate_key"}
THE_ONE_SOURCE = "secagg/randomness.py"


def check_randomness(name: str, source: str) -> list[str]:
    """No `random`, of the standard library or numpy; the system's generator only where it is named.

    A key must come from an `Rng` as well, so a library's own key generation is refused too.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        words: list[str] = []
        if isinstance(node, ast.Import):
            words = [word for alias in node.names for word in alias.name.split(".")]
        elif isinstance(node, ast.ImportFrom):
            words = (node.module or "").split(".") + [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            words = [node.attr]
            if node.attr == "generate" and isinstance(node.value, ast.Name):
                words.append("generate_key" if node.value.id.endswith("PrivateKey") else "")
        elif isinstance(node, ast.Constant) and node.value in ("random", "numpy.random", "secrets"):
            words = str(node.value).split(".")  # for getattr or import_module
        refused = {"random", "default_rng"} | (SOURCES if name != THE_ONE_SOURCE else set())
        found += [f"{name}:{node.lineno}: {word}" for word in words if word in refused]  # type: ignore[attr-defined]
    return found


def test_only_cryptographic_randomness_below_fedavg() -> None:
    assert complaints(check_randomness, "secagg", "protocols") == []


@pytest.mark.parametrize(
    "source",
    [
        "import random",
        "import random as r",
        "from random import Random",
        "import numpy.random",
        "import numpy.random as npr",
        "from numpy import random",
        "from numpy.random import default_rng",
        "import numpy as np\nx = np.random.bytes(4)",
        "import numpy\nx = numpy.random.default_rng(1)",
        "def f(x=np.random): ...",
        "rng = getattr(np, 'random')",
        "import_module('numpy.random')",
        "from nacl.utils import random",
        "import os\nx = os.urandom(4)",
        "from os import urandom",
        "import secrets",
        "from secrets import token_bytes",
        "key = X25519PrivateKey.generate()",
        "key = AESGCM.generate_key(128)",
        "from uuid import uuid4",
    ],
)
def test_weak_or_hidden_randomness_is_noticed(source: str) -> None:
    assert check_randomness("protocols/machine.py", source)
    assert check_randomness("secagg/keys.py", source)


def test_the_one_source_may_ask_the_system_and_nothing_weaker() -> None:
    assert check_randomness(THE_ONE_SOURCE, "import os\nsystem = os.urandom") == []
    assert check_randomness(THE_ONE_SOURCE, "import random")
    assert check_randomness(THE_ONE_SOURCE, "import numpy as np\nnp.random.bytes(4)")
    assert (
        check_randomness("secagg/keys.py", "from secagg.randomness import Rng, system\nIdentity.generate()")
        == []
    )


# ---------------------------------------------------------------------------------------- floats

EXACT_MULTIPLIERS = {
    # float64 that holds integers below 2^17, so that BLAS multiplies them exactly (bound in `multiply`)
    ("secagg/field.py", "power_matrix"),
    ("secagg/field.py", "lagrange_at_zero"),
    ("secagg/field.py", "multiply"),
    ("secagg/shamir.py", "_powers"),
    ("secagg/shamir.py", "_lagrange"),
}
SCALARS = {  # single floats, never arrays of them
    "secagg/noise.py": "variances",
    "protocols/graph.py": "fractions of the cohort, and probabilities",
    "protocols/session.py": "fractions of the cohort",
    "protocols/xnoise.py": "variances",
    "protocols/machine.py": "a variance",
    "protocols/crowd.py": "seconds",
    "protocols/simulator.py": "seconds",
    "protocols/micro.py": "seconds",
    "protocols/counts.py": "expected numbers",
    "protocols/estimate.py": "seconds, speeds, fractions of the cohort, and expected numbers",
}
_FLOATING = re.compile(r"c?float\w*|c?double|c?longdouble|half|c?single|inexact|complex\w*|number|ArrayLike")
_ARRAYS = {
    "NDArray",
    "ndarray",
    "list",
    "Sequence",
    "Iterable",
    "Iterator",
    "Collection",
    "array",
    "memoryview",
}


def floats(annotation: ast.expr) -> Iterator[str]:
    """The floating-point types in an annotation: "scalar" for a plain `float`, else "array"."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        yield from floats(ast.parse(annotation.value, mode="eval").body)
    elif isinstance(annotation, (ast.Name, ast.Attribute)):
        word = annotation.id if isinstance(annotation, ast.Name) else annotation.attr
        if _FLOATING.fullmatch(word):
            yield "scalar" if word == "float" and isinstance(annotation, ast.Name) else "array"
    elif isinstance(annotation, ast.Subscript):
        base = annotation.value
        word = base.id if isinstance(base, ast.Name) else base.attr if isinstance(base, ast.Attribute) else ""
        yield from floats(base)
        inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        endless = word == "tuple" and any(isinstance(i, ast.Constant) and i.value is ... for i in inner)
        for part in inner:
            plain = isinstance(part, (ast.Name, ast.Constant))
            for kind in floats(part):
                yield "array" if plain and (word in _ARRAYS or endless) else kind
    else:
        for child in ast.iter_child_nodes(annotation):
            if isinstance(child, ast.expr):
                yield from floats(child)


def annotated(source: str) -> Iterator[tuple[str, int, ast.expr]]:
    """Every annotation of a function, class or module, and every name given to a type, by its owner."""

    def within(body: list[ast.stmt], owner: str) -> Iterator[tuple[str, int, ast.expr]]:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                a = node.args
                every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
                for expression in [*(arg.annotation for arg in every), node.returns]:
                    if expression is not None:
                        yield f"{owner}{node.name}", node.lineno, expression
                yield from nested(node.body, f"{owner}{node.name}.")
            elif isinstance(node, ast.ClassDef):
                yield from within(node.body, f"{owner}{node.name}.")
            elif isinstance(node, ast.AnnAssign):
                yield f"{owner}{ast.unparse(node.target)}", node.lineno, node.annotation
            elif isinstance(node, ast.Assign) and isinstance(
                node.value, (ast.Subscript, ast.BinOp, ast.Attribute)
            ):
                yield f"{owner}{ast.unparse(node.targets[0])}", node.lineno, node.value
            else:
                yield from within([n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)], owner)

    def nested(body: list[ast.stmt], owner: str) -> Iterator[tuple[str, int, ast.expr]]:
        for node in body:  # a function's own variables are not its signature
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield from within([node], owner)
            else:
                yield from nested([n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)], owner)

    yield from within(ast.parse(source).body, "")


def check_floats(name: str, source: str) -> list[str]:
    """No float in a signature, but for the two lists above."""
    found = []
    for owner, line, annotation in annotated(source):
        for kind in floats(annotation):
            if kind == "scalar" and name in SCALARS:
                continue
            if (name, owner) not in EXACT_MULTIPLIERS:
                found.append(f"{name}:{line}: {owner} has a float {kind}: {ast.unparse(annotation)}")
    return found


def test_no_float_is_data_below_fedavg() -> None:
    assert complaints(check_floats, "secagg", "protocols") == []


def test_no_exemption_is_stale() -> None:
    used = {
        (name, owner if kind == "array" else "")
        for name, source in sources("secagg", "protocols")
        for owner, _, annotation in annotated(source)
        for kind in floats(annotation)
    }
    assert used == EXACT_MULTIPLIERS | {(name, "") for name in SCALARS}


@pytest.mark.parametrize(
    "source",
    [
        "def f(x: NDArray[np.float64]) -> None: ...",
        "def f() -> NDArray[np.float32]: ...",
        "def f(x: 'NDArray[np.float64]') -> None: ...",
        "def f(x: np.ndarray[Any, np.dtype[np.floating[Any]]]) -> None: ...",
        "def f(x: NDArray[np.inexact]) -> None: ...",
        "def f(x: NDArray[np.double] | None = None) -> None: ...",
        "def f(x: Sequence[NDArray[np.float16]]) -> None: ...",
        "def f(x: list[float]) -> None: ...",
        "def f(x: list['float']) -> None: ...",
        "def f(x: Sequence[float] | None) -> None: ...",
        "def f(x: tuple[float, ...]) -> None: ...",
        "def f(x: npt.ArrayLike) -> None: ...",
        "def f(x: dict[str, list[float]]) -> None: ...",
        "def f(*, x: np.float64) -> None: ...",
        "def f(*x: list[float]) -> None: ...",
        "def f(**x: list[float]) -> None: ...",
        "def f(x: list[float], /) -> None: ...",
        "async def f(x: list[float]) -> None: ...",
        "class A:\n    x: NDArray[np.float64]",
        "class A:\n    def f(self) -> list[float]: ...",
        "def f():\n    def g(x: list[float]) -> None: ...",
        "def f():\n    if True:\n        def g(x: list[float]) -> None: ...",
        "if True:\n    def f(x: list[float]) -> None: ...",
        "Update = NDArray[np.float64]",
        "Update: TypeAlias = list[float]\nWeights: list[float] = []",
        "Update = int | NDArray[np.float64]",
        "Update = np.float64",
    ],
)
def test_an_array_of_floats_is_noticed_in_every_file(source: str) -> None:
    for name in ("secagg/ring.py", "secagg/field.py", "protocols/machine.py", "protocols/graph.py"):
        assert check_floats(name, source)


@pytest.mark.parametrize(
    "source",
    [
        "def f(x: float) -> None: ...",
        "def f() -> float: ...",
        "def f(x: float | None = None) -> None: ...",
        "def f(x: 'float') -> None: ...",
        "class A:\n    x: float = 0.0",
        "def f() -> list[tuple[str, float]]: ...",
    ],
)
def test_a_single_float_is_noticed_but_where_it_is_allowed(source: str) -> None:
    for name in ("secagg/ring.py", "secagg/field.py", "protocols/pairwise.py", "protocols/wire.py"):
        assert check_floats(name, source)
    for name in SCALARS:
        assert check_floats(name, source) == []


@pytest.mark.parametrize(
    "source",
    [
        "def f(x: int, y: NDArray[np.int64], z: Vector) -> dict[str, bytes]: ...",
        "def f() -> None:\n    x: float = 0.5",
        "Elements = NDArray[np.int64]\nVector = NDArray[np.unsignedinteger[Any]]",
        "ORDER = P - 1\nfloating = 'float'",
    ],
)
def test_integers_are_not_taken_for_floats(source: str) -> None:
    assert check_floats("protocols/machine.py", source) == []


# ----------------------------------------------------------------------------------------- typing


def untyped(root: Path) -> list[str]:
    """The packages whose annotations nobody would read: they have no `py.typed`."""
    return [layer for layer in LAYERS if not (root / layer / "py.typed").is_file()]


def test_every_package_is_typed() -> None:
    assert untyped(ROOT) == []


def test_a_package_without_its_marker_is_noticed(tmp_path: Path) -> None:
    for layer in LAYERS:
        assert layer in untyped(tmp_path)
        (tmp_path / layer).mkdir()
        assert layer in untyped(tmp_path)
        (tmp_path / layer / "py.typed").touch()
    assert untyped(tmp_path) == []
