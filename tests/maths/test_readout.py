"""The readout against torch's own norms."""

import pytest
import torch

from rareneuron.maths.readout import Readout, token_loss

D, V = 8, 11


def parts():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((5, D), (D,), (D,), (V, D), (V,))]


@pytest.mark.parametrize("with_bias", [True, False])
def test_layer_norm(with_bias):
    x, gain, bias, W_U, b_U = parts()
    readout = Readout(
        norm="layer", weight=gain, bias=bias if with_bias else None, eps=1e-5, W_U=W_U, b_U=b_U if with_bias else None
    )
    normed = torch.nn.functional.layer_norm(x, (D,), gain, bias if with_bias else None, 1e-5)
    # two ways to write the same sums, of numbers near 1
    torch.testing.assert_close(readout(x), normed @ W_U.T + (b_U if with_bias else 0), rtol=0, atol=1e-13)


def test_rms_norm_and_scale():
    x, gain, _, W_U, _ = parts()
    readout = Readout(norm="rms", weight=gain, bias=None, eps=1e-6, W_U=W_U, scale=0.25)
    normed = torch.nn.functional.rms_norm(x, (D,), gain, 1e-6)
    torch.testing.assert_close(readout(x), 0.25 * normed @ W_U.T, rtol=0, atol=1e-13)


def test_positional_order_is_the_contract():
    x, gain, bias, W_U, b_U = parts()
    by_name = Readout(norm="layer", weight=gain, bias=bias, eps=1e-5, W_U=W_U, b_U=b_U, scale=0.5)
    assert (Readout("layer", gain, bias, 1e-5, W_U, b_U, 0.5)(x) == by_name(x)).all()


def test_norms_differ():
    """Negative control: the two norms give other logits on the same residual."""
    x, gain, _, W_U, _ = parts()
    a, b = (Readout(norm=n, weight=gain, bias=None, eps=1e-6, W_U=W_U)(x) for n in ("layer", "rms"))
    assert (a - b).abs().max() > 0.1


def test_linear_parts_rebuild_the_logits():
    x, gain, bias, W_U, b_U = parts()
    readout = Readout(norm="layer", weight=gain, bias=bias, eps=1e-5, W_U=W_U, b_U=b_U, scale=1.5)
    centred = readout.centre(x)
    normalised = centred / readout.sigma(centred)[:, None]
    rebuilt = normalised @ readout.logits_per_direction().T + readout.logits_at_zero()
    torch.testing.assert_close(rebuilt, readout(x), rtol=0, atol=1e-13)


def test_to_moves_every_part():
    x, gain, bias, W_U, b_U = parts()
    single = Readout(norm="layer", weight=gain, bias=bias, eps=1e-5, W_U=W_U, b_U=b_U).to(torch.float32)
    assert single(x.float()).dtype == torch.float32


def test_token_loss_is_cross_entropy_in_nats():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25]]))
    assert token_loss(logits, torch.tensor([1])).item() == pytest.approx(1.3862943611, abs=1e-6)  # log 4, in float32
