"""How the embedded series is made: tokenizer, model, training, log-spaced checkpoints.

A GPT-NeoX (the architecture of Pythia) small enough to ship ten checkpoints of it, trained with transformers'
`Trainer` on `docstrings.training_texts`. Input and output embeddings are tied: at a vocabulary of 16,384 they
are two thirds of the weights. Checkpoints are saved in float16, counts are of the training windows.
"""

import json
import shutil
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from rareneuron.data.corpus import token_windows
from rareneuron.embedded.baselines import ngram_losses
from rareneuron.embedded.docstrings import TRAINING_PACKAGES, analysis_texts, training_texts
from rareneuron.errors import InvalidConfig
from rareneuron.models.loss import mean_loss

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the weights, apart from library versions and the machine's arithmetic."""

    vocab_size: int = 16_384
    d_model: int = 128
    d_mlp: int = 1_024
    n_layers: int = 3
    n_heads: int = 4
    context_length: int = 256
    checkpoints: tuple[int, ...] = (0, 8, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096)
    contexts_per_step: int = 24
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1
    held_out_every: int = 50  # every n-th training document is only evaluated on
    seed: int = 0
    packages: tuple[str, ...] = TRAINING_PACKAGES


def make_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE as GPT-NeoX has: BOS and EOS are one `<|endoftext|>`, every byte string encodes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, unk_token=END_OF_TEXT
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save a tokenizer under a class name that transformers 4 knows, too."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}) + "\n")


def make_model(recipe: Recipe) -> GPTNeoXForCausalLM:
    """The untrained model, from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=recipe.vocab_size,
            hidden_size=recipe.d_model,
            intermediate_size=recipe.d_mlp,
            num_hidden_layers=recipe.n_layers,
            num_attention_heads=recipe.n_heads,
            max_position_embeddings=recipe.context_length,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


class UnembeddingLoss(torch.autograd.Function):
    """Mean cross-entropy from final hidden states, with both gradients taken block by block in the forward pass.

    The logits of a batch (24 · 256 tokens · 16,384 types) are 400 MB; in blocks of 256 tokens they stay in
    cache, which doubled the training speed of the whole model on two CPU cores.
    """

    BLOCK = 256

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, W_U: Tensor, target: Tensor) -> Tensor:
        """Compute the loss, and keep gradients for `backward`."""
        n, dtype = len(hidden), torch.bfloat16
        W = W_U.to(dtype)
        total = hidden.new_zeros(())
        grad_hidden, grad_W = torch.empty_like(hidden), torch.zeros_like(W_U)
        for start in range(0, n, UnembeddingLoss.BLOCK):
            block = slice(start, start + UnembeddingLoss.BLOCK)
            x, y = hidden[block].to(dtype), target[block, None]
            p = (x @ W.T).float()
            p -= p.amax(1, keepdim=True)
            at_target = p.gather(1, y).sum()
            mass = p.exp_().sum(1, keepdim=True)
            total += mass.log().sum() - at_target
            p /= mass * n
            p.scatter_add_(1, y, p.new_full(y.shape, -1 / n))
            p16 = p.to(dtype)
            grad_hidden[block] = p16 @ W
            grad_W += p16.T @ x
        ctx.save_for_backward(grad_hidden, grad_W)
        return total / n

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """Scale the gradients that `forward` kept."""
        grad_hidden, grad_W = ctx.saved_tensors
        return grad_hidden * grad[0], grad_W * grad[0], None


class SeriesTrainer(Trainer):
    """`Trainer` with the blocked loss; the model's own loss is the same number, computed in 400 MB."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        """Cross-entropy of every next token in the batch."""
        ids = inputs["input_ids"]
        core = self.accelerator.unwrap_model(model)
        hidden = core.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1).float()
        loss = UnembeddingLoss.apply(hidden, core.get_output_embeddings().weight, ids[:, 1:].flatten())
        return (loss, {"loss": loss}) if return_outputs else loss


class LogSpacedCheckpoints(TrainerCallback):
    """Saves float16 weights at the recipe's steps, with the held-out loss of the weights before they were rounded."""

    def __init__(self, recipe: Recipe, out: Path, evaluate: Any) -> None:
        self.recipe, self.out, self.evaluate = recipe, out, evaluate

    def save(self, model: GPTNeoXForCausalLM, step: int) -> None:
        """Write a checkpoint to `step<N>/`, whole or not at all."""
        folder = self.out / f"step{step}"
        if (folder / "model.safetensors").exists():  # a resumed run passes its old checkpoints again
            return
        losses = self.evaluate(model)
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        half = make_model(self.recipe).half()
        half.load_state_dict(model.state_dict())
        half.save_pretrained(partial)
        (partial / "generation_config.json").unlink()  # nobody generates with this model
        (partial / "losses.json").write_text(json.dumps({"step": step, **losses}, indent=1) + "\n")
        partial.rename(folder)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save step 0, before anything is learned."""
        if state.global_step == 0:
            self.save(kwargs["model"], 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the other steps of the recipe."""
        if state.global_step in self.recipe.checkpoints:
            self.save(kwargs["model"], state.global_step)


