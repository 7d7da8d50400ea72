"""The explorer's details of a small study, with everything they were made of."""

import numpy as np
import pytest

import rareneuron.measure.capture as capture_module
import rareneuron.measure.engines.closed_form as closed_form_module
from rareneuron.measure.effects import layer_effects
from rareneuron.measure.engines import engine_kind
from rareneuron.measure.engines.base import EffectBlock
from rareneuron.measure.neurons import Observer, explore
from rareneuron.measure.pieces import CapturedPieces, PieceStore, StepPieces
from rareneuron.models.adapter import load_model
from rareneuron.study.tokens import choose_tokens, study_corpus


class Kept(Observer):
    """Also keeps every Δ and activation, as no run could."""

    def __init__(self, selection, n_neurons: int) -> None:
        super().__init__(selection, n_neurons)
        self.every_delta, self.every_act = np.full((2, len(selection.context), n_neurons), np.nan)
        self.n_blocks = 0
        self.blocks: list[EffectBlock] = []

    def __call__(self, block: EffectBlock) -> None:
        super().__call__(block)
        self.every_delta[block.batch.index] = block.statistics["delta_loss"].cpu().numpy()
        self.every_act[block.batch.index] = block.batch.act.cpu().numpy()
        self.n_blocks += 1
        self.blocks.append(block)


@pytest.fixture
def explored(config, series, monkeypatch, tmp_path):
    """Details of the last checkpoint, computed in many small blocks, and everything they were made of."""
    monkeypatch.setattr(capture_module, "contexts_per_batch", lambda *_: 3)
    monkeypatch.setattr(closed_form_module, "TOKENS_AT_ONCE", 8)

    def build(engine: str = "closed-form", held: int = 2**30, layer: int = -1, n_tokens: int = 120):
        settings = config(engine=engine, n_tokens=n_tokens)
        adapter = load_model(series / "step10", dtype="float64")
        selection = choose_tokens(settings, study_corpus(settings), adapter).selection
        source, seen = CapturedPieces(adapter, selection, layer, memory=held), Kept(selection, adapter.d_mlp)
        pieces = StepPieces(source, PieceStore(tmp_path, {}), None)
        effects = layer_effects(source, engine_kind(engine), pieces, observe=seen).table
        assert seen.n_blocks > 3
        return explore(source, seen, effects), adapter, selection, seen, effects

    return build
