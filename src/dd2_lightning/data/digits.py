"""The 1,797 handwritten digits that scikit-learn brings along."""

import torch
from torch import Tensor

from dd2_lightning.data.images import ImageSet, PackagedData
from dd2_lightning.errors import DD2Error


def load_digits_images() -> tuple[Tensor, Tensor]:
    """All digits, in scikit-learn's order: images (1797, 1, 8, 8), float in [0, 1], and labels (1797,), long."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DD2Error(
            "the digits come with scikit-learn, which is missing: pip install dd2-lightning[demo]"
        ) from error
    digits = load_digits()
    return torch.tensor(digits.images / 16, dtype=torch.float32)[:, None], torch.tensor(digits.target).long()


class DigitsData(PackagedData):
    """The 1,797 handwritten digits of scikit-learn, 8x8 pixels, as (1, 8, 8) in [0, 1]."""

    num_classes, image_shape, total = 10, (1, 8, 8), 1797

    def __init__(self, batch_size: int = 64, seed: int = 0, held_out: int = 197):
        super().__init__(batch_size, seed, held_out)

    def everything(self) -> ImageSet:
        return ImageSet(*load_digits_images())
