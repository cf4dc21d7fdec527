"""Signals that ask a run to stop: at once before training begins, at the next step boundary from then on."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # clusters send SIGUSR1 before they take a node


class Interrupted(KeyboardInterrupt):
    """A signal stopped the program at once."""

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal_number = signal_number


class StopRequests:
    """Within the block a signal interrupts at once; when training has `begun` the first is noted and only a second SIGINT interrupts."""

    def __init__(self) -> None:
        self.begun = False
        self.signal_number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.begun or (self.signal_number is not None and number == signal.SIGINT):
            raise Interrupted(number)
        self.signal_number = self.signal_number or number
