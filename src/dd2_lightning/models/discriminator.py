"""Score patches of images: real ones, or those drawn by a tokenizer's decoder (pix2pix, arXiv 1611.07004)."""

import torch.nn.functional as F
from torch import Tensor, nn

from dd2_lightning.models.convnets import group_norm


class PatchDiscriminator(nn.Module):
    """Images (B, channels, S, S) in [-1, 1] to scores of overlapping patches, (B, 1, h, h); real ones are positive.

    Its norms are over groups of channels, not over the batch, so that a score depends on its image alone. Channels, a
    multiple of 4, double from layer to layer, up to 8 times; ``layers`` of them halve the side.
    """

    def __init__(self, image_channels: int, side: int, width: int = 64, layers: int = 3):
        super().__init__()
        if side < 3 << layers:
            raise ValueError(f"model.discriminator.layers {layers} are too many for images of {side}x{side} pixels")
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        blocks: list[nn.Module] = [nn.Conv2d(image_channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for i in range(layers):
            convolution = nn.Conv2d(widths[i], widths[i + 1], 4, 2 if i + 1 < layers else 1, 1, bias=False)
            blocks += [convolution, group_norm(widths[i + 1]), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*blocks, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for module in self.net:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images).float()  # losses are in float32 whatever the precision


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Loss of a discriminator with these scores, (): 0 where real ones are above 1 and others below -1."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
