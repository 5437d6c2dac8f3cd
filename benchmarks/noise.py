"""Noise: how fast it is sampled, whether it fits, what error a guarantee leaves, and what survives dropouts.

The unit of a sampler is numpy's own way to integers that look normal: `Generator.normal`, rounded, as int64.
Errors are measured: a hundred clients encode one and the same update, all the worst for wrapping; the noise
that a session would leave is added, the sum is reduced modulo 2^bits and decoded.
"""

from __future__ import annotations

import os
from math import sqrt
from time import perf_counter, process_time
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from record import Edition, machine, names_of
from scipy.stats import chi2

from fedavg.accounting import GRID_BITS, epsilon_of
from fedavg.codec import PrivateCodec
from fedavg.privacy import plan
from protocols.simulator import simulate
from protocols.xnoise import Noisy
from secagg.noise import Noise, noise, rounding
from secagg.ring import Ring

SEED = bytes(range(16))
AT_MOST = {("published", 16): 1.01, ("tight", 9): 1.01, ("tight", 7): 1.03}


def samplers(edition: Edition) -> list[dict[str, Any]]:
    """CPU a sample, each in turn with numpy."""
    size, repeats = {"tiny": (1 << 16, 1), "small": (1 << 20, 3), "full": (1 << 23, 7)}[edition]
    generator, found = np.random.default_rng(1), []
    for family, sigma in (
        ("skellam", 10), ("skellam", 100), ("discrete-gaussian", 100), ("skellam", 1000), ("rounding", 2),
    ):  # fmt: skip
        values = np.arange(size, dtype=np.int64)
        if family == "rounding":
            made = rounding(GRID_BITS, sigma * sigma)
        else:
            exact = noise(family, float(sigma * sigma))  # type: ignore[arg-type]
        ours, unit = [], []
        for i in range(repeats):
            start = process_time()
            if family == "rounding":
                made.round(values, i.to_bytes(16, "big"))
            else:
                exact.sample(i.to_bytes(16, "big"), size)
            ours.append(process_time() - start)
            start = process_time()
            np.rint(generator.normal(0, sigma, size)).astype(np.int64)
            unit.append(process_time() - start)
        asked = 0.5 if (family, sigma) == ("skellam", 100) and edition == "full" else None
        found.append({
            "family": family, "sigma": sigma, "samples": size, "ours": ours, "unit": unit,
            "ratio": min(ours) / min(unit), "at_most": asked,
        })  # fmt: skip
    return found


def fit(edition: Edition) -> list[dict[str, Any]]:
    """Chi-square of samples against their distribution function, over many seeds."""
    seeds, size = {"tiny": (1, 10**5), "small": (4, 10**6), "full": (100, 10**7)}[edition]
    found = []
    for family in ("skellam", "discrete-gaussian"):
        exact: Noise = noise(family, 1e4)  # type: ignore[arg-type]
        steps = exact.steps()
        f = np.array([low / (1 << steps.bits) for low in steps.low])
        p = np.diff(f, prepend=0.0, append=1.0)
        counts = np.zeros(len(p), np.int64)
        for i in range(seeds):
            drawn = exact.sample(i.to_bytes(16, "big"), size)
            counts += np.bincount(np.clip(drawn - steps.first, 0, len(p) - 1), minlength=len(p))
        common = p * seeds * size > 20
        expected = np.append(p[common], p[~common].sum()) * seeds * size
        seen = np.append(counts[common], counts[~common].sum())
        statistic = float(((seen - expected) ** 2 / expected).sum())
        found.append({
            "family": family, "sigma": 100, "samples": seeds * size, "cells": len(expected),
            "p": float(chi2.sf(statistic, len(expected) - 1)),
        })  # fmt: skip
    return found


def errors(edition: Edition) -> list[dict[str, Any]]:
    """Mean squared error over that of Gaussian noise at a trusted server with the same guarantee."""
    n = 100
    dim = {"tiny": 1 << 10, "small": 1 << 16, "full": 1 << 20}[edition]
    epsilon, found = epsilon_of(1.0, 1e-5), []
    update = np.random.default_rng(1).normal(size=dim)
    update /= np.linalg.norm(update)
    for analysis, asked in AT_MOST:
        start = perf_counter()
        bits = asked if edition == "full" else None  # fewer entries take more
        planned = plan(dim, 1.0, n, epsilon, 1e-5, bits=bits, analysis=analysis)  # type: ignore[arg-type]
        seconds, bits = perf_counter() - start, planned.bits
        codec, ring = PrivateCodec(planned, SEED, dim, 1.0), Ring(bits)
        total = noise("skellam", planned.variance - n * planned.rounding).sample(SEED, dim).astype(np.int64)
        for _ in range(n):
            total += codec.encode(update)
        reduced = total.astype(ring.dtype)
        ring.reduce(reduced)
        mean, _ = codec.decode(ring.centred(reduced), n)
        squares = float(((n * (mean - update)) ** 2).mean())
        found.append({
            "analysis": analysis, "bits": bits, "n": n, "dim": dim,
            "noise_multiplier": planned.noise_multiplier, "epsilon": epsilon, "delta": 1e-5,
            "planned": (planned.error / planned.central) ** 2,
            "measured": squares / planned.central**2, "deviation": sqrt(2 / dim), "seconds": seconds,
            "wrapped": int((np.abs(total) >= 1 << bits - 1).sum()), "wraps": planned.wraps[1],
            "at_most": AT_MOST[analysis, asked] if edition == "full" else None,
        })  # fmt: skip
    return found


