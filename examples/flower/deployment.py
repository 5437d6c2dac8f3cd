"""A Flower deployment on this machine: one SuperLink, some SuperNodes, TLS and node authentication.

    with Deployment([{"table": "oslo.csv"}, {"table": "pisa.csv"}]) as federation:
        run = federation.run("path/to/app", {"rounds": 3})
    print(run.status, run.log)

Each SuperLink and SuperNode is a process of its own, on loopback, on free ports. The certificate
authority and the nodes' keys are made for the occasion and go with the folder. All that was started is
ended at the end of the `with` block, however it ends.

Linux and macOS. Nothing is fetched: telemetry, update checks and the installation of an app's
dependencies are off, so the app's imports must be installed already.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

Value = str | int | float | bool

_SIMULATED = ("--insecure", "--simulation")
PATIENCE = 60.0  # seconds for one process to start, or one command to end
HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Run:
    """A run that ended: `status` is "finished:completed", "finished:failed" or "finished:stopped"."""

    run_id: str
    status: str
    details: str
    log: str

    @property
    def completed(self) -> bool:
        return self.status == "finished:completed"


class Deployment:
    """One SuperLink and a SuperNode for each entry of `nodes`, whose mapping is its node-config.

    A number instead of nodes is that many virtual ones, in Flower's simulation engine: without TLS, and told
    apart by `partition-id` in their node-config.

    `folder` holds keys, certificates, logs and Flower's homes; a temporary one, removed at the end,
    where none is given. `env` is added to the environment of all processes.
    """

    def __init__(
        self,
        nodes: Sequence[Mapping[str, Value]] | int,
        *,
        folder: str | Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._virtual = nodes if isinstance(nodes, int) else 0
        self.nodes = [] if isinstance(nodes, int) else [dict(node) for node in nodes]
        self._folder = folder
        self._extra = dict(env or {})
        self._roots: list[subprocess.Popen[bytes]] = []
        self._groups: set[int] = set()
        self._stack = ExitStack()

    def __enter__(self) -> Deployment:
        with ExitStack() as stack:
            folder = self._folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="flower-"))
            self.folder = Path(folder).resolve()
            self.folder.mkdir(parents=True, exist_ok=True)
            stack.callback(self._end_all)
            self._start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, app: str | Path, config: Mapping[str, Value] | None = None, timeout: float = 600.0) -> Run:
        """Run an app's folder to its end, at most `timeout` seconds; the run-config gets `config`."""
        run_id = self.start(app, config)
        return self.wait(run_id, timeout)

    def start(self, app: str | Path, config: Mapping[str, Value] | None = None) -> str:
        """Start an app's folder; the run's id."""
        overrides = ["--run-config", _pairs(config)] if config else []
        if self._virtual:
            engine = {
                "num-supernodes": self._virtual,
                "client-resources-num-cpus": 1,
                "init-args-num-cpus": 2,
            }
            overrides += ["--federation-config", _pairs(engine)]
        started = self._flwr("run", str(app), "here", "--format", "json", *overrides)
        return str(started["run-id"])

    def wait(self, run_id: str, timeout: float = 600.0) -> Run:
        """Wait for a run's end; it is stopped after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            row = self._row(run_id)
            if row["status"].startswith("finished"):
                return Run(run_id, row["status"], row["status-details"], self.log(run_id))
            self._check_alive()
            if time.monotonic() > deadline:
                self._flwr("stop", run_id, "here", "--format", "json")
                deadline = float("inf")
            time.sleep(0.5)

    def status(self, run_id: str) -> str:
        """Of a run: "pending", "starting", "running", or what `Run.status` says at the end."""
        return str(self._row(run_id)["status"])

    def _row(self, run_id: str) -> dict[str, Any]:
        (row,) = self._flwr("ls", "here", "--run-id", run_id, "--format", "json")["runs"]
        return dict(row)

    def log(self, run_id: str) -> str:
        """What the ServerApp of a run has printed and logged so far."""
        return self._command("log", run_id, "here", "--show")

    def process_log(self, name: str) -> str:
        """What a process has printed: "superlink" or "supernode-0" and so on, with its ClientApps."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def kill_node(self, index: int) -> None:
        """End a SuperNode and its ClientApp at once and without a farewell, as a power cut would."""
        root = self._roots[1 + index]
        if root.poll() is None:
            os.killpg(root.pid, signal.SIGKILL)
            root.wait()

    def _start(self) -> None:
        self._env = os.environ | {
            # The SuperLink and the SuperNodes start their helpers by name.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",  # seconds; 1 by itself
            "PYTHONUNBUFFERED": "1",
            **self._extra,
        }
        port, *node_ports = _free_ports(1 + len(self.nodes))
        address = f"{HOST}:{port}"
        if self._virtual:
            self._spawn("superlink", "flower-superlink", "--host", HOST, "--port", str(port), *_SIMULATED)
            self._connect(address, "insecure = true")
            self._until_listening(port)
            return
        ca, certificate, key = _certify(self.folder)
        self._spawn(
            "superlink", "flower-superlink", "--host", HOST, "--port", str(port),
            "--ssl-ca-certfile", str(ca), "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key),
            "--enable-supernode-auth",
        )  # fmt: skip
        self._connect(address, f"root-certificates = {json.dumps(str(ca))}")
        self._until_listening(port)
        # The SuperLink's helper, already started then, leads a group of its own.
        self._groups |= {group for _, parent, group in _processes() if parent == self._roots[0].pid}
        for i, (config, node_port) in enumerate(zip(self.nodes, node_ports, strict=True)):
            private, public = _node_key(self.folder, f"supernode-{i}")
            self._flwr("supernode", "register", str(public), "here", "--format", "json")
            self._spawn(
                f"supernode-{i}", "flower-supernode", "--superlink", address,
                "--root-certificates", str(ca), "--auth-supernode-private-key", str(private),
                "--host", HOST, "--port", str(node_port), "--node-config", _pairs(config),
            )  # fmt: skip
        self._until_online()

    def _connect(self, address: str, security: str) -> None:
        """Tell Flower's commands where the SuperLink is."""
        here = f'[superlink.here]\naddress = "{address}"\n{security}\n'
        _write(self._home("cli") / "config.toml", f'[superlink]\ndefault = "here"\n\n{here}')

    def _spawn(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self._roots.append(
                subprocess.Popen(
                    command, cwd=self._home(name), env=self._env | {"FLWR_HOME": str(self._home(name))},
                    stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                )
            )  # fmt: skip
        # A helper stays in the group even if its parent dies, when nothing else tells whose it was.
        self._groups.add(self._roots[-1].pid)

    def _home(self, name: str) -> Path:
        home = self.folder / name
        home.mkdir(exist_ok=True)
        return home

    def _check_alive(self) -> None:
        if self._roots[0].poll() is not None:
            raise RuntimeError(f"the SuperLink ended early; its log says:\n{self.process_log('superlink')}")

    def _until_listening(self, port: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            self._check_alive()
            try:
                socket.create_connection((HOST, port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the SuperLink did not listen within {PATIENCE:.0f} s") from None
                time.sleep(0.1)

    def _until_online(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            for i, root in enumerate(self._roots[1:]):
                if root.poll() is not None:
                    name = f"supernode-{i}"
                    raise RuntimeError(f"{name} ended early; its log says:\n{self.process_log(name)}")
            rows = self._flwr("supernode", "list", "here", "--format", "json")["nodes"]
            if sum(row["status"] == "online" for row in rows) == len(self.nodes):
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"not all SuperNodes were online within {PATIENCE:.0f} s")
            time.sleep(0.2)

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        text = self._command(*arguments)
        answer: dict[str, Any] = json.loads(text[text.index("{") :])
        if not answer.get("success"):
            raise RuntimeError(f"flwr {arguments[0]} failed: {answer}")
        return answer

    def _command(self, *arguments: str) -> str:
        done = subprocess.run(
            ["flwr", *arguments], env=self._env | {"FLWR_HOME": str(self._home("cli"))},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"flwr {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def _end_all(self) -> None:
        # SuperNodes first: they sign off at a SuperLink that still answers.
        for batch in (self._roots[1:], self._roots[:1]):
            for root in batch:
                if root.poll() is None:
                    root.send_signal(signal.SIGTERM)
            for root in batch:
                try:
                    root.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    root.kill()
                    root.wait()
        # Helpers watch for their parent's end, but a parent that nobody reaps seems alive to them for ever.
        deadline = time.monotonic() + 1
        while left := [pid for pid, _, group in _processes() if group in self._groups]:
            if time.monotonic() > deadline:
                for pid in left:
                    _signal(pid, signal.SIGKILL)
            time.sleep(0.05)
        self._roots.clear()
        self._groups.clear()


def _pairs(config: Mapping[str, Value]) -> str:
    """Flower's `key=value` list, in which a string must be quoted and cannot hold its quote."""
    words = []
    for key, value in config.items():
        if isinstance(value, str) and ("'" in value or "\n" in value):
            raise ValueError(f"{key}: a text without ' and line breaks is expected, got {value!r}")
        words.append(f"{key}='{value}'" if isinstance(value, str) else f"{key}={json.dumps(value)}")
    return " ".join(words)


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago; held together, so that no two are the same."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [int(s.getsockname()[1]) for s in sockets]


def _write(path: Path, content: str | bytes) -> Path:
    """Write a file that only its owner may read."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return path


def _certify(folder: Path) -> tuple[Path, Path, Path]:
    """A fresh certificate authority and a certificate for loopback: paths of CA, certificate, key."""
    now = datetime.datetime.now(datetime.UTC)
    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "Local federation")])
    names = x509.SubjectAlternativeName(
        [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(HOST))]
    )

    def certificate(subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False
            )
        )

    root = certificate(issuer, authority.public_key()).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    root = root.add_extension(_usage(sign_certificates=True), critical=True)
    subject = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "localhost")])
    leaf = certificate(subject, server.public_key()).add_extension(names, critical=False)
    leaf = leaf.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    leaf = leaf.add_extension(_usage(sign_certificates=False), critical=True)
    leaf = leaf.add_extension(
        x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
    )
    pem = serialization.Encoding.PEM
    secret = server.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return (
        _write(folder / "ca.crt", root.sign(authority, hashes.SHA256()).public_bytes(pem)),
        _write(folder / "superlink.crt", leaf.sign(authority, hashes.SHA256()).public_bytes(pem)),
        _write(folder / "superlink.key", secret),
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates, key_cert_sign=sign_certificates, crl_sign=sign_certificates,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _node_key(folder: Path, name: str) -> tuple[Path, Path]:
    """A fresh P-384 key pair in OpenSSH's formats, the only ones that Flower reads."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return _write(folder / f"{name}.key", private), _write(folder / f"{name}.pub", public)


def _processes() -> list[tuple[int, int, int]]:
    """Process id, parent and process group of all that are alive."""
    table = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,pgid=,stat="], capture_output=True, text=True, check=True
    )
    rows = (line.split() for line in table.stdout.splitlines())
    return [(int(pid), int(parent), int(group)) for pid, parent, group, state in rows if state[0] != "Z"]


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
