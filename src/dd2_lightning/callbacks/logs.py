"""TensorBoard logs that describe themselves; a killed and resumed run continues them without gaps or repetitions."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DataType
from tensorboard.plugins.image.metadata import create_summary_metadata as image_metadata
from tensorboard.plugins.scalar.metadata import create_summary_metadata as scalar_metadata
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter, summary

from dd2_lightning.callbacks.tags import describe
from dd2_lightning.callbacks.watched import watched
from dd2_lightning.images.files import to_bytes


class StageLogger(TensorBoardLogger):
    """TensorBoard logs in the directory of a run itself, so that they have its name, each tag with its description."""

    def __init__(self, root: str | Path):
        super().__init__(root, name="", version="", default_hp_metric=False)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = []
        for tag, value in metrics.items():
            if tag == "epoch":  # Lightning's; runs are counted in iterations
                continue
            if is_new(self.experiment, tag):
                tensor = TensorProto(dtype=DataType.DT_FLOAT, float_val=[float(value)])
                values.append(Summary.Value(tag=tag, tensor=tensor, metadata=scalar_metadata(tag, describe(tag))))
            values.append(Summary.Value(tag=tag, simple_value=float(value)))
        self.experiment.file_writer.add_summary(Summary(value=values), step)

    @rank_zero_only
    def save(self) -> None:
        """Flush; settings are in ``config.yaml``, Lightning's copy of them in ``hparams.yaml`` is not written."""
        self.experiment.flush()


def last_iteration(trainer: pl.Trainer) -> int:
    """Number of the iteration that was just finished, from 0: the x-axis of everything that is logged."""
    return max(trainer.global_step - 1, 0)


def writer_of(trainer: pl.Trainer) -> SummaryWriter | None:
    """The TensorBoard writer, in the process that has one."""
    logger = trainer.logger
    return logger.experiment if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero else None


def log_image(writer: SummaryWriter, tag: str, image: Tensor, step: int) -> None:
    """Log an image (1 or 3, H, W), of [0, 1] or bytes, with its description."""
    values = list(summary.image(tag, to_bytes(image).cpu(), dataformats="CHW").value)
    if is_new(writer, tag):
        png, size = values[0].image, TensorShapeProto(dim=[TensorShapeProto.Dim(size=3)])
        parts = [str(png.width).encode(), str(png.height).encode(), png.encoded_image_string]
        tensor = TensorProto(dtype=DataType.DT_STRING, tensor_shape=size, string_val=parts)
        values.insert(0, Summary.Value(tag=tag, tensor=tensor, metadata=image_metadata(tag, describe(tag))))
    writer._get_file_writer().add_summary(Summary(value=values), step)


def is_new(writer: SummaryWriter, tag: str) -> bool:
    """Whether a file has nothing of a tag yet, so that its description has to come first.

    TensorBoard's server reads descriptions of tensors only. So the first value is written as one, and again, for the
    same iteration, as a number or an image, which is what event files are read for elsewhere.
    """
    tags: set[str] = vars(writer).setdefault("described_tags", set())
    new = tag not in tags
    tags.add(tag)
    return new


def wait_for_own_second(directory: Path) -> None:
    """Wait until no log in a directory was begun in the present second.

    TensorBoard reads files in the order of their names, which begin with the second in which they were made; those of
    a run that is killed and resumed within one second would be read in any order.
    """
    while any(directory.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
        time.sleep(0.05)


class ContinuedLogs(pl.Callback):
    """Open the logs of a run: hide what earlier files show from the first iteration on, say what the run is.

    All logs are written before a checkpoint is. Settings and validated quantities go to TensorBoard's HParams page.
    """

    def __init__(self) -> None:
        self._compared = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        writer = writer_of(trainer)
        if writer is None or writer.file_writer is None:
            return
        start = Event(session_log=SessionLog(status=SessionLog.START))
        writer.file_writer.add_event(start, trainer.global_step)
        writer.add_text("run", introduction(watched(pl_module).name, dict(pl_module.hparams)), trainer.global_step)
        config = Path(writer.log_dir) / "config.yaml"  # the trainer would ask all processes for its directory
        if config.is_file():
            lines = [line for line in config.read_text().splitlines() if not line.endswith(": null")]
            writer.add_text("config", "\n".join(["```yaml", *lines, "```"]), trainer.global_step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        writer = writer_of(trainer)
        if writer is None or self._compared or trainer.sanity_checking:
            return
        self._compared = True
        measured = {name: 0.0 for name in trainer.logged_metrics if name.startswith("val/")}
        for part in summary.hparams(dict(flat(dict(pl_module.hparams))), measured):
            writer._get_file_writer().add_summary(part)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if (writer := writer_of(trainer)) is not None:
            writer.flush()


def introduction(stage: str, settings: dict[str, Any]) -> str:
    """What a run is and what its horizontal axis counts, in Markdown."""
    text = f"Stage **{stage}**. The horizontal axis is iterations of this stage, from 0."
    source = settings.get("init_from")
    if source and (config := Path(source) / "config.json").is_file():
        origin = json.loads(config.read_text())
        before, stage = origin["iterations"], origin["stage"]
        text += f" It starts from `{source}`: the {before:,} iterations of **{stage}** are not counted."
    return text


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted names and what the HParams page can show."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str | bool | int | float) else str(value)
