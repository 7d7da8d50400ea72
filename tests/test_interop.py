"""A run's groups in other tools: the blocks of docs/howto/other-tools.md run as they stand, where the tool is there."""

import re
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

import rareneuron as rn
from rareneuron.cli import cli
from rareneuron.present import publish
from tests.docs_blocks import ROOT, blocks, stand_ins, with_small_options

PAGE = ROOT / "docs" / "howto" / "other-tools.md"
NEEDED = re.compile(r"# needs (\w+)\n")
WITHOUT_US = "import sys\nsys.modules['rareneuron'] = sys.modules['torch'] = None\n"

pytestmark = pytest.mark.slow


def code(tool):
    """The block of the page that needs a tool; the one of pandas needs none."""
    found = [block.text for block in blocks(PAGE) if block.language in ("python", "text")]
    needs = [match[1] if (match := NEEDED.match(text)) else None for text in found]
    return found[needs.index(tool)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    there = stand_ins(tmp_path_factory.mktemp("interop"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "publish", lambda run: publish.Published(report=run.path / "report.html"))
        patch.chdir(there.folder)
        words = ["rareneuron", "study", "./my-model", "--data", "texts.txt"]
        done = CliRunner().invoke(cli, with_small_options(words), catch_exceptions=False)
        assert done.exit_code == 0, done.output
    return there.folder


def executed(text, folder):
    """What a block prints, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", text], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_groups_are_read_by_ten_lines_of_pandas_alone(place):
    text = code(None)
    assert len([line for line in text.splitlines() if line.strip()]) <= 10
    told = executed(WITHOUT_US + text, place)
    run = rn.open_run(place / "runs" / "my-model")
    layer, neurons = re.search(r"layer (\d+), neurons \[(.*)\]", told).groups()
    assert int(layer) == run.manifest.layer
    assert sorted(map(int, neurons.split(", "))) == sorted(run.groups().boosting.tolist())
    assert np.isfinite(run.effects()["mean_act"]).all()


@pytest.mark.parametrize("tool", ["transformer_lens", "nnsight", "lm_eval"])
def test_the_block_of_a_tool_runs(tool, place, tmp_path):
    pytest.importorskip(tool, reason=f"{tool} isn't installed (tests/SKIPS.md)")
    for name in ("my-model", "runs"):
        (tmp_path / name).symlink_to(place / name)
    told = executed(code(tool), tmp_path)
    numbers = re.findall(r"\d\.\d+(?:e-\d+)?", told)
    assert numbers, told
    assert tool == "lm_eval" or float(numbers[-1]) > 1e-4, "the group changes nothing, so the case shows nothing"
