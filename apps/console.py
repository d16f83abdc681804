"""How every app talks: progress to stderr, tables to stdout, one JSON line at the end, errors in one sentence, Ctrl-C with the way to go on.

Exit codes: 0 done, 1 a job that failed, 2 a user's mistake, 130 stopped by Ctrl-C, 143 stopped by SIGTERM (a cluster's pre-emption).
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

LINE_EVERY_S = 15.0  # between plain progress lines where there is no terminal


class Stopped(Exception):
    """The app was stopped; the text says how to go on (empty: another rank says it). `code` is 128 + the signal; None takes that of the interrupt behind it."""

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


class Terminated(KeyboardInterrupt):
    """SIGTERM, outside a loop that stops between two steps."""


class Failed(Exception):
    """A job that could not be finished though nothing was asked wrongly; the text says why and how to go on."""


def run(main: Callable[[Sequence[str]], Mapping[str, object] | None]) -> NoReturn:
    """Call `main(arguments)`, print the summary that it returns as one JSON line, and exit with the right code."""
    signal.signal(signal.SIGTERM, _interrupt)  # torchrun and schedulers stop a job so
    try:
        summary = main(sys.argv[1:])
    except (ValueError, OSError) as error:
        _leave(2, f"error: {error}")
    except Failed as error:
        _leave(1, f"error: {error}")
    except Stopped as stopped:
        _leave(stopped.code or _code(stopped.__context__), f"stopped; {stopped}" if str(stopped) else "")
    except KeyboardInterrupt as interrupt:
        _leave(_code(interrupt), "stopped; the same command goes on where it was interrupted")
    if summary is not None:
        print(json.dumps(_plain(summary), allow_nan=False), flush=True)
    sys.exit(0)


def paragraphs(text: str | None) -> str:
    """A module's docstring for --help, each command on a line of its own."""
    return (text or "").replace("\nuv run", "\n\nuv run")


def say(text: str) -> None:
    """A line for the reader, on stderr."""
    print(text, file=sys.stderr, flush=True)


class Interrupts:
    """Turns the first Ctrl-C or SIGTERM into a number that a loop reads between two steps; a second one interrupts at once."""

    def __init__(self) -> None:
        self.number = 0  # of the signal; 0 before one came
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self.number:
            _interrupt(number, frame)
        self.number = number

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self.number != 0


Report = Callable[[int, str], None]
"""`report(done, text)`: how far a piece of work is."""


@contextmanager
def progress(what: str, total: int, *, quiet: bool = False) -> Iterator[Report]:
    """A progress bar with rate and time left on a terminal, else a line every 15 s and one at the end. Yields `report(done, text)`; `quiet` shows nothing."""
    if quiet:
        yield lambda done, text="": None
    elif sys.stderr.isatty():
        with _bar(what, total) as report:
            yield report
    else:
        began = last = time.monotonic()
        first: int | None = None  # what was done when the first report came: a resumed job begins there
        state = {"done": 0, "text": ""}

        def report(done: int, text: str = "") -> None:
            nonlocal last, first
            first = done if first is None else first
            state.update(done=done, text=text)
            if time.monotonic() - last >= LINE_EVERY_S:
                last = time.monotonic()
                say(f"{what}: {done}/{total} {text}".rstrip() + pace(done - first, total - done, last - began))

        yield report
        say(f"{what}: {state['done']}/{total} {state['text']}".rstrip() + f" ({time.monotonic() - began:.0f} s)")


def pace(done: int, left: int, seconds: float) -> str:
    """`, 3.2/s, 0:01:05 left` for what was done in some seconds; empty where nothing was."""
    if done <= 0 or seconds <= 0:
        return ""
    return f", {done / seconds:.3g}/s, {timedelta(seconds=round(left * seconds / done))} left"


@contextmanager
def _bar(what: str, total: int) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text("" if task.speed is None else f"{task.speed:.3g}/s")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, text="")
        yield lambda done, text="": bar.update(task, completed=done, text=text)


def command(app: str, *arguments: object) -> str:
    """The shell command that runs an app of this folder, for messages."""
    return " ".join(["uv run", f"apps/{app}.py", *map(str, arguments)])


def _interrupt(number: int, frame: object) -> None:
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _code(interrupt: BaseException | None) -> int:
    return 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)


def _leave(code: int, text: str) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is leaving; torchrun asks the survivors of a lost rank once more
    if text:
        say(text)
    sys.exit(code)


def _plain(value: object) -> object:
    """What JSON can hold: numbers that are not finite become null, paths text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
