"""`secagg simulate --estimate`: what it prints, one clear line for what cannot be. No seconds are judged."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fedavg.cli import cli
from protocols import estimate as model
from protocols.micro import Micro, Overhead
from protocols.simulator import STAGES

OPERATIONS = [name for name in Micro.__slots__ if name != "overhead"]
MICRO = Micro(**dict.fromkeys(OPERATIONS, 1e-6), overhead={s: Overhead(*[1e-6] * 5) for s in STAGES})
ESTIMATE = ("simulate", "--estimate")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What was asked to be measured; nothing is, so that tests are quick."""
    asked: list[tuple[Any, ...]] = []

    def measure(*args: Any) -> Micro:
        asked.append(args)
        return MICRO

    monkeypatch.setattr(model, "measure", measure)
    return asked


def secagg(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(w) for w in words], prog_name="secagg")


def works(*words: object) -> str:
    result = secagg(*ESTIMATE, *words)
    assert result.exit_code == 0, (result.output, result.exception)
    return str(result.output)


def fails(*words: object) -> str:
    result = secagg(*words)
    assert result.exit_code != 0, result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    return str(result.output)


def estimated(*words: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(works("--json", *words))
    return found


def test_it_measures_this_machine_and_prints_a_table() -> None:
    output = works("--clients", 60, "--dim", 1000, "--threat-model", "malicious", "--dropping", 0.1)
    assert "secagg, malicious: 60 clients, 59 neighbours, threshold 34,\n1,000 entries of 22 bits" in output
    first = [line.split()[0] for line in output.splitlines() if line.split()]
    assert [word for word in first if word in ("roster", "all", *STAGES)] == ["roster", *STAGES, "all"]
    assert "A sum of 54 of 60 clients in about " in output
    for what in ("a client's CPU", "its bytes down", "the server's CPU", "its memory", "the wall time"):
        assert f"  {what}" in output
    assert "Measured here: " in output
    assert "leaves" not in output


@pytest.mark.parametrize("words", [(), ("--threat-model", "malicious", "--dropping", 0.1, "--dropout", 0.2)])
def test_bytes_are_those_of_the_simulation(words: tuple[object, ...], measured: list[Any]) -> None:
    given = ("--clients", 20, "--dim", 50, "--bits", 9, "--json", *words)
    found, real = json.loads(works(*given)), json.loads(secagg("simulate", *given).output)
    assert set(real) <= set(found)
    for key in ("clients", "dim", "bits", "protocol", "threat_model", "parameters", "included", "aborted"):
        assert found[key] == real[key]
    kept = ("stage", "client_bytes_up", "client_bytes_down")
    assert [[s[k] for k in kept] for s in found["stages"]] == [[s[k] for k in kept] for s in real["stages"]]
    assert [set(s) for s in found["stages"]] == [set(s) for s in real["stages"]]
    assert measured == [(found["bits"], 50, 20, real["parameters"]["threshold"], bool(words))]


def test_a_hundred_million_clients(measured: list[Any]) -> None:
    words = ("--clients", 10**8, "--protocol", "secagg+", "--dropping", 0.05, "--aggregators", 4096)
    output = works(*words)
    assert "A sum of 95,000,000 of 100,000,000 clients" in output
    assert "4.8 GB of roster, 12.5 MB each time it is told who is in the sum" in output
    assert "4,096 leaves of 24,415 clients" in output
    assert "Above them 273 in 3 levels" in output
    assert "Together they are the one server" in output
    assert "its bytes down   roster (100%)" in output
    found = estimated(*words, "--fanout", 64)
    assert (found["tree"]["leaves"], found["tree"]["depth"]) == (4096, 2)
    assert found["roster"]["client_bytes_down"] == 4_800_000_000
    assert measured == [(43, 100_000, 72, 40, False)] * 2


def test_json_says_all_that_the_table_says(measured: list[Any]) -> None:
    found = estimated("--clients", 1000, "--protocol", "secagg+")
    assert found["tree"] is None
    assert found["wall_seconds"] == pytest.approx(
        sum(sum(parts.values()) for stage, parts in found["wall"].items() if stage != "roster")
    )
    assert set(found["wall"]) == {"roster", *(s["stage"] for s in found["stages"])}
    assert found["server_memory_most"] > found["server_memory"]["sum"]
    assert set(found["heaviest"]) == {"client", "server", "bytes down", "memory", "wall"}
    assert found["micro"]["agree"] == MICRO.agree
    assert found["streams"] == 1000


def test_links_and_cores_are_in_the_units_they_say(measured: list[Any]) -> None:
    words = ("--clients", 10, "--dim", 10**6)
    found = estimated(
        *words, "--link-up", 2, "--link-down", 4, "--latency", 300, "--server-link", 1e6, "--cores", 2
    )
    stage = {s["stage"]: s for s in found["stages"]}["masked"]
    assert found["wall"]["masked"]["link up"] == pytest.approx(8 * stage["client_bytes_up"] / 2e6)
    assert found["wall"]["masked"]["link down"] == pytest.approx(8 * stage["client_bytes_down"] / 4e6)
    assert {parts.get("latency") for parts in found["wall"].values()} == {None, 0.3}
    narrow = estimated(*words, "--server-link", 1)
    assert narrow["wall"]["masked"]["server's link, up"] == pytest.approx(
        8 * 10 * stage["client_bytes_up"] / 1e6
    )
    assert found["wall"]["reveals"]["server"] < narrow["wall"]["reveals"]["server"], "two cores"


def test_a_picture_of_it(tmp_path: Path, measured: list[Any]) -> None:
    works("--clients", 10, "--picture", tmp_path / "costs.png")
    assert (tmp_path / "costs.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--link-up", 3], "--link-up"),
        (["--link-down", 3], "--link-down"),
        (["--latency", 0], "--latency"),
        (["--server-link", 3], "--server-link"),
        (["--cores", 1], "--cores"),
        (["--aggregators", 2, "--fanout", 2], "--aggregators, --fanout"),
    ],
)
def test_what_goes_with_an_estimate_is_refused_without_one(words: list[object], named: str) -> None:
    assert fails("simulate", "--clients", 5, "--dim", 2, *words) == f"Error: {named}: only with --estimate\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--clients", 10**8 + 1], "clients: expected 1 to 100000000, got 100000001"),
        (["--clients", 10**5], "the complete graph takes at most 65536 clients, got 100000: use secagg+"),
        (["--clients", 5, "--bits", 63], "needs 66 bits, so that no sum can wrap"),
        (
            ["--clients", 10, "--dropping", 0.8],
            "at least 6 are needed; the session withstands 1: raise dropout",
        ),
        (["--at", "signatures"], "nothing is signed in the honest-but-curious model"),
        (["--link-up", "nan"], "link: up: expected a positive number, got nan"),
        (["--link-down", 0], "link: down: expected a positive number, got 0"),
        (["--latency", -1], "link: latency: expected a positive number, got -0.001"),
        (["--server-link", "inf"], "link: server: expected a positive number, got inf"),
        (["--clients", 10, "--aggregators", 11], "aggregators: expected 1 to 10, got 11"),
        (["--cores", 0], "0 is not in the range x>=1"),
        (["--fanout", 1], "1 is not in the range x>=2"),
        (["--picture", "no/where.png"], "no/where.png: there is no such folder"),
    ],
)
def test_one_clear_line_for_what_cannot_be(words: list[object], message: str, measured: list[Any]) -> None:
    output = fails(*ESTIMATE, *words)
    assert message in output
    assert len([line for line in output.splitlines() if line.startswith("Error: ")]) == 1
    assert measured == []


def test_help_tells_the_defaults() -> None:
    output = secagg("simulate", "--help").output
    for option in ("--estimate", "--link-up", "--link-down", "--latency", "--server-link", "--cores"):
        assert option in output
    assert "each way, in Mbit/s. [default: 1000]" in " ".join(output.split())


def test_a_cluster_that_is_not_there_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedavg.cli import _check_reachable

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        for address in (f"127.0.0.1:{free.getsockname()[1]}", f"ray://127.0.0.1:{free.getsockname()[1]}"):
            with pytest.raises(ValueError, match="RAY_ADDRESS: there is no cluster at"):
                _check_reachable(address)
        free.listen()
        _check_reachable(f"127.0.0.1:{free.getsockname()[1]}")
    for found_by_ray in ("", "auto", "local"):
        _check_reachable(found_by_ray)
