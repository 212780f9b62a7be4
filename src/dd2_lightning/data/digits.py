"""The 1,797 handwritten digits that scikit-learn brings along."""

import torch
from torch import Tensor

from dd2_lightning.data.images import ImageData, ImageSet, split_held_out
from dd2_lightning.errors import DD2Error, check_range


def load_digits_images() -> tuple[Tensor, Tensor]:
    """All digits, in scikit-learn's order.

    Returns:
        Images (1797, 1, 8, 8), float in [0, 1], and labels (1797,), long.

    Raises:
        DD2Error: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DD2Error(
            "the digits come with scikit-learn, which is missing: pip install dd2-lightning[demo]"
        ) from error
    digits = load_digits()
    return torch.tensor(digits.images / 16, dtype=torch.float32)[:, None], torch.tensor(digits.target).long()


class DigitsData(ImageData):
    """The 1,797 handwritten digits of scikit-learn, 8x8 pixels, as (1, 8, 8) in [0, 1].

    Args:
        batch_size: images an iteration, of all processes together.
        seed: of the data order; follows ``seed_everything``.
        held_out: images kept for validation.

    Raises:
        ValueError: for a setting out of range, naming it and its range.
    """

    num_classes = 10
    image_shape = (1, 8, 8)

    def __init__(self, batch_size: int = 64, seed: int = 0, held_out: int = 197):
        check_range("data.", "[1, 1796]", held_out=held_out)
        super().__init__(batch_size, seed)
        self.held_out_size = held_out

    def load(self) -> tuple[ImageSet, ImageSet]:
        return split_held_out(*load_digits_images(), self.held_out_size)
