"""Paillier: what a vector costs under one key, beside python-paillier and two lattice schemes; what it costs
to let nobody have the key; and how safe primes are found.

The unit of an encryption is one measured multiplication modulo n^2 times as many as the tables leave; of a
partial decryption, one measured exponentiation. python-paillier takes its numbers one at a time: it is
measured on a few and scaled. Party, unit and peers take turns in one process, on one thread, in CPU time;
OpenFHE's has its own if `OPENFHE_PYTHON` names an interpreter that has it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import gmpy2
import numpy as np
import phe
from gmpy2 import mpz
from record import MALICIOUS, Edition, gone_of, machine

from protocols import threshold_paillier
from protocols.errors import Aborted
from protocols.graph import parameters
from protocols.simulator import simulate
from secagg import consortium, primes, proofs
from secagg.dealing import Sharing
from secagg.lanes import Lanes
from secagg.paillier import SAFE_SHORT, Encryptor, PrivateKey, PublicKey, add, generate
from secagg.randomness import seeded

HOSPITALS, VALUE_BITS = 10, 16


def timed(work: Any, *given: Any) -> tuple[float, Any]:
    """CPU seconds of a call, and what came of it."""
    start = process_time()
    found = work(*given)
    return process_time() - start, found


def _bits(edition: Edition) -> int:
    return 2048 if edition == "tiny" else 3072


def _dim(edition: Edition) -> int:
    return {"tiny": 500, "small": 20_000, "full": 100_000}[edition]


def one_key(edition: Edition) -> dict[str, Any]:
    """A vector under one key: encrypted, added ten times, decrypted, and python-paillier beside it."""
    dim, bits = _dim(edition), _bits(edition)
    few, repeats = {"tiny": (3, 1), "small": (20, 3), "full": (200, 5)}[edition]
    key = generate(bits, seeded(b"benchmark"), safe=True)
    public, lanes = key.public, Lanes.fitting(bits - 1, 1 << VALUE_BITS, HOSPITALS)
    values = np.random.default_rng(1).integers(0, 1 << VALUE_BITS, dim)
    rows = lanes.plaintexts(dim)
    shorter = PublicKey(public.n, public.h, SAFE_SHORT)
    table, encryptor = timed(Encryptor, public, rows)
    short_encryptor = Encryptor(shorter, rows)
    theirs = phe.PaillierPublicKey(public.n)
    opens = phe.PaillierPrivateKey(theirs, key.p, key.q)
    found: dict[str, Any] = {
        "dim": dim, "bits": bits, "values": VALUE_BITS, "hospitals": HOSPITALS, "lane": lanes.width,
        "ciphertexts": rows, "table": table, "phe_values": few,
        **{k: [] for k in ("encrypt", "unit", "short", "add", "decrypt",
                           "phe_encrypt", "phe_add", "phe_decrypt")},
    }  # fmt: skip
    for _ in range(repeats):
        seconds, ciphertexts = timed(_encrypted, encryptor, lanes, values)
        found["encrypt"].append(seconds)
        found["unit"].append(_multiplications(encryptor, rows, ciphertexts))
        found["short"].append(timed(_encrypted, short_encryptor, lanes, values)[0])
        seconds, total = timed(add, public, [ciphertexts] * HOSPITALS)
        found["add"].append(seconds)
        seconds, opened = timed(_decrypted, key, lanes, total, dim)
        found["decrypt"].append(seconds)
        assert np.array_equal(opened, HOSPITALS * values), "the benchmark computed a wrong sum"
        scale, some = dim / few, [int(v) for v in values[:few]]
        seconds, numbers = timed(_each, theirs.encrypt, some)
        found["phe_encrypt"].append(seconds * scale)
        seconds, sums = timed(_each, _ten, numbers)
        found["phe_add"].append(seconds * scale)
        seconds, opened = timed(_each, opens.decrypt, sums)
        found["phe_decrypt"].append(seconds * scale)
        assert opened == [HOSPITALS * v for v in some]
    found["bytes"] = len(public.pack(ciphertexts))
    found["at_most"] = edition == "full"
    return found


def _encrypted(encryptor: Encryptor, lanes: Lanes, values: Any) -> list[Any]:
    return encryptor.encrypt(lanes.pack(values))


def _decrypted(key: PrivateKey, lanes: Lanes, ciphertexts: list[Any], dim: int) -> Any:
    return lanes.unpack(key.decrypt(ciphertexts), dim)


def _each(work: Any, values: list[Any]) -> list[Any]:
    return [work(v) for v in values]


def _ten(number: Any) -> Any:
    return _sum([number] * HOSPITALS)


def _sum(vectors: list[Any]) -> Any:
    total = vectors[0]
    for vector in vectors[1:]:
        total = total + vector
    return total


def _multiplications(encryptor: Encryptor, rows: int, ciphertexts: list[Any]) -> float:
    """One multiplication modulo n^2, times those needed: one a window of each exponent, and one more."""
    powers, square = encryptor._powers, encryptor.public.square
    assert powers is not None
    a, b, many = mpz(ciphertexts[0]), mpz(ciphertexts[-1]) - 1, 5000
    seconds, _ = timed(lambda: [a * b % square for _ in range(many)])
    return seconds / many * rows * (ceil(encryptor.public.short / powers.window) + 1)


def lattices(edition: Edition) -> dict[str, Any]:
    """The same vector by TenSEAL's CKKS, with NVFlare's parameters and key, and by OpenFHE's BFV."""
    dim, repeats = _dim(edition), {"tiny": 1, "small": 3, "full": 5}[edition]
    found: dict[str, Any] = {"dim": dim}
    if find_spec("tenseal") is not None:
        import tenseal as ts

        warnings.simplefilter("ignore")
        # As NVFlare provisions it: one symmetric key, which every client has.
        context = ts.context(
            ts.SCHEME_TYPE.CKKS, poly_modulus_degree=8192, coeff_mod_bit_sizes=[60, 40, 40],
            encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC,
        )  # fmt: skip
        context.global_scale = 2**40
        values = np.random.default_rng(1).integers(0, 1 << VALUE_BITS, dim) / (1 << VALUE_BITS)
        rows: dict[str, Any] = {"encrypt": [], "add": [], "decrypt": []}
        for _ in range(repeats):
            seconds, data = timed(_serialised, ts, context, values)
            rows["encrypt"].append(seconds)
            vectors = [ts.ckks_vector_from(context, data) for _ in range(HOSPITALS)]
            seconds, total = timed(_sum, vectors)
            rows["add"].append(seconds)
            seconds, opened = timed(total.decrypt)
            rows["decrypt"].append(seconds)
        rows["bytes"] = len(data)
        rows["error"] = float(np.abs(np.array(opened) - HOSPITALS * values).max())
        found["TenSEAL"] = rows
    python = os.environ.get("OPENFHE_PYTHON", sys.executable)
    script = Path(__file__).with_name("openfhe_peer.py")
    done = subprocess.run([python, script, str(dim), str(repeats)], capture_output=True, text=True)
    if done.returncode == 0:
        found["OpenFHE"] = json.loads(done.stdout)
    return found


