"""What a run records of where its numbers came from."""

from importlib.metadata import PackageNotFoundError, version

from rareneuron.study import environment as recorded
from rareneuron.study.environment import environment


def test_what_changes_only_how_sums_are_computed_is_named_or_none(monkeypatch):
    assert environment()["numba"] in (None, recorded.optional("numba"))

    def without_numba(name):
        if name == "numba":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(recorded, "version", without_numba)
    found = environment()
    assert found["numba"] is None
    assert found["torch"] == version("torch")
