"""The tokenizer alone: real images against what it makes of them."""

from typing import Any

import torch
from torch import Tensor

from dd2_lightning.data.images import ImageData
from dd2_lightning.metrics.features import FeatureNetwork
from dd2_lightning.metrics.frechet import FeatureGaussian, frechet_distance
from dd2_lightning.models.codebook_teacher import CodebookTeacher
from dd2_lightning.progress import tracked


@torch.no_grad()
def measure_tokenizer(
    teacher: CodebookTeacher, data: ImageData, network: FeatureNetwork, batch_size: int = 500
) -> dict[str, Any]:
    """Measure how well a tokenizer brings images back.

    Returns:
        ``psnr``, the mean over held-out images in dB, of which there are ``held_out``, and ``frechet``, the distance
        between all ``images`` and their reconstructions.
    """
    data.setup()
    device, everything = teacher.codebook.device, data.everything()
    fits = [FeatureGaussian(network.width).to(device) for _ in range(2)]
    batches = torch.arange(everything.size).split(batch_size)
    for rows in tracked(batches, "evaluate: tokenizer", everything.size, size=batch_size):
        images = everything.pixels(rows).to(device)
        for fit, shown in zip(fits, (images, reconstructed(teacher, images)), strict=True):
            fit.update(network.features(shown))
    ratios = [
        psnr(reconstructed(teacher, images), images)
        for rows in torch.arange(data.held_out.size).split(batch_size)
        for images in [data.held_out.pixels(rows).to(device)]
    ]
    return {
        "psnr": torch.cat(ratios).mean().item(),
        "frechet": frechet_distance(*(fit.compute() for fit in fits)),
        "images": everything.size,
        "held_out": data.held_out.size,
    }


def reconstructed(teacher: CodebookTeacher, images: Tensor) -> Tensor:
    """Images (B, channels, H, W) through the tokenizer and back."""
    return teacher.decode(teacher.embed(teacher.encode(images))).float()


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of images in [0, 1], (B,), in dB; that of equal images is 100."""
    return -10 * (images - others).square().flatten(1).mean(1).clamp(min=1e-10).log10()
