"""What a benchmark found, for people and for programs."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.benchmarks.trial import Series

MIB = 1 << 20


@dataclass(frozen=True)
class Target:
    """A figure that is to be reached: `value` is to be at most, or at least, the `limit`."""

    what: str
    value: float
    limit: float
    at_most: bool = True

    @property
    def reached(self) -> bool:
        """Whether it is."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def line(self) -> str:
        """For people."""
        colour, verdict = ("green", "reached") if self.reached else ("red", "missed")
        bound = "at most" if self.at_most else "at least"
        return f"[{colour}]{verdict:>8}[/]  {self.what}: [bold]{self.value:.3g}[/] ({bound} {self.limit:g})"


@dataclass
class Report:
    """One benchmark's result: a table, targets, raw numbers."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)

    def show(self, console: Console) -> None:
        """Print it."""
        table = Table(title=self.title, title_justify="left", title_style="bold")
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)
        for target in self.targets:
            console.print(target.line())
        for note in self.notes:
            console.print(f"[dim]{note}[/]")
        console.print()

    def as_dict(self) -> dict[str, Any]:
        """For the JSON file."""
        targets = [{**vars(target), "reached": target.reached} for target in self.targets]
        return {"title": self.title, "targets": targets, "notes": self.notes, **self.raw}


COMPARED = ("", "dump start to running", "least", "most", "frozen", "MiB/s", "ratio")


def compared(title: str, series: Sequence[Series], reference: str) -> Report:
    """A table of contenders; ratios are to the one named `reference`."""
    base = next(one.seconds for one in series if one.name == reference)
    report = Report(title, COMPARED, raw={"series": [one.as_dict() for one in series]})
    for one in series:
        every = [trial.seconds for trial in one.measurements]
        times = (one.seconds, min(every), max(every), one.frozen)
        rates = (f"{one.rate / MIB:.0f}", f"{one.seconds / base:.2f}")
        report.rows.append((one.name, *(f"{seconds:.3f} s" for seconds in times), *rates))
    return report


def write_json(path: Path, reports: Mapping[str, Report], criu: str) -> None:
    """All raw numbers, with what they were measured on."""
    machine = {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version(), "criu": criu}
    results = {name: report.as_dict() for name, report in reports.items()}
    path.write_text(json.dumps({"machine": machine, "benchmarks": results}, indent=2) + "\n")
