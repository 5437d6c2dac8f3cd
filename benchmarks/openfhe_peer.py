"""Exact sums by a lattice scheme: OpenFHE's BFV. A script of its own, because it may need its own Python.

    python benchmarks/openfhe_peer.py ENTRIES REPEATS

Prints JSON: CPU seconds of encryption under a public key, of a sum of ten and of decryption, and bytes.
Entries are 16-bit integers; the plaintext modulus holds sums of ten.
"""

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from time import process_time

import openfhe

MODULUS = 786433  # prime, 1 modulo 2^18, and above ten times 2^16


def main() -> None:
    """Measure and print."""
    entries, repeats = int(sys.argv[1]), int(sys.argv[2])
    parameters = openfhe.CCParamsBFVRNS()
    parameters.SetPlaintextModulus(MODULUS)
    parameters.SetMultiplicativeDepth(0)
    context = openfhe.GenCryptoContext(parameters)
    for feature in (openfhe.PKESchemeFeature.PKE, openfhe.PKESchemeFeature.LEVELEDSHE):
        context.Enable(feature)
    keys = context.KeyGen()
    slots = context.GetRingDimension()
    values = [(i * 40503) % 65536 for i in range(entries)]
    found: dict[str, list[float]] = {"encrypt": [], "add": [], "decrypt": []}
    for _ in range(repeats):
        start = process_time()
        rows = [
            context.Encrypt(keys.publicKey, context.MakePackedPlaintext(values[at : at + slots]))
            for at in range(0, entries, slots)
        ]  # fmt: skip
        found["encrypt"].append(process_time() - start)
        start = process_time()
        sums = []
        for row in rows:
            total = row
            for _ in range(9):
                total = context.EvalAdd(total, row)
            sums.append(total)
        found["add"].append(process_time() - start)
        start = process_time()
        opened = []
        for row in sums:
            plain = context.Decrypt(keys.secretKey, row)
            plain.SetLength(slots)
            opened += plain.GetPackedValue()
        found["decrypt"].append(process_time() - start)
        assert [v % MODULUS for v in opened[:entries]] == [10 * v for v in values], "a wrong sum"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ciphertext"
        openfhe.SerializeToFile(str(path), rows[0], openfhe.BINARY)
        size = path.stat().st_size * len(rows)
    print(json.dumps({
        **found, "bytes": size, "version": version("openfhe"), "python": sys.version.split()[0],
    }))  # fmt: skip


if __name__ == "__main__":
    main()
