"""Slow code that reads like the paper. Nothing here is fast, and nothing here shares code with what it judges."""

import numpy as np
import torch


def delta_loss(readout, resid, shift, target, W_out, frozen_norm=False, mlp_out=None):
    """Eq. 3-4 as they read: add to the residual stream, run norm and unembedding, subtract the two losses."""
    out = torch.empty_like(shift)
    for t, token in enumerate(target):
        for i, w in enumerate(W_out):
            moved = moved_residual(readout, resid[t], shift[t, i] * w, None if mlp_out is None else mlp_out[t])
            out[t, i] = loss(readout, moved, token, resid[t] if frozen_norm else moved) - loss(
                readout, resid[t], token, resid[t]
            )
    return out


def moved_residual(readout, x, change, mlp_out):
    """The residual vector when the MLP's output changes: what a norm behind it gave goes, what it gives now comes."""
    if readout.output_norm is None:
        return x + change
    norm = readout.output_norm
    before, after = (m / torch.sqrt((m**2).mean() + norm.eps) * norm.weight for m in (mlp_out, mlp_out + change))
    return x - before + after


def kl(readout, resid, shift, W_out, mlp_out=None):
    """KL(clean || ablated) of every pair."""
    out = torch.empty_like(shift)
    for t in range(len(resid)):
        clean = log_probabilities(readout, resid[t], resid[t])
        for i, w in enumerate(W_out):
            moved = moved_residual(readout, resid[t], shift[t, i] * w, None if mlp_out is None else mlp_out[t])
            out[t, i] = (clean.exp() * (clean - log_probabilities(readout, moved, moved))).sum()
    return out


def loss(readout, x, token, scale_from):
    return -log_probabilities(readout, x, scale_from)[token]


def log_probabilities(readout, x, scale_from):
    """Norm and unembedding of one residual vector; the norm's scale is that of `scale_from`."""
    if readout.norm == "layer":
        x, scale_from = x - x.mean(), scale_from - scale_from.mean()
    x = x / torch.sqrt((scale_from**2).mean() + readout.eps)
    if readout.weight is not None:
        x = x * readout.weight
    if readout.bias is not None:
        x = x + readout.bias
    logits = readout.scale * (readout.W_U @ x)
    if readout.b_U is not None:
        logits = logits + readout.b_U
    if readout.softcap is not None:
        logits = readout.softcap * torch.tanh(logits / readout.softcap)
    return torch.log_softmax(logits, -1)


def clustered_standard_error(values, context):
    """Standard error of a mean over tokens whose contexts are independent and whose tokens are not."""
    mean, n = values.mean(), len(values)
    contexts = np.unique(context)
    residual = np.array([sum(values[k] - mean for k in range(n) if context[k] == c) for c in contexts])
    return np.sqrt(len(contexts) / (len(contexts) - 1) * (residual**2).sum()) / n


def effect_parts(readout, resid, shift, target, W_out, f, mlp_out=None):
    """Δ without the direction of frequency, without its tilt, the direct one without the direction; and ΔH."""
    out = torch.empty(4, *shift.shape, dtype=torch.float64)
    unit = f / f.norm()
    for t, y in enumerate(target):
        clean = log_probabilities(readout, resid[t], resid[t])
        p = clean.exp()
        for i, w in enumerate(W_out):
            moved = moved_residual(readout, resid[t], shift[t, i] * w, None if mlp_out is None else mlp_out[t])
            after = log_probabilities(readout, moved, moved)
            total = after - clean
            direct = log_probabilities(readout, moved, resid[t]) - clean
            mean_f, mean_change = (p * f).sum(), (p * total).sum()
            slope = (p * (f - mean_f) * (total - mean_change)).sum() / (p * (f - mean_f) ** 2).sum()
            changes = (total - (total @ unit) * unit, total - slope * f, direct - (direct @ unit) * unit)
            for k, change in enumerate(changes):
                out[k, t, i] = clean[y] - torch.log_softmax(clean + change, -1)[y]
            out[3, t, i] = (p * clean).sum() - (after.exp() * after).sum()
    return out
