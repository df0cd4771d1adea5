"""Context of every process, that of the command line and those of a launcher."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from experiments.config.messages import as_notes, of_disk


class Terminated(KeyboardInterrupt):
    """SIGTERM, as of `docker stop`, `timeout` and clusters that preempt: stops what Ctrl-C does."""


@contextmanager
def process() -> Iterator[None]:
    """Notes as lines, output in whatever encoding there is, and SIGTERM as `Terminated`.

    A handler of SIGTERM that is there already, as submitit's, stays.

    Raises:
        SystemExit: with a line, for what a disk refused.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's cannot
            stream.reconfigure(errors="replace")  # a character that the terminal lacks is no reason to lose a table
    main_thread = threading.current_thread() is threading.main_thread()
    ours = main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        with as_notes():
            yield
    except OSError as error:
        if line := of_disk(error):
            raise SystemExit(f"error: {line}") from None
        raise
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: Any) -> None:
    raise Terminated
