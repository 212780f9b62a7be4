"""The stages as LightningModules: which network, which loss, which optimizer."""

from dd2_lightning.stages.adapt import ContinuousInput
from dd2_lightning.stages.align import PerformanceAlign
from dd2_lightning.stages.base import Stage
from dd2_lightning.stages.csd import CSDDistill
from dd2_lightning.stages.dd1 import DD1Distill
from dd2_lightning.stages.frechet import FrechetAlign
from dd2_lightning.stages.init import ARDiffusionInit
from dd2_lightning.stages.teacher import TeacherTraining

__all__ = [
    "ARDiffusionInit",
    "CSDDistill",
    "ContinuousInput",
    "DD1Distill",
    "FrechetAlign",
    "PerformanceAlign",
    "Stage",
    "TeacherTraining",
]
