"""Several images as one."""

from einops import rearrange
from torch import Tensor


def mosaic(images: Tensor, columns: int, gap: int = 1, background: float = 1.0) -> Tensor:
    """Arrange images (B, channels, H, W) in rows of ``columns``: one image, (channels, height, width).

    Pixels between images, ``gap`` wide, and the rest of the last row have the value ``background``.
    """
    if images.ndim != 4 or not len(images):
        raise ValueError(f"a grid needs images (B, channels, H, W), got {tuple(images.shape)}")
    if columns < 1:
        raise ValueError(f"a grid needs at least 1 column, got {columns}")
    B, channels, H, W = images.shape
    sheet = images.new_full((-(-B // columns) * columns, channels, H + gap, W + gap), background)
    sheet[:B, :, :H, :W] = images
    sheet = rearrange(sheet, "(r c) ch h w -> ch (r h) (c w)", c=columns)
    return sheet[:, : sheet.shape[1] - gap, : sheet.shape[2] - gap]
