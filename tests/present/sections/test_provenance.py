"""The section on provenance: which tokenizer, which unembedding and which form of weights were studied."""

from collections.abc import Callable
from dataclasses import replace

from rareneuron.present.blocks import Settings
from rareneuron.present.findings import Findings, findings
from rareneuron.present.sections.provenance import provenance_section
from rareneuron.runs.run import Run

OVERRULED = "tokenizer.json; its class GPT2Tokenizer would give other ids"
STORED = (
    "lm_head.weight of the weight files, which differs from the embedding, though config.json says that they are one"
)


def model_settings(found: Findings) -> dict[str, str]:
    """What the section says of the model, by name."""
    blocks = provenance_section(found).blocks
    return dict(next(block for block in blocks if isinstance(block, Settings) and block.caption == "Model").items)


def with_models(found: Findings, *changes: dict[str, object]) -> Findings:
    """The same findings with other facts about the models, one dictionary a checkpoint."""
    records = zip(found.records, changes, strict=True)
    return replace(found, records=tuple(replace(r, model=replace(r.model, **change)) for r, change in records))


def test_it_tells_the_tokenizer_the_unembedding_and_the_form_of_the_weights(make_run: Callable[..., Run]) -> None:
    found = findings(make_run(steps=(None,)))
    said = {"tokenizer": OVERRULED, "head": STORED, "tied": False, "form": "dequantised from Q4_1"}
    assert model_settings(with_models(found, said)) == {
        "ids of the tokenizer": OVERRULED,
        "unembedding": STORED,
        "weights": "dequantised from Q4_1",
    }


def test_it_tells_a_tied_unembedding_from_a_stored_one_and_from_an_old_record(make_run: Callable[..., Run]) -> None:
    found = findings(make_run(steps=(None,)))
    for tied, said in ((True, "the embedding, tied"), (False, "its own weights"), (None, "–")):
        assert model_settings(with_models(found, {"tied": tied}))["unembedding"] == said
    assert model_settings(found)["weights"] == "as stored"
    assert model_settings(found)["ids of the tokenizer"] == "–", "a record of an older version"


def test_checkpoints_that_differ_are_told_apart(make_run: Callable[..., Run]) -> None:
    found = with_models(findings(make_run(steps=(0, 8, 512))), {}, {"head": STORED}, {})
    assert model_settings(found)["unembedding"] == f"the embedding, tied (step 0, 512); {STORED} (step 8)"
