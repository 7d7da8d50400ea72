"""The trajectory over checkpoints and its trends, on a run of known effects."""

from dataclasses import dataclass
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from rareneuron.conclude.trajectory import trajectory, trends
from rareneuron.errors import RunFolderError, TooFewNeurons
from rareneuron.maths.phase_fit import fit_phases
from rareneuron.maths.phases import Phases
from rareneuron.maths.rank_curve import rank_curve
from rareneuron.runs.run import Run
from rareneuron.study.study import run_study

N = 512


@dataclass(frozen=True)
class GivenRun(Run):
    """Values and phases by step, without a folder."""

    values: dict
    fitted: dict
    definitions = "paper"

    @property
    def steps(self):
        return list(self.values)

    def effects(self, step=None):
        return pd.DataFrame({"abs_delta_loss": self.values[step]})

    def phases(self, step=None, ranking="all"):
        if step not in self.fitted:
            raise TooFewNeurons("too few")
        return self.fitted[step]

    def step_record(self, step=None):
        return SimpleNamespace(loss_rare=10.0 - step, loss_common=None)


def three_phases(shift):
    """A curve with a plateau of 24, whose neurons move by `shift` in the layer."""
    rank = np.arange(1, N + 1)
    y = -0.4 * np.log(rank) + (rank <= 24) - np.maximum(rank / (0.3 * N) - 1, 0)
    return np.roll(np.exp(y), shift)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    values = {1: np.ones(N), 2: three_phases(12), 4: three_phases(0)}
    fitted = {step: fit_phases(rank_curve(values[step]), n_draws=40) for step in (2, 4)}
    assert [phases.outcome for phases in fitted.values()] == ["three phases"] * 2
    return GivenRun(tmp_path_factory.mktemp("none"), values, fitted)


@pytest.fixture(scope="module")
def table(given):
    return trajectory(given).set_index("step")


def test_one_row_a_step_with_the_numbers_of_its_curve(given, table):
    assert list(table.index) == [1, 2, 4]
    assert table["loss_rare"].tolist() == [9.0, 8.0, 6.0]
    assert table["loss_common"].isna().all()
    value = given.values[4]
    assert table.loc[4, "abs_delta_loss_max"] == value.max()
    assert table.loc[4, "abs_delta_loss_q50"] == np.median(value)
    phases: Phases = given.fitted[4]
    assert table.loc[4, ["kappa", "plateau_end", "decay_start"]].tolist() == [
        phases.kappa,
        phases.plateau_end,
        phases.decay_start,
    ]
    assert table.loc[4, "plateau_height"] == pytest.approx(1.0, abs=0.1)  # the lift that was planted


def test_a_step_without_phases_is_a_row_without_them(table):
    assert table["outcome"].tolist() == ["unavailable", "three phases", "three phases"]
    assert table.loc[1, ["kappa", "plateau_end", "plateau_overlap_last", "rank_correlation_last"]].isna().all()
    assert table.loc[1, "n_eff"] == pytest.approx(N)


def test_steps_are_compared_with_the_last_and_the_one_before(given, table):
    ends = [given.fitted[step].plateau_end for step in (2, 4)]
    shared = max(0, min(12 + ends[0], ends[1]) - 12)  # neurons 12 … 12 + end, and 0 … end
    assert shared > 5, "the case is too tame to tell right from wrong"
    assert (
        table.loc[2, "plateau_overlap_last"]
        == table.loc[4, "plateau_overlap_previous"]
        == shared / (sum(ends) - shared)
    )
    assert table.loc[2, "top_overlap_last"] == table.loc[4, "top_overlap_previous"] == 38 / 62
    assert table.loc[2, "plateau_overlap_previous"] != table.loc[2, "plateau_overlap_previous"]  # step 1 has none
    assert table.loc[4, ["plateau_overlap_last", "top_overlap_last", "rank_correlation_last"]].isna().all()
    ranks = [given.values[step].argsort().argsort() for step in (2, 4)]
    assert table.loc[2, "rank_correlation_last"] == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_the_p_of_a_trend_is_the_share_of_orders_as_steady():
    values = [1.0, 3.0, 2.0, 4.0, 5.0]

    def concordance(order):
        return sum(np.sign(order[j] - order[i]) for i in range(5) for j in range(i + 1, 5))

    orders = [abs(concordance(order)) for order in permutations(values)]
    found = trends(pd.DataFrame({"step": range(5), "outcome": "no decay", "kappa": values})).iloc[0]
    assert (found["column"], found["n"]) == ("kappa", 5)
    assert found["tau"] == pytest.approx(0.8)
    assert found["p"] == pytest.approx(np.mean(np.array(orders) >= 8))


def test_missing_values_and_columns_without_a_trend():
    columns = {"gaps": [1.0, np.nan, 2.0, 3.0], "constant": [1.0] * 4, "two": [1.0, 2.0, np.nan, np.nan]}
    found = trends(pd.DataFrame({"step": range(4), "outcome": "no decay"} | columns)).set_index("column")
    assert found["n"].tolist() == [3, 4, 2]
    assert found.loc["gaps", "tau"] == 1
    assert found.loc[["constant", "two"], ["tau", "p"]].isna().all().all()


# --- in a study


def test_a_study_stores_its_trajectory_and_repairs_it(config):
    run = run_study(config(steps=(0, 10)))
    table = run.trajectory()
    pd.testing.assert_frame_equal(table, trajectory(run))
    assert table["step"].tolist() == [0, 10]
    assert (table["outcome"] == "unavailable").all()
    path = run.path / "trajectory.parquet"
    before = path.read_bytes()
    for damage in (path.unlink, lambda: path.write_bytes(b"")):
        damage()
        with pytest.raises(RunFolderError, match=r"trajectory\.parquet.*Run the same study again"):
            run.trajectory()
        run_study(config(steps=(0, 10)))
        assert path.read_bytes() == before
    run_study(config(steps=(0, 2, 10)))
    assert run.trajectory()["step"].tolist() == [0, 2, 10]


def test_an_unknown_step_has_a_row(config, llama):
    table = run_study(config(model=str(llama))).trajectory()
    assert table["step"].isna().tolist() == [True]
    assert table["loss_rare"].notna().all()
