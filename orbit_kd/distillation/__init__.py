"""Knowledge distillation: losses, the Distiller, the teacher cache, resumable training."""

from orbit_kd.distillation.cache import TeacherCache, cache_teacher
from orbit_kd.distillation.dense_losses import ChannelWiseDistillation, ChannelWiseFeatures, DetectionDistillation
from orbit_kd.distillation.distiller import Distiller
from orbit_kd.distillation.dst import DST
from orbit_kd.distillation.feature_losses import (
    AttentionTransfer,
    FeatureHints,
    RelationalDistillation,
    SimilarityPreserving,
)
from orbit_kd.distillation.losses import DistillationLoss, distillation_losses, get_loss
from orbit_kd.distillation.output_losses import (
    DecoupledDistillation,
    LogitsDistillation,
    MAEDistillation,
    MSEDistillation,
)
from orbit_kd.distillation.schedules import Piecewise
from orbit_kd.distillation.teachers import Teachers
from orbit_kd.training.monitor import StopOnNonFinite
from orbit_kd.training.resume import Resume

__all__ = [
    "DST",
    "AttentionTransfer",
    "ChannelWiseDistillation",
    "ChannelWiseFeatures",
    "DecoupledDistillation",
    "DetectionDistillation",
    "DistillationLoss",
    "Distiller",
    "FeatureHints",
    "LogitsDistillation",
    "MAEDistillation",
    "MSEDistillation",
    "Piecewise",
    "RelationalDistillation",
    "Resume",
    "SimilarityPreserving",
    "StopOnNonFinite",
    "TeacherCache",
    "Teachers",
    "cache_teacher",
    "distillation_losses",
    "get_loss",
]
