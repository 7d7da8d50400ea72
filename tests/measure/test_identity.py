"""What kept pieces of a checkpoint are named by: every setting that decides them, also those still to come."""

from dataclasses import dataclass, fields

import pytest

from rareneuron.measure.identity import DECIDE_LATER_STAGES, SEEN_IN_TOKENS, SEEN_IN_WEIGHTS, piece_identity
from rareneuron.runs.config import FREE, StudyConfig

NOT_NAMED = SEEN_IN_TOKENS | SEEN_IN_WEIGHTS | DECIDE_LATER_STAGES
OTHER = {"reference": "all", "engine": "patching", "dtype": "float64", "seed": 1, "layer": 0}


def identity_of(config):
    return piece_identity(config, layer=config.layer % 3, weights="weights", tokens="tokens")


def test_every_setting_is_free_or_known_otherwise_or_part_of_the_name():
    names = {f.name for f in fields(StudyConfig)}
    assert names > FREE | NOT_NAMED
    assert not FREE & NOT_NAMED
    assert set(OTHER) == names - FREE - NOT_NAMED, "a new setting: does it change effects? Then add it here."
    assert set(identity_of(StudyConfig())) == set(OTHER) | {"weights", "tokens", "frequency"}


@pytest.mark.parametrize("name", sorted(OTHER))
def test_another_setting_is_another_name(name):
    assert identity_of(StudyConfig(**{name: OTHER[name]})) != identity_of(StudyConfig())


def test_a_layer_counts_the_same_from_either_end():
    assert identity_of(StudyConfig(layer=-1)) == identity_of(StudyConfig(layer=2))


@dataclass(frozen=True, kw_only=True)
class Later(StudyConfig):
    """As the settings of a version to come, with one more."""

    strength: float = 1.0


def test_a_new_setting_is_part_of_the_name_by_itself():
    assert identity_of(Later(strength=2.0)) != identity_of(Later())
