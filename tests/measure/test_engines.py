"""Engines are records in a table: a further one can be registered, and nobody asks for an engine by its name."""

import ast
from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from rareneuron.errors import InvalidConfig
from rareneuron.maths.ablation import delta_loss
from rareneuron.measure import engines
from rareneuron.measure.capture import TokenBatch
from rareneuron.measure.engines import ENGINES, engine_kind, register
from rareneuron.measure.engines.base import EffectBlock, EngineKind, MeanActivations
from rareneuron.measure.engines.patching import Patching, most_pieces, refuse, refuse_model, rules_out, table_bytes
from rareneuron.measure.sums import statistics_of
from rareneuron.models.families import FAMILIES
from rareneuron.present.engines import ENGINE_WORDS, engine_words
from rareneuron.present.report import render_report
from rareneuron.runs.config import ENGINE_NAMES, StudyConfig
from rareneuron.study.study import run_study
from tests.test_floors import SOURCE


class ByDefinition(Patching):
    """An engine of a few lines: Eq. 3-4 from the readout, in float64; KL is left at zero."""

    def blocks(self, batches: Iterable[TokenBatch], means: MeanActivations) -> Iterator[EffectBlock]:
        readout, W_out = self.adapter.readout(self.layer), self.adapter.weights(self.layer).W_out
        for batch in batches:
            shift = means.at(batch.rare) - batch.act.double()
            delta = delta_loss(readout, batch.resid, shift, batch.target, W_out, precision="reference")
            loss = -readout(batch.resid).log_softmax(-1).gather(1, batch.target[:, None])[:, 0]
            yield EffectBlock(batch=batch, statistics=statistics_of(delta, 0 * delta, None, shift), loss=loss)


BY_DEFINITION = EngineKind(
    name="by-definition",
    about="The definition, slowly.",
    rules_out=rules_out,
    refuse=refuse,
    refuse_model=refuse_model,
    operations=lambda work: 2.0 * work.n_tokens * work.n_neurons * work.d_model * work.vocab,
    most_pieces=most_pieces,
    table_bytes=table_bytes,
    build=lambda adapter, selection, layer, memory, rng: ByDefinition(adapter, selection, layer),
)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(engines, "ENGINES", dict(ENGINES))
    monkeypatch.setattr(engines, "ENGINE_NAMES", ENGINE_NAMES)
    register(BY_DEFINITION)
    yield BY_DEFINITION
    ENGINE_NAMES.remove(BY_DEFINITION.name)


def test_an_engine_of_a_few_lines_runs_a_study(registered, config):
    found = run_study(config(steps=(10,), engine="by-definition", out=str(config().run_folder) + "-slow"))
    usual = run_study(config(steps=(10,)))
    assert found.step_record().engine == "by-definition"
    assert found.step_record().audit is None
    for name in ("delta_loss", "abs_delta_loss", "common_abs_delta_loss"):
        ours, theirs = found.effects()[name], usual.effects()[name]
        assert np.abs(theirs).max() > 1e-3, "the case is too tame to tell right from wrong"
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert "by-definition" in render_report(found)
    assert found.claims().claims, "what claims need is asked of the model, not of the engine"


def test_a_name_is_given_once(registered):
    with pytest.raises(InvalidConfig, match="another name"):
        register(BY_DEFINITION)


def test_an_unknown_engine_is_refused_with_the_list():
    with pytest.raises(InvalidConfig, match=r"'guess'.*closed-form, gradient, patching"):
        engine_kind("guess")
    with pytest.raises(InvalidConfig, match=r"engine = 'guess' is not known"):
        StudyConfig(engine="guess")


def test_settings_and_pages_know_every_engine():
    assert list(ENGINES) == ENGINE_NAMES
    assert list(ENGINES) == list(ENGINE_WORDS)
    assert all(kind.name == name and kind.about.endswith(".") for name, kind in ENGINES.items())
    assert "another program" in engine_words("mine").method


def test_every_architecture_has_an_engine():
    for family in FAMILIES.values():
        assert any(kind.rules_out(family) is None for kind in ENGINES.values()), family


def compared_names(source):
    """Names of engines that a module compares something with."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare | ast.Match):
            yield from (n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and n.value in ENGINE_NAMES)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_nobody_compares_names_of_engines(path):
    assert not list(compared_names(path.read_text(encoding="utf-8")))


def test_the_check_sees_a_comparison():
    assert list(compared_names("if config.engine == 'closed-form': pass")) == ["closed-form"]
