"""Everything that a study leaves for readers: the report, its figures and its tables, written in one go."""

from dataclasses import dataclass
from pathlib import Path

from rareneuron.present.figures import write_figures
from rareneuron.present.findings import findings
from rareneuron.present.report import write_report
from rareneuron.present.tables import write_tables
from rareneuron.runs.run import Run


@dataclass(frozen=True, kw_only=True)
class Published:
    """Where the report, the figures and the tables of a run lie."""

    report: Path
    figures: tuple[Path, ...] = ()
    tables: tuple[Path, ...] = ()

    @property
    def paths(self) -> dict[str, str | list[str]]:
        """The same as text, for JSON."""
        return {
            "report": str(self.report),
            "figures": [str(path) for path in self.figures],
            "tables": [str(path) for path in self.tables],
        }


def publish(run: Run) -> Published:
    """Write RUN/report.html, RUN/figures/*.svg and RUN/tables/*.csv, each file whole or not at all."""
    found = findings(run)
    return Published(
        report=write_report(run, found),
        figures=tuple(write_figures(run, found.sheets)),
        tables=tuple(write_tables(run)),
    )