def _serialised(ts: Any, context: Any, values: Any) -> bytes:
    data: bytes = ts.ckks_vector(context, values).serialize()
    return data


def safe_primes(edition: Edition) -> dict[str, Any]:
    """Keys of safe primes from as many seeds, and a search by gmpy2's `next_prime` from the same starts."""
    bits, runs = {"tiny": (512, 2), "small": (2048, 3), "full": (3072, 20)}[edition]
    found: dict[str, Any] = {"bits": bits, "ours": [], "theirs": []}
    primes.safe_prime(128, seeded(b"the sieve's primes"))
    for run in range(runs):
        for which, search in (("ours", primes.safe_prime), ("theirs", _next_safe)):
            rng = seeded(b"safe primes", bytes([run]))
            found[which].append(sum(timed(search, bits // 2, rng)[0] for _ in range(2)))
    return found


def _next_safe(bits: int, rng: Any) -> Any:
    q = mpz.from_bytes(rng(bits // 8), "little") >> 1 | mpz(3) << bits - 3
    while True:
        q = gmpy2.next_prime(q)
        if gmpy2.is_prime(2 * q + 1):
            return 2 * q + 1


def shared(edition: Edition) -> dict[str, Any]:
    """A consortium's key: what one of ten owners does to open a vector, and what checks and combines it."""
    dim, bits = _dim(edition), _bits(edition)
    threshold = 7
    deal, (key, shares) = timed(consortium.deal, HOSPITALS, threshold, bits, seeded(b"deal"))
    lanes = Lanes.fitting(bits - 1, 1 << VALUE_BITS, HOSPITALS)
    values = np.random.default_rng(2).integers(0, 1 << VALUE_BITS, dim)
    ciphertexts = Encryptor(key.public, lanes.plaintexts(dim)).encrypt(lanes.pack(values))
    count, exponent = len(ciphertexts), 2 * key._delta * shares[0].secret
    few = ciphertexts[: min(count, 20)]

    def power(c: Any) -> Any:
        return gmpy2.powmod_sec(c, exponent, key.public.square)

    before, _ = timed(_each, power, few)
    seconds, (partials, proof) = timed(consortium.decrypt_partly, key, shares[0], ciphertexts, b"benchmark")
    after, _ = timed(_each, power, few)
    check, _ = timed(consortium.check_partials, key, 0, ciphertexts, partials, proof, b"benchmark")
    head = ciphertexts[:2]
    opened = {s.place: consortium.decrypt_partly(key, s, head, b"")[0] for s in shares[:threshold]}
    combine, plaintexts = timed(consortium.combine, key, opened)
    assert plaintexts == lanes.pack(values)[:2]
    return {
        "bits": bits, "dim": dim, "owners": HOSPITALS, "threshold": threshold, "ciphertexts": count,
        "deal": deal, "partial": seconds, "exponentiation": (before + after) / 2 / len(few), "check": check,
        "combine": combine / 2 * count, "proof_bytes": consortium.proof_bytes(key),
        "at_most": edition == "full",
    }  # fmt: skip


def no_dealer(edition: Edition) -> dict[str, Any]:
    """A contribution to ten owners' keys, against one to one key: bytes, encryption, and the proofs."""
    dim, bits = _dim(edition), _bits(edition)
    keys: list[PrivateKey] = [generate(bits, seeded(b"owner", bytes([i]))) for i in range(HOSPITALS)]
    values = np.random.default_rng(3).integers(0, 1 << VALUE_BITS, dim)
    single = Lanes.fitting(bits - 1, 1 << VALUE_BITS, HOSPITALS)
    one = Encryptor(keys[0].public, single.plaintexts(dim))
    one_seconds, _ = timed(_encrypted, one, single, values)
    sharing = Sharing(HOSPITALS, 7, HOSPITALS, bits)
    lanes = sharing.lanes(1 << VALUE_BITS)
    rows = lanes.plaintexts(dim)
    sharing.prime  # noqa: B018  # found once a process
    deal, dealt = timed(sharing.deal, lanes.pack(values))
    encrypt = prove = check = 0.0
    size = 0
    for key, integers in zip(keys, dealt, strict=True):
        encryptor = Encryptor(key.public, rows)
        seconds, (ciphertexts, openings) = timed(encryptor.encrypt_openly, integers)
        encrypt += seconds
        seconds, proof = timed(proofs.prove_plaintexts, key.public, ciphertexts, openings, b"benchmark")
        prove += seconds
        check += timed(proofs.check_plaintexts, key.public, ciphertexts, proof, b"benchmark")[0]
        size += len(key.public.pack(ciphertexts)) + len(proof.pack(key.public, rows))
    return {
        "bits": bits, "dim": dim, "owners": HOSPITALS, "deal": deal, "encrypt": encrypt, "prove": prove,
        "check": check, "bytes": size, "one_encrypt": one_seconds,
        "one_bytes": single.plaintexts(dim) * keys[0].public.ciphertext_bytes, "at_most": edition == "full",
    }  # fmt: skip


def sessions(edition: Edition) -> list[dict[str, Any]]:
    """Whole sessions of ten hospitals, two of whom drop out, by protocol."""
    dim, found = {"tiny": 100, "small": 1000, "full": 100_000}[edition], []
    n = 5 if edition == "tiny" else HOSPITALS
    agreed: dict[str, Any] = {"threat_model": MALICIOUS, "corrupted": 0.2, "dropout": 0.2}
    gone = gone_of(n, 0.2)
    threshold_paillier.KEY_BITS = _bits(edition)
    threshold = parameters(n, 0.2, 0.2, "threshold-paillier", MALICIOUS).threshold
    key, shares = consortium.deal(n, threshold, _bits(edition), seeded(b"deal"))
    for work, more in (
        ("secagg", {"protocol": "secagg"}), ("threshold-paillier", {"protocol": "threshold-paillier"}),
        ("threshold-paillier, consortium's key",
         {"protocol": "threshold-paillier", "consortium": key, "shares": shares}),
    ):  # fmt: skip
        start = perf_counter()
        run = simulate(n, dim=dim, bound=1 << VALUE_BITS, drop=gone, **agreed, **more)
        if isinstance(run.result, Aborted):
            raise run.result
        p = run.session.parameters
        found.append({
            "work": work, "n": n, "k": p.degree, "t": p.threshold, "b": run.session.ring.bits, "dim": dim,
            "dropout": 0.2, "threat_model": MALICIOUS, "noise": "none", "wall": perf_counter() - start,
            "client": sum(r.client_cpu_mean for r in run.rows()),
            "server": sum(r.server_cpu for r in run.rows()),
            "up": sum(r.client_bytes_up for r in run.rows()),
            "down": sum(r.client_bytes_down for r in run.rows()),
        })  # fmt: skip
    return found


def measure(edition: Edition) -> dict[str, Any]:
    """All of it."""
    found: dict[str, Any] = {"machine": machine("secagg", "numpy", "gmpy2", "phe", "tenseal")}
    for part in (one_key, lattices, safe_primes, shared, no_dealer, sessions):
        start = perf_counter()
        found[part.__name__] = part(edition)
        print(f"  paillier: {part.__name__}: {perf_counter() - start:.0f} s", flush=True)
    return found


def _judged(value: float, limit: float, asked: bool, form: str = "{:.2f}") -> str:
    """A figure, in bold, and the limit if one is asked for."""
    missed = " (missed)" if asked and value > limit else ""
    return f"**{form.format(value)}** | {f'{limit:g}' if asked else ''}{missed}"


def _inverse(ours: float, theirs: float, limit: int, asked: bool) -> str:
    times = theirs / ours
    missed = " (missed)" if asked and times < limit else ""
    return f"**1/{times:,.0f}** | {f'1/{limit:,}' if asked else ''}{missed}"


def report(found: dict[str, Any]) -> list[str]:
    """The section of the page."""
    o = found["one_key"]
    best = {k: min(o[k]) for k in o if isinstance(o[k], list)}
    return [
        "## Paillier",
        "",
        f"One key of {o['bits']} bits, {o['dim']:,} values of {o['values']} bits, sums of {o['hospitals']}: "
        f"lanes of {o['lane']} bits in",
        f"{o['ciphertexts']:,} ciphertexts. CPU seconds on one core, least of the repeats, in turn.",
        f"phe (with gmpy2) is measured on {o['phe_values']} values and scaled. A multiplication is one of "
        "two ciphertexts modulo n^2.",
        "",
        *_of_one_key(o, best),
        "",
        *_of_sharing(found["shared"], found["no_dealer"]),
        "",
        *_of_primes(found["safe_primes"]),
        "",
        *_of_lattices(found["lattices"], best, o["bytes"] / o["dim"]),
        "",
        *_of_sessions(found["sessions"]),
    ]


def _of_one_key(o: dict[str, Any], best: dict[str, float]) -> list[str]:
    asked, value = o["at_most"], o["bytes"] / o["dim"]
    encrypt, theirs = best["encrypt"], best["phe_encrypt"]
    with_table = encrypt + o["table"]
    return [
        "| work | s | beside | s | ratio | at most |",
        "|---|--:|---|--:|--:|--:|",
        f"| encrypt, half-length randomisers | {encrypt:.2f} | multiplications needed "
        f"| {best['unit']:.2f} | {_judged(encrypt / best['unit'], 1.15, asked)} |",
        f"| the same | {encrypt:.2f} | phe | {theirs:,.0f} | {_inverse(encrypt, theirs, 2000, asked)} |",
        f"| the same and its tables | {with_table:.2f} | phe | {theirs:,.0f} "
        f"| {_inverse(with_table, theirs, 2000, False)} |",
        f"| encrypt, 320-bit randomisers (safe primes) | {best['short']:.2f} | half-length "
        f"| {encrypt:.2f} | {_judged(best['short'] / encrypt, 0.25, asked)} |",
        f"| sum of {o['hospitals']} | {best['add']:.3f} | phe | {best['phe_add']:,.1f} "
        f"| {_inverse(best['add'], best['phe_add'], 80, asked)} |",
        f"| decrypt with the key | {best['decrypt']:.2f} | phe | {best['phe_decrypt']:,.0f} "
        f"| {_inverse(best['decrypt'], best['phe_decrypt'], 100, asked)} |",
        f"| bytes a value | | | | {_judged(value, 5.1, asked)} |",
    ]


def _of_sharing(c: dict[str, Any], d: dict[str, Any]) -> list[str]:
    each = c["partial"] / c["ciphertexts"]
    times = d["encrypt"] / (d["owners"] * d["one_encrypt"])
    size = d["bytes"] / (d["owners"] * d["one_bytes"])
    return [
        f"So that nobody has the key, {c['owners']} owners, {c['threshold']} of whom open; the same vector:",
        "",
        "| work | ratio | at most |",
        "|---|--:|--:|",
        "| consortium's key: a partial decryption and its proof, in exponentiations "
        f"| {_judged(each / c['exponentiation'], 1.1, c['at_most'])} |",
        "| no dealer: encryption for all owners, in encryptions under one key for each "
        f"| {_judged(times, 1.1, d['at_most'])} |",
        f"| no dealer: bytes with proofs, likewise | {_judged(size, 1.1, d['at_most'])} |",
        "",
        f"With a consortium's key an owner takes {each * 1e3:.1f} ms a ciphertext, {c['partial']:.1f} s in "
        "all,",
        f"for its part in opening the vector; to check that takes {c['check']:.2f} s, to combine "
        f"{c['combine']:.2f} s.",
        f"The proof has {c['proof_bytes']:,} bytes. To deal the key took {c['deal']:.1f} s.",
        f"Without a dealer a contributor takes {d['deal']:.2f} s to share its vector, "
        f"{d['encrypt']:.1f} s to encrypt and {d['prove']:.2f} s",
        f"to prove; all its proofs are checked in {d['check']:.2f} s.",
    ]


def _of_primes(r: dict[str, Any]) -> list[str]:
    ours, theirs = median(r["ours"]), median(r["theirs"])
    return [
        f"Safe primes for a key of {r['bits']} bits, {len(r['ours'])} seeded runs: median **{ours:.1f} s** "
        f"({min(r['ours']):.1f} to {max(r['ours']):.1f}).",
        f"A search by gmpy2's `next_prime`, from the same seeds: median {theirs:.1f} s "
        f"({min(r['theirs']):.1f} to {max(r['theirs']):.1f}), {theirs / ours:.1f} times as long.",
    ]


def _of_lattices(found: dict[str, Any], ours: dict[str, float], value: float) -> list[str]:
    named = {
        "TenSEAL": "TenSEAL, CKKS, as NVFlare provisions it",
        "OpenFHE": "OpenFHE, BFV, public key",
    }
    there = [name for name in named if name in found]
    if not there:
        return ["No lattice scheme was installed beside it."]
    lines = [
        "**Lattice schemes are faster.** The same values in CPU seconds, and our time as a multiple:",
        "",
        "| scheme | encrypt | ours | sum of ten | ours | decrypt | ours | bytes a value | the sum |",
        "|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for name in there:
        r = found[name]
        cells = []
        for what in ("encrypt", "add", "decrypt"):
            cells += [f"{min(r[what]):.4f}", f"{ours[what] / min(r[what]):.1f}"]
        exact = f"off by {r['error']:.0e}" if "error" in r else "exact"
        lines.append(
            f"| {named[name]} | {' | '.join(cells)} | {r['bytes'] / found['dim']:.1f} (ours {value:.2f}) "
            f"| {exact} |"
        )
    lines += [
        "",
        "What they give up: several times the bytes; in CKKS exactness, so that a sum cannot be checked bit",
        "for bit; and as NVFlare uses it everything once the server and one client talk, as all clients have",
        "the one key. Neither proves that a sender knows what is in its ciphertexts, which is what keeps a",
        "server with one client from submitting a victim's again.",
    ]
    if "OpenFHE" in found:
        lines.append(f"(OpenFHE {found['OpenFHE']['version']} on Python {found['OpenFHE']['python']}.)")
    else:
        lines.append("(OpenFHE's wheel could not be imported.)")
    return lines


def _of_sessions(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "Whole sessions, all stages: CPU seconds of a mean client and of the server, who checks every proof,",
        "and bytes of a mean client. All parties are in one process, where the proof of each key is checked",
        "once and not once a party.",
        "",
        "| protocol | n | k | t | b | entries | dropout | threat model | noise | client s | server s "
        "| bytes up | bytes down |",
        "|---|--:|--:|--:|--:|--:|--:|---|---|--:|--:|--:|--:|",
    ]
    for r in rows:
        lines.append(
            f"| {r['work']} | {r['n']} | {r['k']} | {r['t']} | {r['b']} | {r['dim']:,} | {r['dropout']:.0%} "
            f"| {r['threat_model']} | {r['noise']} | {r['client']:.2f} | {r['server']:.2f} | {r['up']:,} "
            f"| {r['down']:,} |"
        )
    return lines
