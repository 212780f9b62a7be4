"""How much of an image a tokenizer keeps: what no model of its tokens can do better."""

import math
from typing import Any

import torch
from torchmetrics.image import PeakSignalNoiseRatio

from dd2_lightning.data.images import ImageData
from dd2_lightning.metrics.features import FeatureNetwork
from dd2_lightning.metrics.frechet import FeatureGaussian, frechet_distance
from dd2_lightning.models.codebook_teacher import CodebookTeacher


@torch.no_grad()
def measure_reconstruction(
    teacher: CodebookTeacher, network: FeatureNetwork, data: ImageData, batch_size: int = 500
) -> dict[str, Any]:
    """Measure the tokenizer alone.

    Returns:
        ``psnr``: peak signal-to-noise ratio in dB, the mean over held-out images; None if all are perfect.
        ``frechet``: squared distance of the features of all images and of their reconstructions.
        ``images``: number of all images.
    """
    data.setup()
    device, everything = teacher.codebook.device, data.everything()
    psnr = PeakSignalNoiseRatio(data_range=(0.0, 1.0), dim=(1, 2, 3)).to(device)
    fits = [FeatureGaussian(network.width).to(device) for _ in range(2)]
    for rows in torch.arange(everything.size).split(batch_size):
        images = everything.pixels(rows).to(device)
        for fit, shown in zip(fits, (images, teacher.decode(teacher.encode(images))), strict=True):
            fit.update(network.features(shown))
    for rows in torch.arange(data.held_out.size).split(batch_size):
        images = data.held_out.pixels(rows).to(device)
        psnr.update(teacher.decode(teacher.encode(images)), images)
    ratio = psnr.compute().item()
    return {
        "psnr": ratio if math.isfinite(ratio) else None,
        "frechet": frechet_distance(*(fit.compute() for fit in fits)),
        "images": everything.size,
    }
