"""Callbacks: artifact, losses per position, sample grids, logs, checkpoints, signals, progress."""

from dd2_lightning.callbacks.checkpoint import AtomicCheckpointIO, IterationCheckpoint
from dd2_lightning.callbacks.clock import RunClock
from dd2_lightning.callbacks.export import ExportArtifact
from dd2_lightning.callbacks.grid import SampleGrid
from dd2_lightning.callbacks.interrupt import Interrupted, StopOnSignal
from dd2_lightning.callbacks.logs import ContinuedLogs, StageLogger
from dd2_lightning.callbacks.positions import PerPositionMonitor
from dd2_lightning.callbacks.progress import IterationProgressBar

__all__ = [
    "AtomicCheckpointIO",
    "ContinuedLogs",
    "ExportArtifact",
    "Interrupted",
    "IterationCheckpoint",
    "IterationProgressBar",
    "PerPositionMonitor",
    "RunClock",
    "SampleGrid",
    "StageLogger",
    "StopOnSignal",
]
