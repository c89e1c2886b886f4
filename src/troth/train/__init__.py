"""Training: the loop, its steps, checkpoints, logs."""

from __future__ import annotations

from troth.train.average import AverageConfig, AveragedWeights, has_average, load_average
from troth.train.checkpoint import Checkpoints, Position, load, load_model, read_position
from troth.train.config import TrainConfig
from troth.train.detection import UnpairedConfig
from troth.train.dry_run import DryRunReport, PartSize, dry_run
from troth.train.episodes import Episodes, EpisodesConfig
from troth.train.external_teacher import (
    ExternalFeatures,
    ExternalTeacherConfig,
    FileTeacher,
    ImageTeacher,
    TaughtData,
    TextTeacher,
)
from troth.train.judging import JudgeConfig, JudgedPairs, JudgedStream
from troth.train.loop import LEDGER_NAME, Evaluate, Trainer, TrainResult
from troth.train.mismatch_estimates import JUDGEMENT_NAME, MismatchEstimates
from troth.train.momentum_teacher import MomentumTeacher
from troth.train.optimizer import OptimizerConfig, ScheduleConfig
from troth.train.runlog import LOG_NAME, RunLog, read_log
from troth.train.step import StepReport, TrainStep
from troth.train.teacher import (
    CachedTeacher,
    InputTeacher,
    OnlineTeacher,
    TaughtRun,
    TaughtStream,
    Teacher,
    TeacherConfig,
)
from troth.train.unpaired import UnpairedTrainer

__all__ = [
    "JUDGEMENT_NAME",
    "LEDGER_NAME",
    "LOG_NAME",
    "AverageConfig",
    "AveragedWeights",
    "CachedTeacher",
    "Checkpoints",
    "DryRunReport",
    "Episodes",
    "EpisodesConfig",
    "Evaluate",
    "ExternalFeatures",
    "ExternalTeacherConfig",
    "FileTeacher",
    "ImageTeacher",
    "InputTeacher",
    "JudgeConfig",
    "JudgedPairs",
    "JudgedStream",
    "MismatchEstimates",
    "MomentumTeacher",
    "OnlineTeacher",
    "OptimizerConfig",
    "PartSize",
    "Position",
    "RunLog",
    "ScheduleConfig",
    "StepReport",
    "TaughtData",
    "TaughtRun",
    "TaughtStream",
    "Teacher",
    "TeacherConfig",
    "TextTeacher",
    "TrainConfig",
    "TrainResult",
    "TrainStep",
    "Trainer",
    "UnpairedConfig",
    "UnpairedTrainer",
    "dry_run",
    "has_average",
    "load",
    "load_average",
    "load_model",
    "read_log",
    "read_position",
]
