"""What replaces an activation."""

import numpy as np
import torch

from rareneuron.maths.interventions import mean_shift, resample_shift, zero_shift

ACT = torch.arange(12.0, dtype=torch.float64).reshape(4, 3)


def test_shift_leads_to_the_replacement():
    assert (ACT + mean_shift(ACT, ACT.mean(0)) == ACT.mean(0)).all()
    assert (ACT + zero_shift(ACT) == 0).all()


def test_resampling_takes_whole_tokens_and_repeats_by_seed():
    replaced = ACT + resample_shift(ACT, np.random.default_rng(0))
    assert sorted(replaced.tolist()) == sorted(ACT.tolist())
    assert (replaced == ACT + resample_shift(ACT, np.random.default_rng(0))).all()
    assert (replaced != ACT).any()
