"""What a person sees on a terminal while a migration goes on."""

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from imgnode.command_line import show_size
from imgproxy.convergence import RoundFigures
from imgproxy.display import Display, print_lines, round_line
from imgproxy.summary import Summary


class RateColumn(ProgressColumn):
    """Bytes per second, in the units of the bytes beside it; nothing while there is none."""

    def render(self, task: Task) -> Text:
        """Its text."""
        rate = task.finished_speed or task.speed
        return Text(f"{show_size(rate)}/s" if rate else "", style="progress.data.speed")


class TerminalDisplay(Display):
    """A progress bar with bytes, rate and phase."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description:<12}"), BarColumn(), DownloadColumn(binary_units=True))
        self._console = Console(stderr=True)
        self._bar = Progress(*columns, RateColumn(), TimeElapsedColumn(), console=self._console)
        self._task = self._bar.add_task("", total=None)
        self._bar.start()

    def phase(self, text: str) -> None:
        self._bar.update(self._task, description=text)

    def progress(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=max(done, total))

    def round(self, figures: RoundFigures, predicted: float | None) -> None:
        self._console.print(round_line(figures, predicted), highlight=False)

    def summary(self, summary: Summary) -> None:
        self.close()
        print_lines(summary)

    def close(self) -> None:
        self._bar.stop()