def first_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe cut short, for trying it out; the learning rate then falls within these steps."""
    if steps < 1:
        raise InvalidConfig(f"Training for {steps} steps trains nothing. Give --steps a number from 1 on.")
    kept = tuple(step for step in recipe.checkpoints if step < steps)
    return replace(recipe, checkpoints=(*kept, steps))


def train_series(recipe: Recipe, out: Path, *, evaluate_on: int = 200, save_every: int = 256) -> Path:
    """Train the series into `out/step<N>/`; the same call resumes an interrupted training.

    The recipe must be that of the training it continues. Trainer state lies in `out/.trainer`, which may be removed
    when training is done.
    """
    absent = [name for name in ("accelerate", *recipe.packages) if find_spec(name) is None]
    if absent:
        raise InvalidConfig(
            "Training needs accelerate and the packages whose docstrings are the text, and these aren't installed: "
            f"{', '.join(absent)}. Run: pip install 'rareneuron[train]'"
        )
    out.mkdir(parents=True, exist_ok=True)
    texts = list(training_texts(recipe.packages))
    held_out_texts = texts[:: recipe.held_out_every]
    kept_texts = [text for i, text in enumerate(texts) if i % recipe.held_out_every]
    tokenizer = make_tokenizer(kept_texts, recipe.vocab_size)
    save_tokenizer(tokenizer, out)
    training = token_windows(kept_texts, tokenizer, recipe.context_length)
    held_out = token_windows(held_out_texts, tokenizer, recipe.context_length)
    analysis = token_windows(analysis_texts(), tokenizer, recipe.context_length)
    counts = np.bincount(training.ids[:, 1:].ravel(), minlength=recipe.vocab_size)
    np.save(out / "unigrams.npy", counts.astype(np.int32))
    (out / "recipe.json").write_text(
        json.dumps(
            asdict(recipe)
            | {
                "training_tokens": training.n_text_tokens,
                "training_fingerprint": training.fingerprint,
                "held_out_tokens": held_out.n_text_tokens,
                "analysis_tokens": analysis.n_text_tokens,
                "analysis_fingerprint": analysis.fingerprint,
                "torch": torch.__version__,
            },
            indent=1,
        )
        + "\n"
    )
    rng = np.random.default_rng(recipe.seed)
    held_out_sample = held_out.ids[rng.permutation(len(held_out.ids))[:evaluate_on]]
    analysis_sample = analysis.ids[rng.permutation(len(analysis.ids))[:evaluate_on]]

    def evaluate(model: GPTNeoXForCausalLM) -> dict[str, float]:
        return {
            "held_out_loss": mean_loss(model, held_out_sample),
            "analysis_loss": mean_loss(model, analysis_sample),
        }

    state = out / ".trainer"
    trainer = SeriesTrainer(
        model=make_model(recipe),
        args=TrainingArguments(
            output_dir=str(state),
            max_steps=max(recipe.checkpoints),
            per_device_train_batch_size=recipe.contexts_per_step,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": 0.05},
            warmup_steps=recipe.warmup_steps,
            weight_decay=recipe.weight_decay,
            adam_beta2=0.95,
            max_grad_norm=1.0,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            save_steps=save_every,
            save_total_limit=1,
            logging_steps=50,
            report_to=[],
            seed=recipe.seed,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
        ),
        train_dataset=[{"input_ids": torch.from_numpy(ids).long()} for ids in training.ids],
        callbacks=[LogSpacedCheckpoints(recipe, out, evaluate)],
    )
    trainer.train(resume_from_checkpoint=any(state.glob("checkpoint-*")) or None)
    log = [row for row in trainer.state.log_history if "loss" in row]
    (out / "training_log.json").write_text(json.dumps(log, indent=1) + "\n")
    steps = [json.loads((out / f"step{step}" / "losses.json").read_text()) for step in recipe.checkpoints]
    baselines = {
        "held_out_loss": ngram_losses(training.ids, held_out_sample, recipe.vocab_size),
        "analysis_loss": ngram_losses(training.ids, analysis_sample, recipe.vocab_size),
    }
    (out / "losses.json").write_text(json.dumps({"steps": steps, "baselines": baselines}, indent=1) + "\n")
    return out
