"""Several images as one."""

from torch import Tensor


def mosaic(images: Tensor, columns: int, gap: int = 1, background: float = 1.0) -> Tensor:
    """Arrange images (B, channels, H, W) in rows: one image, (channels, height, width).

    Args:
        images: the images.
        columns: images a row; the last row is filled up with background.
        gap: pixels between images.
        background: value between them.
    """
    if images.ndim != 4 or not len(images):
        raise ValueError(f"a grid needs images (B, channels, H, W), got {tuple(images.shape)}")
    if columns < 1:
        raise ValueError(f"a grid needs at least 1 column, got {columns}")
    B, channels, H, W = images.shape
    count = -(-B // columns)
    sheet = images.new_full((count * columns, channels, H + gap, W + gap), background)
    sheet[:B, :, :H, :W] = images
    sheet = sheet.unflatten(0, (count, columns)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    return sheet[:, : sheet.shape[1] - gap, : sheet.shape[2] - gap]
