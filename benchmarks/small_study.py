"""Seconds of a small study, stage by stage: what a first try of one's own model costs before any science is large.

A random GPT-NeoX (or Llama) with one checkpoint, 256 neurons in its last layer and the embedded series' vocabulary of
16,384, on the embedded text, with 400 rare tokens and as many common ones. `rareneuron study` runs twice: once as the
command line does it, which gives the total, and once part by part in a process of its own. One JSON line per model.

    python benchmarks/small_study.py                    half a minute on 2 idle cores
    python benchmarks/small_study.py --families llama --profile study.pstats
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

N_NEURONS, D_MODEL, N_LAYERS, N_HEADS, CONTEXT_LENGTH = 256, 64, 2, 4, 256
N_TOKENS, SEED = 400, 0


def write_inputs(folder: Path, family: str) -> list[str]:
    """Save the model with its tokenizer, and the text; returns the arguments of `rareneuron study`."""
    import torch
    from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig

    from rareneuron.embedded import SERIES
    from rareneuron.embedded.docstrings import analysis_texts

    shape: dict[str, Any] = {
        "vocab_size": 16_384,
        "hidden_size": D_MODEL,
        "intermediate_size": N_NEURONS,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": N_HEADS,
        "max_position_embeddings": CONTEXT_LENGTH,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    torch.manual_seed(SEED)
    kinds = {"gpt_neox": GPTNeoXConfig, "llama": LlamaConfig}
    AutoModelForCausalLM.from_config(kinds[family](**shape)).save_pretrained(folder / family)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / family / name).write_bytes((SERIES / name).read_bytes())
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in analysis_texts()), encoding="utf-8")
    chosen = ["--data", str(texts), "--counts", str(SERIES / "unigrams.npy"), "--n-tokens", str(N_TOKENS)]
    return [str(folder / family), *chosen]


def seconds_of_command(arguments: list[str]) -> float:
    """What a user waits for."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "rareneuron", "study", *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def seconds_by_part(model: str, data: str, counts: str, out: str) -> dict[str, float]:
    """The same study in this process: its imports, its stages, what of the study no stage holds, its pages."""
    seconds: dict[str, float] = {}

    def timed(name: str, compute: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = compute()
        seconds[name] = time.perf_counter() - began
        return result

    def imports() -> Any:
        import rareneuron as rn
        from rareneuron.present.figures import write_figures
        from rareneuron.present.report import write_report
        from rareneuron.present.tables import write_tables

        return rn, rn.run_study, (("report", write_report), ("figures", write_figures), ("tables", write_tables))

    rn, run_study, pages = timed("imports", imports)
    config = rn.StudyConfig(model=model, data=data, counts=counts, n_tokens=N_TOKENS, out=out)
    run = timed("study", lambda: run_study(config, progress=False))
    stages = next(iter(json.loads((run.path / "run.json").read_text())["checkpoints"].values()))["timings"]
    for name, write in pages:
        timed(name, lambda write=write: write(run))
    study = seconds.pop("study")
    seconds |= stages
    return seconds | {"rest": study - sum(stages.values())}


def main() -> None:
    """Build, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=["gpt_neox", "llama"], choices=["gpt_neox", "llama"])
    parser.add_argument("--profile", type=Path, help="write cProfile's numbers of the parts to this file")
    parser.add_argument("--parts", nargs=4, metavar=("MODEL", "DATA", "COUNTS", "OUT"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.parts:
        print(json.dumps(seconds_by_part(*chosen.parts)))
        return
    with TemporaryDirectory() as name:
        folder = Path(name)
        for family in chosen.families:
            arguments = write_inputs(folder, family)
            total = seconds_of_command([*arguments, "--out", str(folder / f"{family}-command")])
            profile = [] if chosen.profile is None else ["-m", "cProfile", "-o", str(chosen.profile)]
            parts = [arguments[0], arguments[2], arguments[4], str(folder / f"{family}-parts")]
            command = [sys.executable, *profile, __file__, "--parts", *parts]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            rounded = {name: round(value, 2) for name, value in found.items()}
            print(json.dumps({"family": family, "seconds": round(total, 2), "by_part": rounded}), flush=True)


if __name__ == "__main__":
    main()
