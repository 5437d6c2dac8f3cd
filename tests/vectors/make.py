"""Make the published vectors: every message of small sessions, and bad messages with the expected blame.

    python tests/vectors/make.py            write the JSON files beside this script
    python tests/vectors/make.py --check    compare with what is there; exit with 1 where they differ

Everything follows from fixed seeds. Another implementation that draws the same bytes (party's generator =
AES-256-CTR under SHA-256 of the bound seed, see `secagg.randomness.seeded`) must send the same messages.
Messages of large sessions, and of ciphertexts, are given by their SHA-256; those of Paillier are of keys of
2048 bits.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from protocols import threshold_paillier
from protocols.machine import Input, Received, StageClosed, Started
from protocols.session import Session
from protocols.wire import SERVER, Envelope
from secagg import keys, prg, proofs, shamir
from secagg.consortium import Consortium, KeyShare, deal, decrypt_partly
from secagg.keys import Identity
from secagg.labels import Label
from secagg.lanes import Lanes
from secagg.noise import FAMILIES, noise
from secagg.paillier import Encryptor, generate
from secagg.randomness import seeded
from secagg.ring import Ring

HERE = Path(__file__).resolve().parent
SESSIONS: dict[str, dict[str, Any]] = {
    "secagg-honest-but-curious": {"n": 4, "threat_model": "honest-but-curious"},
    "secagg-malicious": {"n": 5, "threat_model": "malicious", "dropout": 0.2, "corrupted": 0.2},
    "secagg-plus-semi-malicious": {
        "n": 50, "threat_model": "semi-malicious", "protocol": "secagg+", "dropout": 0.05, "corrupted": 0.05,
    },
}  # fmt: skip
PAILLIER: dict[str, dict[str, Any]] = {
    "threshold-paillier": {"n": 4},
    "threshold-paillier-consortium": {"n": 4, "dealt": True},
}
DIM, BOUND = 3, 1000
DROPPED = "p01"  # sends no masked vector


def names(n: int) -> list[str]:
    return [f"p{i:02}" for i in range(n)]


def consortium() -> tuple[Consortium, tuple[KeyShare, ...]]:
    """A key that was dealt to four."""
    return deal(4, 3, 2048, seeded(b"consortium"))


def parties(n: int, **agreed: Any) -> tuple[Session, dict[str, Identity], dict[str, list[int]]]:
    """The session, identities and inputs that the vectors are about."""
    if agreed.pop("dealt", False):
        agreed["consortium"] = consortium()[0]
    identities = {name: Identity.generate(seeded(b"identity", name.encode())) for name in names(n)}
    session = Session(
        {name: i.public for name, i in identities.items()}, DIM, BOUND, task="vectors", round=1, **agreed
    )  # fmt: skip
    inputs = {name: [i, 10 * i, BOUND - 1 - i] for i, name in enumerate(names(n))}
    return session, identities, inputs


def machines(session: Session, identities: dict[str, Identity]) -> tuple[Any, dict[str, Any]]:
    """All parties, each with its own seeded generator."""
    shares = None if session.consortium is None else consortium()[1]
    clients = {
        name: session.client(
            name, i, rng=seeded(b"client", name.encode()),
            share=None if shares is None else shares[session.positions[name]],
        )
        for name, i in identities.items()
    }  # fmt: skip
    return session.server(rng=seeded(b"server")), clients


def exchange(n: int, **agreed: Any) -> Iterator[tuple[str, Envelope, Any, dict[str, Any]]]:
    """Every message in order, with the stage in which the server gets or sent it, and the parties then."""
    session, identities, inputs = parties(n, **agreed)
    server, clients = machines(session, identities)
    up = [e for name, c in clients.items() for v in (Started(), Input(inputs[name])) for e in c.handle(v)]
    while server.result is None:
        stage, down = server.stage, []
        for envelope in up:
            if stage == "masked" and envelope.sender == DROPPED:
                continue
            yield stage, envelope, server, clients
            down += server.handle(Received(envelope))
        down += server.handle(StageClosed(stage))
        up = []
        for envelope in down:
            yield stage, envelope, server, clients
            if envelope.to != DROPPED or stage != "masked":
                up += clients[envelope.to].handle(Received(envelope))


def good(n: int, **agreed: Any) -> dict[str, Any]:
    """All messages of a session and its result."""
    session, _, inputs = parties(n, **agreed)
    messages, server = [], None
    for stage, envelope, server, _ in exchange(n, **agreed):  # noqa: B007
        line: dict[str, Any] = {"stage": stage, "from": envelope.sender, "to": envelope.to}
        if n <= 5 and not session.protocol.startswith("threshold"):
            line |= {"body": envelope.body.hex(), "frame": bytes(envelope.frame).hex()}
        else:
            line |= {"sha256": sha256(envelope.body + bytes(envelope.frame)).hexdigest()}
        messages.append(line)
    assert server is not None
    p = session.parameters
    return {
        "session": session.hash.hex(), "protocol": session.protocol, "threat_model": session.threat_model,
        "degree": p.degree, "threshold": p.threshold, "quorum": p.quorum, "bits": session.ring.bits,
        "inputs": inputs, "messages": messages, "sum": server.result.sum.tolist(),
        "included": list(server.result.included),
    }  # fmt: skip


# Each is (stage, who sends, who gets, what is done to the body); the blame is computed by running it.
def _flip_last(body: bytes) -> bytes:
    return body[:-1] + bytes([body[-1] ^ 1])


CHANGES: dict[str, Any] = {
    "last bit flipped": _flip_last,
    "last byte missing": lambda body: body[:-1],
    "a byte too many": lambda body: body + b"\0",
    "unknown version": lambda body: b"\x63" + body[1:],
    "empty": lambda body: b"",
}


def bad(n: int, **agreed: Any) -> list[dict[str, Any]]:
    """One message spoilt, each kind in each way, with the blame that follows."""
    seen: set[tuple[str, str]] = set()
    rows = []
    for stage, envelope, _, _ in exchange(n, **agreed):
        direction = "up" if envelope.to == SERVER else "down"
        party = envelope.sender if direction == "up" else envelope.to
        if (stage, direction) in seen or party == DROPPED:
            continue
        seen.add((stage, direction))
        for what, change in CHANGES.items():
            spoilt = change(envelope.body)
            found = blame(stage, envelope, spoilt, n, **agreed)
            rows.append(
                {"stage": stage, "from": envelope.sender, "to": envelope.to, "change": what,
                 "sha256": sha256(spoilt).hexdigest(), **found}
            )  # fmt: skip
    return rows


def blame(stage: str, target: Envelope, spoilt: bytes, n: int, **agreed: Any) -> dict[str, Any]:
    """Run the session up to `target`, deliver it spoilt, and say what its receiver concludes."""
    for here, envelope, server, clients in exchange(n, **agreed):
        if here == stage and envelope == target:
            wrong = Envelope(envelope.session, envelope.sender, envelope.to, spoilt, envelope.frame)
            receiver = server if envelope.to == SERVER else clients[envelope.to]
            receiver.handle(Received(wrong))
            faults = [
                {"culprits": list(f.culprits), "stage": f.stage, "cause": f.cause} for f in receiver.faults
            ]
            return {"faults": faults, "stopped": receiver.result is not None}
    raise AssertionError("the target is not sent")


def primitives() -> dict[str, Any]:
    """Known answers below the protocol."""
    ring, seed = Ring(26), bytes(range(16))
    vector = ring.zeros(5)
    vector = prg.accumulate(ring, vector, add=[seed])
    ring.reduce(vector)
    secret = bytes(range(32))
    shares = shamir.split([secret], 3, range(1, 6), seeded(b"shamir"))[0]
    a, b = (keys.AgreementKey(seeded(b"agreement", x)(32)) for x in (b"a", b"b"))
    return {
        "prg": {
            "seed": seed.hex(), "bits": 26, "vector": vector.tolist(),
            "packed": bytes(ring.pack(vector)).hex(),
        },
        "shamir": {"secret": secret.hex(), "threshold": 3, "shares": [s.hex() for s in shares]},
        "agreement": {
            "a": a.secret.hex(), "b": b.secret.hex(), "context": b"context".hex(),
            "mask_seed": a.agree(b.public, Label.MASK, b"context", prg.SEED_BYTES).hex(),
        },
        "noise": {
            "seed": seed.hex(),
            "samples": {
                family: {str(v): noise(family, v).sample(seed, 12).tolist() for v in (0.25, 100.0, 2.0**24)}
                for family in FAMILIES
            },
            "sum of the first 100,000": {
                family: int(noise(family, 100.0).sample(seed, 100_000).sum()) for family in FAMILIES
            },
        },
        "derive": keys.derive(secret, Label.SELF_MASK, b"context", length=16).hex(),
        "paillier": ciphertexts(),
    }  # fmt: skip


def ciphertexts() -> dict[str, Any]:
    """Known answers under one key, and what is proved about them."""
    key = generate(2048, seeded(b"paillier"))
    found, openings = Encryptor(key.public).encrypt_openly([0, 1, 12345], seeded(b"encrypt"))
    packed = key.public.pack(found)
    known = proofs.prove_plaintexts(key.public, found, openings, b"context", seeded(b"prove"))
    dealt, shares = consortium()
    theirs = Encryptor(dealt.public).encrypt([7, 8], seeded(b"encrypt"))
    partials, proof = decrypt_partly(dealt, shares[1], theirs, b"context", seeded(b"decrypt"))
    return {
        "modulus": hex(key.public.n), "base": hex(key.public.h), "ciphertexts": packed.hex(),
        "randomisers": [hex(r) for _, r in openings],
        "proof of the key": sha256(repr(proofs.prove_key(key, b"context")).encode()).hexdigest(),
        "proof of plaintexts": sha256(known.pack(key.public, 3)).hexdigest(),
        "roots": [hex(r) for r in proofs.prove_openings(key, found)[1]],
        "lanes": [hex(m) for m in Lanes(20, 100).pack(np.arange(7, dtype=np.uint64) * 1000)],
        "consortium": dealt.fingerprint.hex(), "partial": hex(partials[0]),
        "proof of partial decryptions": sha256(proof.pack(dealt)).hexdigest(),
    }  # fmt: skip


def everything() -> dict[str, str]:
    """File name -> content."""
    files: dict[str, Any] = {"primitives.json": primitives()}
    for name, agreed in SESSIONS.items():
        files[f"{name}.json"] = good(**agreed)
        if agreed["n"] <= 5:
            files[f"{name}-bad.json"] = bad(**agreed)
    bits, threshold_paillier.KEY_BITS = threshold_paillier.KEY_BITS, 2048
    try:
        for name, agreed in PAILLIER.items():
            files[f"{name}.json"] = good(**agreed, protocol="threshold-paillier", threat_model="malicious")
    finally:
        threshold_paillier.KEY_BITS = bits
    return {name: json.dumps(content, indent=1, sort_keys=True) + "\n" for name, content in files.items()}


def main() -> None:
    made = everything()
    if "--check" not in sys.argv:
        for name, content in made.items():
            (HERE / name).write_text(content)
        print(f"wrote {len(made)} files")
        return
    there = {path.name: path.read_text() for path in HERE.glob("*.json")}
    wrong = sorted(name for name in {*made, *there} if made.get(name) != there.get(name))
    if wrong:
        sys.exit(f"vectors differ from what their script makes: {', '.join(wrong)}")
    print(f"{len(made)} files of vectors are what their script makes")


if __name__ == "__main__":
    main()
