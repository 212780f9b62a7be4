"""Likelihood of token sequences under a teacher."""

from dataclasses import replace

import torch
from torch import Tensor

from dd2_lightning.models.codebook_teacher import CodebookTeacher, require_codebook
from dd2_lightning.models.teacher import check_labels
from dd2_lightning.sampling import Sampling


@torch.no_grad()
def sequence_nll(teacher: CodebookTeacher, indices: Tensor, labels: Tensor, sampling: Sampling | None = None) -> Tensor:
    """Negative log likelihood of sequences under the guided, untruncated teacher at temperature 1.

    Args:
        teacher: the model; it reads the codebook vectors of ``indices``, never an unsnapped token.
        indices: snapped sequences, (B, n).
        labels: (B,).
        sampling: guidance of the teacher, in the convention of its family; truncation and temperature are not used.

    Returns:
        Nats a sequence, (B,); infinite for an impossible one.

    Raises:
        TypeError: if ``indices`` are not integers (B, n), or the teacher has no codebook.
    """
    teacher = require_codebook(teacher)
    if indices.ndim != 2 or indices.is_floating_point():
        raise TypeError(f"indices must be integers (B, n), got {indices.dtype} {tuple(indices.shape)}; snap the tokens")
    check_labels(labels, teacher.num_classes)
    indices = indices.long()
    guided = replace(teacher.resolve_sampling(sampling), top_k=0, top_p=1.0, temperature=1.0)
    log_p = teacher.flow(indices, labels, guided).log_p
    return -log_p.gather(-1, indices[..., None])[..., 0].sum(-1)
