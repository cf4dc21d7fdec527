"""The exceptions of the package; the command line turns each into one paragraph and an exit status."""

from __future__ import annotations

from pathlib import Path

from simcse_train.launcher import resuming


class InputError(Exception):
    """A file, a setting or an argument cannot be used; the message names it and says what to do (exit status 2)."""


class SaveError(Exception):
    """A file or folder could not be written; what was there before is unchanged (exit status 1)."""


class TrainingError(Exception):
    """The run failed after it had started; checkpoints that were saved before are intact (exit status 1)."""


class ProcessLost(TrainingError):
    """Another process died (exit status 1).

    `is_first_left` is true on the first surviving process of each machine, which prints the message.
    """

    def __init__(self, message: str, *, is_first_left: bool) -> None:
        super().__init__(message)
        self.is_first_left = is_first_left


class Stopped(Exception):
    """A signal stopped a command, or a run after its state was saved (exit status 128 plus the signal's number)."""

    def __init__(self, signal_number: int, run: Path | None = None) -> None:
        super().__init__("Stopped." if run is None else f"Stopped. To continue: {resuming(run)}")
        self.signal_number = signal_number


class Interrupted(KeyboardInterrupt):
    """A signal ended the program at once, before training began (exit status 128 plus the signal's number)."""

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal_number = signal_number


def one_line(error: BaseException) -> str:
    """Return what an exception of a library says in one line, of at most 300 characters."""
    return " ".join(str(error).split())[:300]
