"""Small run folders, written with the store's own writers."""

from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rareneuron.errors import TooFewNeurons
from rareneuron.maths import Definitions
from rareneuron.maths.activations import geometry
from rareneuron.maths.groups import neuron_groups
from rareneuron.maths.weights import spectrum
from rareneuron.present.blocks import Paragraph
from rareneuron.runs.config import StudyConfig
from rareneuron.runs.files import read_table, replacing, write_json, write_table, write_tensors
from rareneuron.runs.groups import ComparedGroups, write_groups
from rareneuron.runs.rankings import fit_rankings, write_phases
from rareneuron.runs.run import Run, open_run
from rareneuron.runs.store import RunStore
from tests.present.browser import chromium, opened
from tests.present.claimed import CLAIMS, AllMade
from tests.present.planted import DECAY, KAPPA, PLATEAU, N

__all__ = ["chromium", "opened"]

WORDS = (" obscure", " vellum", "Topology", " unmasked", " divergence", " quay")
N_CONTEXTS = 6
GROUP_SIZE = 5
MakeRun = Callable[..., Run]


def effects_table(n_neurons: int, rng: np.random.Generator, *, direct: bool, common: bool) -> pd.DataFrame:
    """Effects like a real run's: sizes over three decades, both signs, errors of a tenth."""
    size = 0.05 * np.arange(1, n_neurons + 1) ** -1.2
    table = pd.DataFrame({"neuron": [f"3.{i}" for i in range(n_neurons)], "index": np.arange(n_neurons)})
    order = rng.permutation(n_neurons)
    for prefix, factor in (("", 1.0), ("common_", 0.5)) if common else (("", 1.0),):
        absolute = factor * size[order]
        for name, value in {
            "delta_loss": absolute * rng.choice([-0.5, 0.5], n_neurons),
            "abs_delta_loss": absolute,
            "kl": absolute**2,
            **({"direct_delta_loss": absolute / 3, "direct_abs_delta_loss": absolute / 2} if direct else {}),
        }.items():
            table[f"{prefix}{name}"], table[f"{prefix}{name}_se"] = value, absolute / 10
    table["rank"] = np.argsort(np.argsort(-table["abs_delta_loss"], kind="stable"), kind="stable") + 1
    return table.assign(mean_act=0.0, mean_abs_act=0.1, W_out_norm=1.0, role="other")


def compared_groups(table: pd.DataFrame, size: int, definitions: Definitions) -> ComparedGroups:
    """Groups of this layer, with geometry and spectrum of activations and weights in which they have a common part."""
    return groups_of_effects(
        tuple(table["delta_loss"].tolist()), tuple(table["abs_delta_loss"].tolist()), size, definitions
    )


@cache  # most runs of these tests have the same effects
def groups_of_effects(
    delta: tuple[float, ...], absolute: tuple[float, ...], size: int, definitions: Definitions
) -> ComparedGroups:
    rng = np.random.default_rng(7)  # its own, so that effects are what they were
    groups = neuron_groups(
        np.array(delta),
        np.array(absolute),
        size=size,
        n_draws=99,
        covariate=rng.random(len(delta)),
        matched_on="mean_abs_act",
        rng=rng,
    )
    acts, weights = rng.standard_normal((40, len(delta))), rng.standard_normal((2, len(delta), 16))
    acts[:, groups.boosting] += rng.standard_normal((40, 1))
    weights[1, groups.boosting] += 2 * rng.standard_normal((size, 1)) * rng.standard_normal(16)
    return ComparedGroups(
        groups=groups,
        balance={},
        geometry=geometry(acts, groups, rng, definitions=definitions),
        spectrum=spectrum(dict(zip(("W_in", "W_out"), weights, strict=True)), groups, definitions=definitions, rng=rng),
    )


def no_groups(reason: str) -> ComparedGroups:
    error = TooFewNeurons(reason)
    return ComparedGroups(groups=error, balance={}, geometry=error, spectrum=error)


def step_record(step: int | None, engine: str, common: bool) -> dict[str, Any]:
    closed = engine == "closed-form"
    return {
        "step": step,
        "model": {
            "source": "models/small",
            "revision": None,
            "commit": None,
            "weights_sha256": "ab" * 32,
            "model_type": "gpt_neox",
            "n_params": 1000,
            "dtype": "float32",
            "tied": True,
        },
        "closed_form": {
            "ok": closed,
            "readout_gap": 4e-7,
            "ablation_gap": 4e-5 if closed else 0.3,
            "reason": "" if closed else "the MLP output is normalised",
        },
        "engine": engine,
        "loss_rare": 9.25,
        "loss_common": 5.5 if common else None,
        "audit": {"n_pairs": 1024, "max_error": 1.5e-6, "rms_error": 9.7e-8, "rms_delta_loss": 5.2e-3}
        if closed
        else None,
        "timings": {"capture": 6.5, "effects": 140.0},
        "rates": {"capture_tokens_per_second": 1954.4, "effects_microseconds_per_pair": 108.8},
    }


