"""What one neuron's effect costs by a hooked forward pass in TransformerLens: microseconds a (token, neuron) pair.

TransformerLens is no dependency of ours: give it an environment of its own, then compare with the column "hooked" of
docs/engine.md, which is the same pass through plain PyTorch hooks.

    python -m venv build/tl && build/tl/bin/pip install torch==2.13.0 transformer-lens
    build/tl/bin/python benchmarks/bench_transformerlens.py
"""

import json
import tempfile
import time
from pathlib import Path

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

SERIES = Path(__file__).parents[1] / "src" / "rareneuron" / "embedded" / "series"
RARE_PER_CONTEXT = 7.5  # as in bench_effects.py
CONTEXTS, LENGTH = 2, 256
HOOK = "blocks.5.mlp.out.hook_in"  # the input of the MLP's output projection


def main() -> None:
    config = GPTNeoXConfig(
        vocab_size=50_304, hidden_size=512, intermediate_size=2_048, num_hidden_layers=6, num_attention_heads=8
    )
    with tempfile.TemporaryDirectory() as folder:
        GPTNeoXForCausalLM(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(SERIES).save_pretrained(folder)
        model = TransformerBridge.boot_transformers(folder, device="cpu")

    def replace_one(act: torch.Tensor, hook: object) -> torch.Tensor:
        act = act.clone()
        act[..., 0] = 0.1
        return act

    ids = torch.randint(16_000, (CONTEXTS, LENGTH), generator=torch.Generator().manual_seed(0))
    best = float("inf")
    for _ in range(4):  # the first warms up
        start = time.perf_counter()
        with torch.inference_mode():
            model.run_with_hooks(ids, return_type="loss", loss_per_token=True, fwd_hooks=[(HOOK, replace_one)])
        best = min(best, time.perf_counter() - start)
    pairs = CONTEXTS * RARE_PER_CONTEXT
    print(json.dumps({"shape": "pythia-70m", "us_per_pair": round(1e6 * best / pairs), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
