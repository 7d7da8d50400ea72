"""Time and memory of a study of a random model of Gemma-3's smallest shape: 270 M parameters, 262,144 types.

The model is random and its tokenizer is that of the embedded series, with types that no text contains added up to
Gemma's number, so nothing is downloaded. The text is the embedded one, and the counts are the embedded series'. The
study analyses 2,000 rare and as many common tokens within `--memory 4`. Prints one JSON line: seconds of each stage,
peak memory, the audit and the share of full sums.

    python benchmarks/gemma3_shape.py                   about ten minutes on 2 idle cores
    python benchmarks/gemma3_shape.py --softcap 30 --n-tokens 100
"""

import argparse
import json
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

import rareneuron as rn

VOCAB, SEED, LOGIT_SPREAD = 262_144, 0, 2.5


def write_model(folder: Path, softcap: float | None) -> None:
    """Save the random model with its padded tokenizer."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=VOCAB,
        hidden_size=640,
        intermediate_size=2_048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        max_position_embeddings=32_768,
        final_logit_softcapping=softcap,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(SEED)
    model = Gemma3ForCausalLM(config)
    with torch.no_grad():  # logits that spread as those of a trained model, of a readout whose input has size 1
        model.get_input_embeddings().weight.normal_(0, LOGIT_SPREAD / 640**0.5)
    model.save_pretrained(folder)
    write_tokenizer(folder, VOCAB)


def write_tokenizer(folder: Path, n_types: int) -> None:
    """Save the embedded series' tokenizer with types added that no text contains."""
    from rareneuron.embedded import SERIES

    tokenizer = json.loads((SERIES / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = tokenizer["model"]["vocab"]
    vocab |= {f"<unused{i}>": i for i in range(len(vocab), n_types)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "tokenizer_config.json").write_bytes((SERIES / "tokenizer_config.json").read_bytes())


def write_text(folder: Path, n_types: int) -> None:
    """Save the text, and the counts of all types."""
    from rareneuron.embedded import SERIES
    from rareneuron.embedded.docstrings import analysis_texts

    lines = (json.dumps({"text": text}) + "\n" for text in analysis_texts())
    (folder / "texts.jsonl").write_text("".join(lines), encoding="utf-8")
    counts = np.load(SERIES / "unigrams.npy")
    # Types that no text contains are as frequent as the others, so half of all types stay as rare as they were.
    more = np.random.default_rng(SEED).choice(counts, n_types - len(counts))
    np.save(folder / "counts.npy", np.concatenate([counts, more]))


def main() -> None:
    """Build the inputs, run the study, print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-tokens", type=int, default=2_000)
    parser.add_argument("--memory", type=float, default=4.0)
    parser.add_argument("--softcap", type=float)
    args = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model", args.softcap)
        write_text(folder, VOCAB)
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run = rn.run_study(
            rn.StudyConfig(
                model=str(folder / "model"),
                data=str(folder / "texts.jsonl"),
                counts=str(folder / "counts.npy"),
                n_tokens=args.n_tokens,
                memory=args.memory,
                out=str(folder / "run"),
            )
        )
        seconds = time.perf_counter() - began
        record = run.step_record()
        found = {"seconds": seconds, "timings": dict(record.timings), "rates": dict(record.rates)}
        effects = run.effects()
        found |= {
            "audit": vars(record.audit),
            "median_abs_delta_loss": float(effects["abs_delta_loss"].median()),
            "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "peak_before_gib": before / 2**20,
            "threads": torch.get_num_threads(),
        }
        print(json.dumps(found))


if __name__ == "__main__":
    main()
