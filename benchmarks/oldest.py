"""Write the lowest versions that pyproject.toml allows as requirements, for `make test-oldest`.

Only direct dependencies are pinned, and those of the extras that tests need; pip chooses the rest. A dependency without
a lower bound is left to pip.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = ("fast", "gguf", "hub")  # whose features fast tests reach
TOOLS = ("beartype", "hypothesis", "nbformat", "psutil", "pytest", "pytest-timeout", "pyyaml")
LOWEST = re.compile(r"^([A-Za-z0-9._-]+)>=([0-9][0-9A-Za-z.]*)")


def lowest(requirement: str) -> str:
    """A requirement at its lowest version; as it is, where it has none."""
    match = LOWEST.match(requirement)
    return f"{match[1]}=={match[2]}" if match else requirement


def oldest(project: dict) -> list[str]:
    """All that tests need: the package's own dependencies at their lowest, and the tools of tests as they are."""
    extras = project["optional-dependencies"]
    own = [*project["dependencies"], *(name for extra in EXTRAS for name in extras[extra])]
    tools = [r for r in extras["dev"] if re.split("[<>=\\[]", r)[0] in TOOLS]
    return [lowest(requirement) for requirement in own] + tools


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    target.write_text("\n".join(oldest(project)) + "\n", encoding="utf-8")
    print(target.read_text(encoding="utf-8"))
