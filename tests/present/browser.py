"""A headless Chromium, reports opened in it with the network off, and what a page did there.

Tests that use it are skipped, loudly, where there is no Chromium with its driver (tests/SKIPS.md).
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rareneuron.present.report import write_report
from rareneuron.runs.files import read_table, write_table
from rareneuron.runs.run import Run
from tests.present.explorer_run import add_details

MakeRun = Callable[..., Run]
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
ABOUT_BLANK = ("about:", "data:,", "chrome://")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One headless Chromium, in which no name resolves."""
    if BROWSER is None or DRIVER is None:
        pytest.skip("needs Debian's chromium and chromium-driver (tests/SKIPS.md)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (tests/SKIPS.md)")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(DRIVER, env={**os.environ, "SE_OFFLINE": "true"})
    driver = webdriver.Chrome(options, service)
    try:
        driver.set_page_load_timeout(60)
        yield driver
    finally:
        driver.quit()


class Page:
    """A report in the browser, and what it did there."""

    def __init__(self, driver: Any, path: Path, width: int = 1440, scheme: str = "light") -> None:
        self.driver, self.path = driver, path
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})
        for kind in ("browser", "performance"):
            driver.get_log(kind)  # what came before is none of ours
        driver.get(path.as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        """A piece of JavaScript in the page."""
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def column(self, number: int) -> list[str]:
        """The cells of the table's page."""
        return self.run(
            "return [...document.querySelectorAll(`#neuron-rows tr > :nth-child(${arguments[0]})`)]"
            ".map((cell) => cell.textContent)",
            number,
        )

    def click(self, selector: str) -> None:
        self.run("document.querySelector(arguments[0]).click()", selector)

    def typed(self, selector: str, value: str) -> None:
        """A value put into a control as a hand would."""
        self.run(
            "const e = document.querySelector(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event('input', { bubbles: true }))",
            selector,
            value,
        )

    def complaints(self) -> list[str]:
        """What the console said, and every request but that for the file itself."""
        said = [entry["message"] for entry in self.driver.get_log("browser")]
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                if url.split("#")[0] != self.path.as_uri() and not url.startswith(ABOUT_BLANK):
                    said.append(f"request: {url}")
        return said


@pytest.fixture
def opened(chromium: Any, make_run: MakeRun, without_ink: None) -> Callable[..., Page]:
    """A made-up run's report, opened; what it is asked for says which run."""

    def build(
        *, width: int = 1440, scheme: str = "light", details: dict[str, Any] | None = None, **changes: Any
    ) -> Page:
        run = make_run(**{"steps": (0, 8, 512)} | changes)
        for i, step in enumerate(run.steps[:-1]):  # made up with the same effects at every step, in another order
            path = run.path / "steps" / str(step) / "effects.parquet"
            table = read_table(path)
            write_table(path, table.assign(abs_delta_loss=table["abs_delta_loss"] ** (1.2 + 0.1 * i)))
        if run.steps and "unavailable" not in changes:
            path = run.path / "steps" / ("final" if run.steps[-1] is None else str(run.steps[-1])) / "effects.parquet"
            table = read_table(path)
            role = np.where(table["delta_loss"] > 0, "boosting", "suppressing")
            write_table(path, table.assign(role=np.where(table["rank"] <= 12, role, "other")))
        if details is not None:
            add_details(run, **details)
        return Page(chromium, write_report(run), width, scheme)

    return build
