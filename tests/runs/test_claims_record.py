"""Claims as JSON: what is written is read back as it was."""

import json
from dataclasses import asdict, replace

import numpy as np

from rareneuron.errors import Unavailable
from rareneuron.maths.verdicts import judge
from rareneuron.runs.claims import as_record, from_record
from tests.maths.test_claims import CLAIMED, made


def test_a_claim_is_the_same_after_json():
    test = replace(made(), effect_low=np.nan, group=None)
    for claim in judge([(CLAIMED, [test, made()]), (CLAIMED, Unavailable("There is none."))]):
        record = json.loads(json.dumps(as_record(claim), allow_nan=False))
        again = from_record(record)
        assert type(again) is type(claim)  # not `==`: since Python 3.13 records that hold a NaN never equal each other
        np.testing.assert_equal(asdict(again), asdict(claim))
    assert from_record({**record, "tests": []}).tests == ()
    del record["tests"]
    assert from_record(record).tests == ()