def dropouts(edition: Edition) -> list[dict[str, Any]]:
    """The variance that real sessions leave in a sum, over the target; and what noise costs."""
    n, dim = {"tiny": (20, 2000), "small": (100, 20_000), "full": (100, 1_000_000)}[edition]
    target, found, names = 3250.0, [], names_of(n)
    vectors = {name: np.full(dim, i % 5 - 2) for i, name in enumerate(names)}
    agreed = {"protocol": "secagg+", "degree": 30} if n > 50 else {}
    for fraction in (0.0, 0.1, 0.2, 0.3):
        gone = dict.fromkeys(names[: int(fraction * n)], "masked")
        costs = {}
        for kind in ("exact", "noisy"):
            more = {"noise": Noisy(target)} if kind == "noisy" else {}
            given = vectors if kind == "noisy" else {name: v + 2 for name, v in vectors.items()}
            run = simulate(given, bound=5, bits=16, corrupted=0.05, dropout=0.3, drop=gone, **agreed, **more)
            client = sum(row.client_cpu_mean for row in run.rows())
            costs[kind] = (client, sum(c.cpu_seconds for c in run.costs["server"].values()))
        included = run.result.included
        residual = run.sum - sum(vectors[name] for name in included)
        p = run.session.parameters
        found.append({
            "n": n, "k": p.degree, "t": p.threshold, "b": 16, "dim": dim, "dropout": fraction,
            "threat_model": run.session.threat_model, "noise": f"skellam, variance {target:g}",
            "included": len(included), "components": run.session.levels.count,
            "measured": float(residual.var()) / target, "planned": run.result.noise / target,
            "deviation": sqrt(2 / dim), "client": costs["noisy"][0], "client_exact": costs["exact"][0],
            "server": costs["noisy"][1], "server_exact": costs["exact"][1],
        })  # fmt: skip
    return found


def measure(edition: Edition) -> dict[str, Any]:
    """All of it."""
    found: dict[str, Any] = {"machine": machine("secagg", "numpy", "cryptography", "scipy", "dp-accounting")}
    for part in (samplers, fit, errors, dropouts):
        start = perf_counter()
        found[part.__name__] = part(edition)
        print(f"  noise: {part.__name__}: {perf_counter() - start:.0f} s", flush=True)
    return found


def _limit(row: dict[str, Any], value: float) -> str:
    if row["at_most"] is None:
        return ""
    return f"{row['at_most']:g}" + (" (missed)" if value > row["at_most"] else "")


def report(found: dict[str, Any]) -> list[str]:
    """The section of the page."""
    lines = [
        "## Noise",
        "",
        "Exact samples from a seed, CPU nanoseconds each on one core, beside numpy's normal variates rounded",
        "to int64; least of the repeats, in turn.",
        "",
        "| distribution | sigma | ns | numpy ns | ratio | at most |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for r in found["samplers"]:
        each = [min(r[which]) / r["samples"] * 1e9 for which in ("ours", "unit")]
        lines.append(
            f"| {r['family']} | {r['sigma']} | {each[0]:.2f} | {each[1]:.2f} | **{r['ratio']:.2f}** "
            f"| {_limit(r, r['ratio'])} |"
        )
    lines += ["", "Whether they fit, by chi-square over all values that are expected twenty times:", "",
              "| distribution | sigma | samples | cells | p |", "|---|--:|--:|--:|--:|"]  # fmt: skip
    for r in found["fit"]:
        lines.append(f"| {r['family']} | {r['sigma']} | {r['samples']:,} | {r['cells']} | {r['p']:.3f} |")
    one = found["errors"][0]
    lines += [
        "",
        f"Mean squared error of a sum of {one['n']} clients and {one['dim']:,} entries, over that of "
        "Gaussian noise at a trusted server with the same guarantee (noise multiplier "
        f"{one['noise_multiplier']:.3f}, epsilon {one['epsilon']:.3f}, delta {one['delta']:g});",
        f"all updates the same; measured to about {one['deviation'] * 100:.2g} %. Nobody drops out.",
        "",
        "| analysis | bits | planned | measured | at most | entries wrapped | expected | planned in s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in found["errors"]:
        lines.append(
            f"| {r['analysis']} | {r['bits']} | {r['planned']:.4f} | **{r['measured']:.4f}** "
            f"| {_limit(r, r['planned'])} | {r['wrapped']} | {r['wraps']:.2g} | {r['seconds']:.2f} |"
        )
    lines += [
        "",
        "The variance of the noise in the sums of real sessions, over the target, and what noise costs: CPU",
        "milliseconds of a mean client and of the server in all stages, and without noise.",
        "",
        "| n | k | t | b | entries | dropout | threat model | noise | components | planned | measured "
        "| client ms | without | server ms | without |",
        "|--:|--:|--:|--:|--:|--:|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in found["dropouts"]:
        lines.append(
            f"| {r['n']} | {r['k']} | {r['t']} | {r['b']} | {r['dim']:,} | {r['dropout']:.0%} "
            f"| {r['threat_model']} | {r['noise']} | {r['components']} | {r['planned']:.4f} "
            f"| **{r['measured']:.4f}** | {r['client'] * 1e3:.1f} | {r['client_exact'] * 1e3:.1f} "
            f"| {r['server'] * 1e3:.0f} | {r['server_exact'] * 1e3:.0f} |"
        )
    return lines
