"""Opens a finished or growing run folder for reading: tables as DataFrames, the rest as frozen records."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rareneuron.errors import RunFolderError
from rareneuron.links import expanded
from rareneuron.maths import Definitions
from rareneuron.maths.groups import NeuronGroups
from rareneuron.maths.rank_curve import RankCurve
from rareneuron.runs.files import read_record, read_table, read_tensors
from rareneuron.runs.layout import (
    CONTEXT_SUMS,
    EFFECTS,
    LAYERS_RECORD,
    MANIFEST,
    ROUTING,
    STEP_RECORD,
    TOKEN_LOSS,
    TOKENS,
    TRAJECTORY,
    step_folder,
    step_of,
)
from rareneuron.runs.rankings import Found, Ranking, fit_ranking, layer_curve, read_phases, released_ranking
from rareneuron.runs.records import Manifest, StepRecord
from rareneuron.runs.store import RunStore
from rareneuron.shown import Shown

if TYPE_CHECKING:
    from rareneuron.maths.claims import Claims


@dataclass(frozen=True)
class Run(Shown):
    """What a study found. `step=None` means the last finished checkpoint."""

    path: Path

    @property
    def _store(self) -> RunStore:
        return RunStore(self.path)

    @cached_property
    def manifest(self) -> Manifest:
        """`run.json`: settings, provenance, data, checkpoints with timings and audit."""
        return self._store.read_manifest()

    @property
    def steps(self) -> list[int | None]:
        """Finished checkpoints by step; None stands for one whose step is unknown."""
        return [step_of(name) for name in self._store.finished_steps()]

    def folder(self, step: int | None = None) -> Path:
        """Return the folder that holds the results of a checkpoint."""
        names = self._store.finished_steps()
        if not names:
            raise RunFolderError(f"{self.path} has no finished checkpoint yet. Run the same `rareneuron study` again.")
        name = names[-1] if step is None else str(step)
        if name not in names:
            raise RunFolderError(
                f"{self.path} has no results for step {step}; it has {', '.join(names)}. Choose one of them with "
                "--step, or run the study with that step."
            )
        return self._store.step(name)

    def tokens(self) -> pd.DataFrame:
        """Return the analysed tokens: context, position, target, text, frequency, rare, loss at the last step."""
        return read_table(self.path / TOKENS)

    def effects(self, step: int | None = None) -> pd.DataFrame:
        """Return one row per neuron: effects in nats per token with standard errors, rank and role."""
        return read_table(self.folder(step) / EFFECTS)

    def context_sums(self, step: int | None = None) -> dict[str, np.ndarray]:
        """Return sums of Δ and |Δ| per context and neuron, and tokens per context, which the bootstrap resamples."""
        return read_tensors(self.folder(step) / CONTEXT_SUMS)

    def token_loss(self, step: int | None = None) -> np.ndarray:
        """Return the clean loss of every analysed token in nats, in the order of `tokens()`."""
        return read_tensors(self.folder(step) / TOKEN_LOSS)["loss"]

    def rank_curve(self, step: int | None = None, ranking: Ranking = "all") -> RankCurve:
        """Return effects sorted from the largest; `neuron` is the index in the layer.

        `all`: mean |Δ| at rare targets; `boosting`, `suppressing`: neurons of one sign by |mean Δ|; `common`: mean |Δ|
        at common targets.
        """
        return layer_curve(self.effects(step), ranking)

    @property
    def definitions(self) -> Definitions:
        """Whose definitions of phases the study used; runs of versions without this setting used the paper's."""
        return self.manifest.config.whose_definitions

    def phases(
        self, step: int | None = None, ranking: Ranking | None = None, definitions: Definitions | None = None
    ) -> Found:
        """Return plateau, power law and decay of a rank curve, or which of them is missing.

        `ranking` is `all` by default, with released definitions `boosting`. Other `definitions` than the run's own are
        computed from its effects: `released` at once, `paper` with nulls and bootstrap in seconds.
        """
        definitions = definitions or self.definitions
        effects = self.effects(step)
        if definitions == "released":
            return released_ranking(effects, ranking or "boosting")
        if self.definitions == "released":
            return fit_ranking(effects, self.context_sums(step), ranking or "all", self.manifest.config.seed)
        return read_phases(self.folder(step), ranking or "all", effects)

    def trajectory(self) -> pd.DataFrame:
        """Return one row per checkpoint: losses, effects, phases, overlap of rankings (docs/run-folder.md)."""
        return read_table(self.path / TRAJECTORY)

    def has_layers(self, step: int | None = None) -> bool:
        """Return whether the study looked at the units of several layers at a checkpoint."""
        return self._holds(LAYERS_RECORD, step)

    def has_routing(self, step: int | None = None) -> bool:
        """Return whether the study looked at what earlier heads write to the neurons at a checkpoint."""
        return self._holds(ROUTING, step)

    def _holds(self, file: str, step: int | None) -> bool:
        """Return whether a checkpoint's folder holds a file; the last one's if none is named."""
        names = self._store.finished_steps()
        name = step_folder(step) if step is not None or not names else names[-1]
        return (self._store.step(name) / file).is_file()

    def routing(self, step: int | None = None) -> pd.DataFrame:
        """Return one row per attention head of earlier layers: its estimated influence on either group's neurons.

        Root mean squares at rare and at common targets, in standard deviations of the neurons' activations.
        """
        from rareneuron.runs.routing import read_routing

        return read_routing(self.folder(step)).heads

    def layers(self, step: int | None = None) -> pd.DataFrame:
        """Return one row per unit of every layer that `--layers` asked for: effects, half-widths, how sure they are."""
        from rareneuron.runs.layers import read_layers

        return read_layers(self.folder(step)).table

    def groups(self, step: int | None = None) -> NeuronGroups:
        """Return the boosting, suppressing and random groups."""
        from rareneuron.runs.groups import read_groups

        return read_groups(self.folder(step))

    def geometry(self, step: int | None = None) -> pd.DataFrame:
        """Return how groups act together (Tables 1-3): statistic, group, value, the same of random groups, and p."""
        from rareneuron.runs.groups import read_geometry

        return read_geometry(self.folder(step))

    def spectrum(self, step: int | None = None) -> pd.DataFrame:
        """Return the tails of the groups' weight spectra (Table 4): matrix, statistic, group, value, nulls, p."""
        from rareneuron.runs.groups import read_spectrum

        return read_spectrum(self.folder(step))

    def evaluations(self) -> list[str]:
        """Return the names of the tasks that `rareneuron evaluate` has scored: `swap`, and those of other programs."""
        from rareneuron.runs.evaluations import evaluation_names

        return evaluation_names(self.path)

    def evaluation(self, name: str = "swap") -> pd.DataFrame:
        """Return how a task's scores change without the groups: a row for each part, measure, group and null."""
        from rareneuron.runs.evaluations import read_evaluation

        return read_evaluation(self.path, name).table

    def evaluation_items(self, name: str = "swap") -> pd.DataFrame:
        """Return every item of a task with its scores, with everything and without each group."""
        from rareneuron.runs.evaluations import read_evaluation

        return read_evaluation(self.path, name).items

    def claims(self) -> "Claims":
        """Return the paper's findings and ours as hypotheses, with verdicts (docs/claims.md)."""
        from rareneuron.runs.claims import read_claims

        return read_claims(self.path)

    def shown_table(self) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Return what was studied, with which settings, and the folder, as a table for notebooks."""
        config, data = self.manifest.config, self.manifest.data
        steps = ", ".join(step_folder(None) if step is None else f"{step:,}" for step in self.steps)
        return ["", ""], [
            ("folder", self.path),
            ("model", config.model or "embedded series"),
            ("layer", self.manifest.layer),
            ("checkpoints", steps or "none finished yet"),
            ("rare tokens", data.n_rare),
            ("common tokens", data.n_common),
            ("corpus", data.corpus),
            ("definitions", self.definitions),
            ("seed", config.seed),
        ]

    def step_record(self, step: int | None = None) -> StepRecord:
        """Return the model, weights, timings and audit of one checkpoint."""
        return read_record(self.folder(step) / STEP_RECORD, StepRecord)


def open_run(path: str | Path) -> Run:
    """Open a run folder written by `run_study`.

    Args:
        path: The run folder; its study may be finished or still running.

    Returns:
        The run. Tables are read when they are asked for; neither torch nor transformers is loaded.

    Raises:
        RunFolderError: The folder holds no run, or one that is damaged or of another format.

    Source:
        docs/run-folder.md describes every file.

    Example:
        >>> import rareneuron as rn
        >>> try:
        ...     rn.open_run("no/such/folder")
        ... except rn.RareNeuronError as error:
        ...     print(str(error).partition(":")[0])
        no/such/folder is not a run folder
    """
    path = expanded(path)
    if not (path / MANIFEST).is_file():
        raise RunFolderError(
            f"{path} is not a run folder: it has no {MANIFEST}. Give the folder that `rareneuron study --out` wrote, "
            "or the one it named at its end."
        )
    run = Run(path)
    _ = run.manifest  # raises where it is damaged or of another format
    return run