def token_table(words: tuple[str, ...], common: bool) -> pd.DataFrame:
    """Two rare targets of each word, and as many common ones."""
    kinds = [(True, words)] + ([(False, (" the",) * len(words))] if common else [])
    rows = [
        (rare, i if rare else 9999, text) for rare, texts in kinds for i, text in enumerate(texts) for _ in range(2)
    ]
    table = pd.DataFrame(rows, columns=["rare", "target", "text"])
    return table.assign(context=np.arange(len(table)) % N_CONTEXTS, position=0, frequency=1e-6)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Builds a run folder; every argument is one way in which runs differ."""
    numbers = count()

    def build(
        *,
        steps: tuple[int | None, ...] = (0, 512),
        engine: str = "closed-form",
        n_neurons: int = 60,
        words: tuple[str, ...] = WORDS,
        common: bool = True,
        unavailable: str | None = None,
        counts_of: str = "training set",
        warnings: list[str] | None = None,
        finished: bool = True,
        model: str | None = None,
        definitions: Definitions = "paper",
    ) -> Run:
        rng = np.random.default_rng(0)
        store = RunStore(tmp_path / f"run{next(numbers)}")
        tokens = token_table(words, common)
        records = {}
        for step in steps:
            name = "final" if step is None else str(step)
            table = effects_table(n_neurons, rng, direct=engine == "closed-form", common=common)
            records[name] = step_record(step, engine, common)
            with replacing(store.step(name)) as folder:
                folder.mkdir()
                write_table(folder / "effects.parquet", table)
                write_tensors(folder / "token_loss.safetensors", {"loss": 5.0 + np.arange(len(tokens))})
                write_groups(
                    folder,
                    compared_groups(table, GROUP_SIZE, definitions) if unavailable is None else no_groups(unavailable),
                )
                write_json(folder / "step.json", records[name])
        write_table(store.root / "tokens.parquet", tokens)
        n_rare = int(tokens["rare"].sum())
        manifest = {
            "format": 1,
            "config": StudyConfig(
                model=model,
                engine=engine,
                reference="analysed",
                n_tokens=n_rare,
                group_size=GROUP_SIZE,
                definitions=definitions,
            ).identity(),
            "resolved": {"model": model},
            "environment": {"rareneuron": "0.1.0", "commit": None, "python": "3.11.7", "threads": 2},
            "data": {
                "corpus": "small corpus",
                "description": "text for a test",
                "fingerprint": "cd" * 32,
                "n_texts": 10,
                "n_text_tokens": 1_500,
                "n_contexts_read": 12,
                "n_contexts": N_CONTEXTS,
                "n_requested": n_rare,
                "n_available": n_rare,
                "n_rare": n_rare,
                "n_common": len(tokens) - n_rare,
                "stages": [
                    {"name": "all", "types": 700, "occurrences": 1_500},
                    {"name": "rare by frequency", "types": 300, "occurrences": 400},
                    {"name": "rare words", "types": 20, "occurrences": 30},
                    {"name": "sampled", "types": len(words), "occurrences": n_rare},
                ],
                "counts": {"source": "unigrams.npy" if counts_of == "training set" else None, "of": counts_of},
                "rarity": {
                    "rule": "types",
                    "percentile": 50.0,
                    "threshold": 8.4e-6,
                    "count_at_threshold": 12,
                    "count_total": 1_547_619,
                    "n_types": 400,
                    "mass": 0.0376,
                },
            },
            "layer": 3,
            "n_layers": 4,
            "checkpoints": records if finished else {},
        }
        if finished:
            manifest |= {"timings": [{"seconds": 286.4, "checkpoints": len(steps)}], "warnings": warnings or []}
        write_json(store.manifest, manifest)
        return open_run(store.root)

    return build


@pytest.fixture
def without_ink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all else; tests of words leave it out."""
    for section in ("overview", "mechanism", "phases", "spectrum", "layers"):
        monkeypatch.setattr(
            f"rareneuron.present.sections.{section}.illustration", lambda *_: Paragraph(text="(a figure)")
        )


@pytest.fixture(scope="session")
def layer() -> tuple[pd.DataFrame, dict[str, Any]]:
    """Effects with a planted plateau at rare targets and none at common ones, and what the package finds in them."""
    rng = np.random.default_rng(0)
    rank, n_tokens = np.arange(1, N + 1), np.full(40, 5)
    y = -5 - KAPPA * np.log(rank) - np.maximum(rank / DECAY - 1, 0)
    sign = np.where(np.arange(N) % 3 > 0, 0.5, -0.5)
    columns = {"abs_delta_loss": np.exp(y + (rank <= PLATEAU)), "common_abs_delta_loss": np.exp(y)}
    columns["delta_loss"] = sign * columns["abs_delta_loss"]
    noise = rng.gamma(400.0, 1 / 400, (40, N))
    sums = {name: noise * value * 5 for name, value in columns.items()} | {"n_tokens": n_tokens}
    table = pd.DataFrame({name: sums[name].sum(0) / n_tokens.sum() for name in columns})
    return table, fit_rankings(table, sums | {"common_n_tokens": n_tokens}, seed=0)


@pytest.fixture
def planted(make_run: MakeRun, layer: tuple[pd.DataFrame, dict[str, Any]]) -> Callable[..., Run]:
    """Runs whose checkpoints all hold that layer."""

    def build(**arguments: Any) -> Run:
        run = make_run(n_neurons=N, **arguments)
        for folder in (run.path / "steps").iterdir():
            table = read_table(folder / "effects.parquet").assign(**layer[0])
            rank = table["abs_delta_loss"].rank(ascending=False, method="first").astype(int)
            write_table(folder / "effects.parquet", table.assign(rank=rank))
            write_phases(folder, layer[1])
        return run

    return build


@pytest.fixture
def nothing(make_run: MakeRun) -> Run:
    """A run in which no ablation changes anything."""
    run = make_run()
    for path in run.path.rglob("effects.parquet"):
        table = read_table(path)
        write_table(path, table.assign(**{name: 0.0 for name in table if "delta_loss" in name}))
    return run


@pytest.fixture
def claimed(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Runs that hold these claims."""

    def build(claims: tuple[Any, ...] = CLAIMS) -> Run:
        run = make_run()
        (run.path / "claims.json").write_text("{}")
        monkeypatch.setattr(Run, "claims", lambda _: AllMade(claims), raising=False)
        return run

    return build
