"""The workflow files are sound YAML, run only targets of the Makefile, and use official actions at a major version."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ON = True  # YAML 1.1 reads the key `on` as a boolean


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps_of(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def faults(workflow):
    """What a runner would stumble over, or what we don't want to trust."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for step in steps_of(workflow):
        for command in step.get("run", "").splitlines():
            words = command.split()
            if len(words) != 2 or words[0] != "make" or words[1] not in targets:
                yield f"`{command}` is not a target of the Makefile"
        if "uses" in step and not re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]):
            yield f"{step['uses']} is not an official action at a major version"
        if not {"run", "uses"} & set(step):
            yield f"{step} does nothing"


def test_there_is_one_workflow_for_changes_and_one_for_releases():
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "release.yml"]
    changes, releases = map(read, WORKFLOWS)
    assert set(changes[ON]) == {"push", "pull_request"}
    assert releases[ON] == {"push": {"tags": ["v*"]}, "release": {"types": ["published"]}}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_runs_what_exists(path):
    assert list(faults(read(path))) == []


@pytest.mark.parametrize(
    "step",
    [{"run": "make no-such-target"}, {"run": "pip install rareneuron"}, {"uses": "someone/else@v1"}, {"name": "x"}],
)
def test_the_check_sees_a_wrong_step(step):
    assert len(list(faults({"jobs": {"a": {"steps": [{"run": "make test"}, step]}}}))) == 1


def test_changes_are_linted_and_tested_on_every_version_that_is_promised():
    jobs = read(WORKFLOWS[0])["jobs"]
    assert {step["run"] for step in steps_of({"jobs": jobs}) if "run" in step} == {
        "make lint",
        "make fast-test",
        "make test",
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    promised = {re.search(r"3\.\d+", line)[0] for line in project["classifiers"] if "Python :: 3." in line}
    assert set(jobs["fast"]["strategy"]["matrix"]["python"]) == promised


def test_a_release_builds_and_tries_the_wheel():
    dry = subprocess.run(["make", "--dry-run", "check-dist"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "-m build" in dry.stdout
    assert "rareneuron study --dry-run" in dry.stdout
