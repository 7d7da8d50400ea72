"""What the commands print of runs."""

from collections.abc import Callable

from rareneuron.present.terminal import groups_table
from rareneuron.runs.run import Run

MakeRun = Callable[..., Run]


def test_groups_without_common_targets_lack_only_those(make_run: MakeRun) -> None:
    columns = {common: groups_table(make_run(common=common)) for common in (True, False)}
    assert list(columns[True]) == list(columns[False])
    assert columns[True].notna().all(axis=None)
    assert list(columns[False].columns[columns[False].isna().any()]) == ["common_delta_loss"]
