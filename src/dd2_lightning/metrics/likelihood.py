"""Likelihood of token sequences under a teacher."""

from dataclasses import replace

import torch
from torch import Tensor

from dd2_lightning.models.codebook_teacher import CodebookTeacher, require_codebook
from dd2_lightning.models.teacher import check_labels
from dd2_lightning.sampling import Sampling


@torch.no_grad()
def sequence_nll(teacher: CodebookTeacher, indices: Tensor, labels: Tensor, sampling: Sampling | None = None) -> Tensor:
    """Negative log likelihood of snapped sequences, indices (B, n), of classes (B,): nats a sequence, (B,).

    It is that of the teacher with the guidance of ``sampling``, without truncation, at temperature 1; infinite for an
    impossible sequence. A ``TypeError`` refuses tokens that are no indices.
    """
    teacher = require_codebook(teacher)
    if indices.ndim != 2 or indices.is_floating_point():
        raise TypeError(f"indices must be integers (B, n), got {indices.dtype} {tuple(indices.shape)}; snap the tokens")
    check_labels(labels, teacher.num_classes)
    indices = indices.long()
    guided = replace(teacher.resolve_sampling(sampling), top_k=0, top_p=1.0, temperature=1.0)
    log_p = teacher.flow(indices, labels, guided).log_p
    return -log_p.gather(-1, indices[..., None])[..., 0].sum(-1)
