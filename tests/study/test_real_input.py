"""Studies of real input through the command line: a trained model on novels, and Pythia-70M's shape on C4."""

import gzip
import itertools
import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

import rareneuron as rn
from rareneuron.cli import cli
from tests.study.test_memory import MEASURABLE, STUDY, peak_of


def study_arguments(model, options):
    return ["study", str(model), *(str(x) for pair in options.items() for x in pair), "--json"]


def study(model, options):
    done = CliRunner().invoke(cli, study_arguments(model, options), catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout), rn.open_run(options["--out"])


# --- a trained Llama of 105 characters


@pytest.fixture(scope="module")
def novels(reference_data, tmp_path_factory):
    """The first 50,000 characters of each of four novels."""
    with gzip.open(reference_data / "corpora" / "eltec-novels.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"][:50_000] for line in itertools.islice(lines, 4)]
    path = tmp_path_factory.mktemp("novels") / "novels.txt"
    path.write_text("\n\n".join(texts), encoding="utf-8")
    return path


@pytest.fixture
def babyllama(reference_data, novels, tmp_path):
    """Characters are no words, and half of the 105 hardly occur: rare are those that make up the last fifth."""
    model = reference_data / "models" / "babyllama-tok105"
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # more threads gain nothing on matrices this small
    common = {"--data": novels, "--words": "off", "--rarity": "occurrences", "--percentile": 20}
    common |= {"--counts-from": "corpus"}
    common |= {"--context-length": 128, "--group-size": 20, "--n-random": 200}

    def build(name, **options):
        return study(model, common | {"--out": tmp_path / name} | options)

    yield build
    torch.set_num_threads(before)


@pytest.mark.slow
def test_babyllama_on_novels(babyllama):
    summary, run = babyllama("run", **{"--n-tokens": 400})
    data, tokens = run.manifest.data, run.tokens()
    assert data.counts.of == "the corpus itself, not the training set"
    assert [stage.name for stage in data.stages] == ["all", "rare by frequency", "sampled"]
    assert (data.n_rare, data.n_common) == (400, 400)
    assert 0.15 < data.rarity.mass <= 0.20
    assert data.n_available > 30_000
    assert not set(tokens.query("rare")["text"]) & set(tokens.query("~rare")["text"])
    assert set(tokens.query("~rare")["text"]) <= set(" etoanishrldcu")
    # Trained on stories for children: on old novels it knows more than how frequent each character is.
    for kind in ("rare", "~rare"):
        chosen = tokens.query(kind)
        assert chosen["loss"].mean() < -np.log(chosen["frequency"]).mean() - 0.3
    assert summary["loss_common"] < summary["loss_rare"] < math.log(105)
    table = run.effects()
    assert len(table) == 352
    assert np.isfinite(table.select_dtypes("number")).all(axis=None)
    assert summary["top_abs_delta_loss"] > 3 * summary["median_abs_delta_loss"]
    assert summary["audit"]["n_pairs"] == 32 * 32
    assert summary["audit"]["max_error"] < 1e-5  # the engine's 3e-6 a pair, and float32 rounding of large effects
    assert summary["audit"]["rms_delta_loss"] > 1e-2, "the case is too tame to tell right from wrong"


@pytest.mark.slow
def test_babyllama_closed_form_agrees_with_patching(babyllama, without_pages):
    few = {"--n-tokens": 10, "--context-length": 64, "--group-size": 5, "--dtype": "float64"}
    _, closed = babyllama("closed", **few)
    _, patched = babyllama("patched", **few, **{"--engine": "patching"})
    assert closed.tokens().drop(columns="loss").equals(patched.tokens().drop(columns="loss"))
    fast, slow = closed.effects(), patched.effects()
    assert slow["abs_delta_loss"].max() > 1e-2, "the case is too tame to tell right from wrong"
    for column in ("delta_loss", "abs_delta_loss", "kl", "common_delta_loss", "common_abs_delta_loss"):
        # The engine computes in float32 within 3e-6 a pair; transformers' RMSNorm is float32 on both sides.
        np.testing.assert_allclose(fast[column], slow[column], rtol=0, atol=5e-6)
    np.testing.assert_allclose(closed.tokens()["loss"], patched.tokens()["loss"], rtol=0, atol=1e-5)  # float32 logits


# --- the shape of Pythia-70M


@pytest.fixture(scope="module")
def pythia_70m(reference_data, tmp_path_factory):
    """Random weights in Pythia-70M's shape, with its tokenizer: everything but what it learned."""
    folder = tmp_path_factory.mktemp("pythia-70m")
    config = GPTNeoXConfig(
        vocab_size=50_304,
        hidden_size=512,
        intermediate_size=2_048,
        num_hidden_layers=6,
        num_attention_heads=8,
        max_position_embeddings=2_048,
    )
    torch.manual_seed(0)
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(reference_data / "tokenizers" / "gpt-neox").save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not MEASURABLE, reason="peak memory is read from /proc (tests/SKIPS.md)")
def test_pythia_70m_shape_on_c4(reference_data, pythia_70m, tmp_path):
    options = {
        "--data": reference_data / "corpora" / "c4-sample.jsonl.gz",
        "--counts": reference_data / "unigrams" / "pythia-unigrams.npy",
        "--n-tokens": 100,
        "--n-random": 200,
        "--out": tmp_path / "run",
    }
    peak, output = peak_of(STUDY, *study_arguments(pythia_70m, options))
    summary, run = json.loads(output), rn.open_run(tmp_path / "run")
    data, record, table = run.manifest.data, run.step_record(), run.effects()
    assert data.n_available == 28_541
    assert data.n_contexts_read == 3_794
    assert [(stage.name, stage.types, stage.occurrences) for stage in data.stages[:3]] == [
        ("all", 33_680, 967_470),  # 3,794 windows of 255 targets
        ("rare by frequency", 13_258, 46_054),
        ("rare words", 7_142, 28_541),
    ]
    assert data.rarity.threshold == pytest.approx(3.1731e-6, rel=1e-4)  # published to five digits
    assert data.rarity.mass == pytest.approx(0.0472, rel=1e-3)
    assert (data.n_rare, data.n_common) == (100, 100)
    assert record.model.n_params == 70_426_624
    assert record.closed_form.ok
    assert len(table) == 2_048
    assert table["neuron"].iloc[-1] == "5.2047"
    assert record.loss_rare == pytest.approx(math.log(50_304), abs=0.3)  # it has learned nothing
    assert summary["audit"]["max_error"] < 3e-6  # the engine's bound; effects are too small to round
    assert summary["audit"]["rms_delta_loss"] > 1e-3, "the case is too tame to tell right from wrong"
    # Weights 0.27 GiB, B and its square 0.58, logits of 128 tokens and their moments; the libraries 0.4.
    assert peak < 3_500
