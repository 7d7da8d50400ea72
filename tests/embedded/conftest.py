"""The embedded corpus, read once."""

import pytest

from rareneuron.embedded.docstrings import analysis_texts


@pytest.fixture(scope="session")
def analysis() -> list[str]:
    return list(analysis_texts())
