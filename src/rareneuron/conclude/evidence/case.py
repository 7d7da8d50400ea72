"""Holds what claims are judged by: one run whose parts are read once, and the type of a claim's tests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from rareneuron.conclude.trajectory import trajectory
from rareneuron.errors import RareNeuronError, Unavailable
from rareneuron.maths.claims import Comparison
from rareneuron.maths.gauge import Gauge
from rareneuron.maths.groups import NeuronGroups, neuron_groups
from rareneuron.runs.experiments import read_experiments
from rareneuron.runs.groups import MATCHED_ON, MOST_CANDIDATES
from rareneuron.runs.layout import kept_rows
from rareneuron.runs.run import Run
from rareneuron.runs.seeds import generator


@dataclass(frozen=True)
class Case:
    """A run whose claims are judged. Results that several claims need are computed once."""

    run: Run
    over_steps: pd.DataFrame | None = None  # the trajectory, where it is at hand

    @cached_property
    def gauge(self) -> Gauge:
        """What the model leaves open about its neurons; older runs didn't ask, and those with a gate leave the most."""
        recorded = self.run.step_record().gauge
        if recorded is not None:
            return recorded
        return Gauge(sign=True, scale=True) if self.has_gate else Gauge()

    @cached_property
    def has_gate(self) -> bool:
        """Whether the run's spectra have those of a gate; where there are none, W_in and W_out stand for all."""
        try:
            return self.run.definitions == "paper" and bool((self.spectrum["matrix"] == "W_gate").any())
        except RareNeuronError:
            return False

    @cached_property
    def trajectory(self) -> pd.DataFrame:
        """The run's trajectory: one row per checkpoint."""
        return trajectory(self.run) if self.over_steps is None else self.over_steps

    @cached_property
    def geometry(self) -> pd.DataFrame:
        """The geometry of the last checkpoint's groups."""
        return self.run.geometry()

    @cached_property
    def spectrum(self) -> pd.DataFrame:
        """The weight spectra of the last checkpoint's groups."""
        return self.run.spectrum()

    @cached_property
    def experiments(self) -> dict[str, np.ndarray]:
        """The experiments with whole groups at the last checkpoint. Raises where there are none."""
        return read_experiments(self.run.folder())

    @cached_property
    def judging_rows(self) -> np.ndarray:
        """The rows of the sums per context that hold the experiments' contexts, which judge the groups."""
        return np.unique(kept_rows(np.unique(self.experiments["context"]), self.run.manifest.data.n_contexts))

    @cached_property
    def judging_sums(self) -> dict[str, np.ndarray]:
        """The sums of the contexts that judge the groups."""
        return {name: sums[self.judging_rows] for name, sums in self.run.context_sums().items()}

    @cached_property
    def groups_elsewhere(self) -> NeuronGroups:
        """Groups chosen by the effects in all contexts except those of the experiments, which judge the groups."""
        sums, config = self.run.context_sums(), self.run.manifest.config
        others = np.setdiff1d(np.flatnonzero(sums["n_tokens"] > 0), self.judging_rows)
        if not len(others):
            raise RareNeuronError(
                "All contexts are in the sample of the experiments, so none is left to choose groups on."
            )
        n_tokens = sums["n_tokens"][others].sum()
        delta, absolute = (
            sums[name][others].astype(np.float64).sum(0) / n_tokens for name in ("delta_loss", "abs_delta_loss")
        )
        return neuron_groups(
            delta,
            absolute,
            size=config.group_size,
            n_draws=config.n_random,
            most=MOST_CANDIDATES,
            covariate=self.run.effects()[MATCHED_ON].to_numpy(),
            matched_on=MATCHED_ON,
            rng=generator(config.seed, "claims", "groups elsewhere"),
        )


Evidence = Sequence[Comparison] | Unavailable
Maker = Callable[[Case, np.random.Generator], Evidence]
