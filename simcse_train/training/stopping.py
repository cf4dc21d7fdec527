"""Signals that stop a run: at once before training begins, at the end of the current step afterwards."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from simcse_train.errors import Interrupted

# Clusters send SIGUSR1 before they take a machine away. SIGHUP comes when the terminal is closed; `nohup` lets it be
# ignored, and then it stays so.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class StopRequests:
    """Handles signals inside the block.

    Before training has `begun`, a signal raises `Interrupted`. Afterwards the first signal is stored in
    `signal_number`, and only a second SIGINT raises.
    """

    def __init__(self) -> None:
        self.begun = False
        self.signal_number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            handled = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._handle) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None stands for a handler that was not set from Python, which nobody can set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.begun or (self.signal_number is not None and number == signal.SIGINT):
            raise Interrupted(number)
        self.signal_number = self.signal_number or number
