"""Reads a run folder with public libraries alone, seeds the documented streams, and collects what was compared."""

import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file
from scipy.stats import norm, t

STREAMS = {
    "groups": 2,
    "phases": 3,
    "geometry": 4,
    "spectrum": 5,
    "experiments": 6,
    "claims": 7,
    "checks": 8,
    "modularity": 12,
}
ROLES = ("boosting", "suppressing")


def levels(n):
    """The quantiles of draws between which 95 % lie, n contexts resampled: t's in the normal's place."""
    tail = norm.cdf(-np.sqrt(n / (n - 1)) * t.ppf(0.975, n - 1))
    return tail, 1 - tail


class Run:
    """The files of a run, and where it lies."""

    def __init__(self, root):
        self.root = Path(root)
        self.manifest = self.json("run.json")
        self.config = self.manifest["config"]
        self.tokens = self.table("tokens.parquet")
        self.windows = self.tensors("contexts.safetensors")["windows"]
        self.steps = self.manifest["planned"]

    def json(self, *where):
        return json.loads(self.root.joinpath(*where).read_text(encoding="utf-8"))

    def table(self, *where):
        return pd.read_parquet(self.root.joinpath(*where))

    def tensors(self, *where):
        return load_file(self.root.joinpath(*where))

    def at(self, step, name):
        read = {".json": self.json, ".parquet": self.table, ".safetensors": self.tensors}
        return read[Path(name).suffix]("steps", step, name)

    def generator(self, stream, *which):
        parts = [int.from_bytes(sha256(x.encode()).digest()[:4], "big") if isinstance(x, str) else x for x in which]
        return np.random.default_rng([self.config["seed"], STREAMS[stream], *parts])


class Report:
    """The largest difference of each thing compared, relative to the largest number there, and whether it may be."""

    def __init__(self):
        self.found = {}

    def close(self, name, stored, computed, tolerance=1e-6):
        stored, computed = (np.asarray(x, dtype=np.float64) for x in (stored, computed))
        difference = np.inf
        if stored.shape == computed.shape and (np.isfinite(stored) == np.isfinite(computed)).all():
            there = np.isfinite(stored)
            largest = np.abs(stored[there]).max(initial=0)
            difference = float(np.abs(stored - computed)[there].max(initial=0) / (largest or 1.0))
        worst = max(difference, self.found.get(name, {"difference": 0.0})["difference"])
        self.found[name] = {"difference": worst, "tolerance": tolerance, "agrees": worst <= tolerance}

    def same(self, name, stored, computed):
        agrees = np.array_equal(np.asarray(stored), np.asarray(computed))
        agrees = agrees and self.found.get(name, {"agrees": True})["agrees"]
        self.found[name] = {"difference": 0.0 if agrees else np.inf, "tolerance": 0.0, "agrees": bool(agrees)}


def against(value, draws):
    """A value beside the draws of a null, as every table of a run has it."""
    known = draws[np.isfinite(draws)]
    above, below = 1 + np.sum(~(draws < value)), 1 + np.sum(~(draws > value))
    n, spread = 1 + len(draws), known.std(ddof=1)
    return {
        "value": value,
        "null_mean": known.mean(),
        "null_low": np.quantile(known, 0.025),
        "null_high": np.quantile(known, 0.975),
        "effect_size": (value - known.mean()) / spread if spread > 0 else None,
        "p": min(1.0, 2 * min(above, below) / n),
        "p_above": above / n,
        "p_below": below / n,
        "n_draws": len(draws),
    } | dict(zip(OUTER, np.quantile(known, outer_levels(len(draws)), method="weibull"), strict=True))


OUTER = ("null_lowest", "null_q01", "null_q20", "null_q80", "null_q99", "null_highest")


def outer_levels(n_draws):
    end = max(0.001, 1 / (n_draws + 1))
    return np.array([end, 0.01, 0.2, 0.8, 0.99, 1 - end])


NUMBERS = tuple(against(0.0, np.arange(2.0)))


def compare_rows(report, name, stored, computed, keys):
    """Compares the rows of a stored table with computed ones, found by their keys, number by number."""
    by_key = {tuple(row[k] for k in keys): row for row in stored}
    report.same(f"{name}: rows", sorted(map(str, by_key)), sorted(map(str, computed)))
    for column in NUMBERS:
        there = [key for key in computed if key in by_key]
        pairs = [(by_key[key].get(column), computed[key].get(column)) for key in there]
        a, b = np.array([[np.nan if x is None else x for x in pair] for pair in pairs], dtype=np.float64).T
        report.close(f"{name}: {column}", a, b)
