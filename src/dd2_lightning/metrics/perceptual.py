"""How far images look apart: LPIPS (arXiv 1801.03924), of the package of its authors."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dd2_lightning.errors import ArtifactError, DD2Error


def lpips_distance(weights: str | Path) -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS on VGG features, of images (B, 1 or 3, H, W) in [0, 1]: (B,), differentiable; computed where these are.

    Its ``weights`` are the state dict of the whole metric, as ``torch.save(lpips.LPIPS(net="vgg").state_dict(), FILE)``
    writes it on a machine that may download; nothing is downloaded here.
    """
    try:
        from lpips import LPIPS
    except ImportError as error:
        raise DD2Error("LPIPS needs the package of its authors: pip install 'dd2-lightning[lpips]'") from error
    metric = LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
    try:
        metric.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except Exception as error:  # whatever a file that is something else may raise
        raise ArtifactError(f"model.lpips_weights: {weights} is no state dict of LPIPS with VGG: {error}") from error
    metric.requires_grad_(False).eval()

    def distance(one: Tensor, other: Tensor) -> Tensor:
        one, other = (2 * image.float().expand(-1, 3, -1, -1) - 1 for image in (one, other))
        return metric.to(one.device)(one, other).flatten()

    return distance
