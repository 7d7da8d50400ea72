"""A GPT-NeoX in numpy, float64: the last block's activations and residual stream, and what ablation does (Eq. 2-4)."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from scipy.special import erf


def log_softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


class Model:
    """A folder of GPT-NeoX weights; of the last layer the matrices of its MLP."""

    def __init__(self, folder):
        self.config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        weights = load_file(Path(folder) / "model.safetensors")
        self.weights = {name.removeprefix("gpt_neox."): w.astype(np.float64) for name, w in weights.items()}
        last = f"layers.{self.config['num_hidden_layers'] - 1}.mlp"
        self.W_in = self.weights[f"{last}.dense_h_to_4h.weight"]
        self.W_out = self.weights[f"{last}.dense_4h_to_h.weight"].T
        self.unembedding = self.weights["embed_out.weight"]

    def affine(self, x, name):
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, x, name, like=None):
        """LayerNorm; with the spread of `like`, where the norm's scale is to be frozen."""
        like = x if like is None else like
        spread = np.sqrt(like.var(-1, keepdims=True) + self.config["layer_norm_eps"])
        scaled = (x - x.mean(-1, keepdims=True)) / spread
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attention(self, x, name):
        heads, rope = self.config["num_attention_heads"], self.config["rope_parameters"]
        qkv = self.affine(x, f"{name}.query_key_value").reshape(*x.shape[:2], heads, 3, -1)
        q, k, v = np.moveaxis(qkv, 3, 0).swapaxes(2, 3)
        width = int(q.shape[-1] * rope["partial_rotary_factor"])
        angle = np.arange(x.shape[1])[:, None] * rope["rope_theta"] ** -(np.arange(0, width, 2) / width)
        cos, sin = (np.tile(f(angle.astype(np.float32)), 2).astype(np.float64) for f in (np.cos, np.sin))
        for part in (q, k):
            turned, half = part[..., :width].copy(), width // 2
            swapped = np.concatenate([-turned[..., half:], turned[..., :half]], -1)
            part[..., :width] = turned * cos + swapped * sin
        score = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
        score = np.where(np.tri(x.shape[1], dtype=bool), score, -np.inf)
        mixed = np.exp(log_softmax(score)) @ v
        return self.affine(mixed.swapaxes(1, 2).reshape(x.shape), f"{name}.dense")

    def forward(self, windows):
        """The residual stream behind the last block [context, position, d], and its MLP's activations."""
        x = self.weights["embed_in.weight"][windows]
        for i in range(self.config["num_hidden_layers"]):
            before = self.affine(self.norm(x, f"layers.{i}.post_attention_layernorm"), f"layers.{i}.mlp.dense_h_to_4h")
            act = before * (1 + erf(before / np.sqrt(2))) / 2
            attended = self.attention(self.norm(x, f"layers.{i}.input_layernorm"), f"layers.{i}.attention")
            x = x + attended + self.affine(act, f"layers.{i}.mlp.dense_4h_to_h")
        return x, act

    def log_p(self, x, like=None):
        return log_softmax(self.norm(x, "final_layer_norm", like) @ self.unembedding.T)

    def ablated(self, resid, shift, target):
        """Δ, KL and direct Δ of every neuron at every token, one at a time, by their definitions."""
        delta, kl, direct = np.empty((3, *shift.shape))
        for t, x in enumerate(resid):
            moved, clean = x + shift[t][:, None] * self.W_out, self.log_p(x)
            log_p = self.log_p(moved)
            delta[t] = clean[target[t]] - log_p[:, target[t]]
            kl[t] = (np.exp(clean) * (clean - log_p)).sum(-1)
            direct[t] = clean[target[t]] - self.log_p(moved, like=x)[:, target[t]]
        return delta, kl, direct

    def delta(self, resid, move, target):
        """Δ of moving each token's residual stream by one vector."""
        at = np.arange(len(target))
        return self.log_p(resid)[at, target] - self.log_p(resid + move)[at, target]
