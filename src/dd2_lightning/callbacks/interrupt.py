"""Stop between two iterations when SIGINT or SIGTERM asks for it, so that a run can be resumed."""

import signal
import sys
from types import FrameType
from typing import Any

import lightning.pytorch as pl


class Interrupted(BaseException):
    """Training was stopped by a signal, in all processes before the same iteration."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class StopOnSignal(pl.Callback):
    """Raise :class:`Interrupted` before the next iteration after SIGINT or SIGTERM; a second one ends at once.

    The processes of a run agree on the iteration, so that none is left waiting and the checkpoint is of one iteration.
    While nothing is trained the signals do what they always do.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self._received = 0
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._received = 0
        self._previous = {signum: signal.signal(signum, self._note) for signum in self.SIGNALS}

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._received:
            self._restore()
            signal.raise_signal(signum)
            return
        self._received = signum
        if signum == signal.SIGINT:
            print("\ndd2: stopping after this iteration (again: at once)", file=sys.stderr, flush=True)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.strategy.reduce_boolean_decision(self._received > 0, all=False):
            signum = self._received or signal.SIGTERM  # another process got it
            raise Interrupted(signum)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}
