"""How much longer the pass over a model takes when it takes effects apart by mechanism, as every study does.

The pass captures activations and computes all effects of the last layer. The model is random, of Pythia-70M's shape,
and its final norm has a bias, without which the entropy is cheaper. Each line: CPU seconds of the pass without and with
mechanisms, in two studies of the same tokens one after the other, and their ratio.

    OMP_NUM_THREADS=1 python benchmarks/mechanism_time.py       about five minutes
"""

import argparse
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
from gemma3_shape import write_text, write_tokenizer

import rareneuron as rn
from rareneuron.measure import checkpoint

VOCAB, SEED, LOGIT_SPREAD, BIAS_SPREAD = 50_304, 0, 2.5, 0.3


class PassMeasured(Exception):
    """Ends a study behind its pass; what comes after isn't measured."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


def write_model(folder: Path) -> None:
    """Save the random model with its tokenizer, padded to Pythia's number of types."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(SEED)
    shape = {"hidden_size": 512, "intermediate_size": 2_048, "num_hidden_layers": 6, "num_attention_heads": 8}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=VOCAB, tie_word_embeddings=False, **shape))
    with torch.no_grad():  # logits that spread as those of a trained model
        model.get_output_embeddings().weight.normal_(0, LOGIT_SPREAD / 512**0.5)
        model.gpt_neox.final_layer_norm.bias.normal_(0, BIAS_SPREAD)
    model.save_pretrained(folder)
    write_tokenizer(folder, VOCAB)


def seconds_of_pass(folder: Path, run: str, n_tokens: int, *, apart: bool) -> float:
    """Begin a study, and return the CPU seconds of its pass."""
    measure = checkpoint.layer_effects

    def measured(*args: Any, **settings: Any) -> None:
        began = time.process_time()
        measure(*args, **settings | ({} if apart else {"log_frequency": None}))
        raise PassMeasured(time.process_time() - began)

    config = rn.StudyConfig(
        model=str(folder / "model"),
        data=str(folder / "texts.jsonl"),
        counts=str(folder / "counts.npy"),
        n_tokens=n_tokens,
        out=str(folder / run),
    )
    try:
        with mock.patch.object(checkpoint, "layer_effects", measured):
            rn.run_study(config)
    except PassMeasured as found:
        return found.seconds
    raise RuntimeError("The study ended without a pass.")


def main() -> None:
    """Print a line for each pair of studies, and the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-tokens", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=4)
    args = parser.parse_args()
    with TemporaryDirectory() as name:
        folder, ratios = Path(name), []
        write_model(folder / "model")
        write_text(folder, VOCAB)
        for i in range(args.repeats):
            seconds = [seconds_of_pass(folder, f"{i}-{apart}", args.n_tokens, apart=apart) for apart in (False, True)]
            ratios.append(seconds[1] / seconds[0])
            print(f"without {seconds[0]:.1f} s, with {seconds[1]:.1f} s: {ratios[-1]:.2f}×", flush=True)
        print(f"median {median(ratios):.2f}×")


if __name__ == "__main__":
    main()
