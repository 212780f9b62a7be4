"""Images of one's own."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dd2_lightning.data.batch import Batch
from dd2_lightning.data.folders import ImageFolder
from dd2_lightning.data.images import ImageBatches, ImageData, ImageSet
from dd2_lightning.errors import DD2Error, check_range


class ImageFolderData(ImageData):
    """PNG, JPEG and WebP files in a folder for each class, or in one folder without classes.

    They are decoded once, into a cache. The shorter side of an image is made ``size`` long (``resize`` where crops are
    random), and a square is cut out of its middle.

    Args:
        folder: a folder of class folders; one that holds images only is a single class.
        size: pixels a side of the images to learn from.
        channels: 3 for RGB, 1 for grey.
        crop: where the square of ``size`` lies in an image of ``resize``; ``random`` in every batch anew, for
            held-out images always in the middle.
        resize: pixels a side before random crops; None is an eighth more than ``size``.
        flip: whether images are mirrored left to right in half of the batches.
        enlarge: whether images smaller than that are enlarged; otherwise they count as broken.
        skip_broken: whether to leave out files that cannot be read, which are an error otherwise.
        held_out: share of the images kept for validation, random, but the same whatever the seed.
        held_out_folder: a second folder with images for validation; then all of the first are learned from.
        validation_size: most images that a validation reads.
        cache_dir: directory of decoded images, shared by all folders and settings; None is
            ``~/.cache/dd2-lightning/images``.
        batch_size: images an iteration, of all processes together.
        seed: of the data order, crops and flips; follows ``seed_everything``.
    """

    def __init__(
        self,
        folder: str,
        size: int = 32,
        channels: Literal[1, 3] = 3,
        crop: Literal["center", "random"] = "center",
        resize: int | None = None,
        flip: bool = False,
        enlarge: bool = False,
        skip_broken: bool = False,
        held_out: float = 0.1,
        held_out_folder: str | None = None,
        validation_size: int = 512,
        cache_dir: str | None = None,
        batch_size: int = 64,
        seed: int = 0,
    ):
        super().__init__(batch_size, seed)
        check_range("data.", "[1, inf)", size=size, validation_size=validation_size)
        check_range("data.", "(0, 1)", held_out=held_out)
        if resize is not None and (crop == "center" or resize < size):
            raise ValueError(f"data.resize {resize} is for data.crop random, and at least data.size {size}")
        side = size if crop == "center" else resize or size + size // 8
        self.size, self.flip, self.skip_broken = size, flip, skip_broken
        self.held_out_share, self.validation_size = held_out, validation_size
        self.image_shape = (channels, size, size)
        settings = cache_dir, side, channels, enlarge
        self.folder = ImageFolder(folder, *settings)
        self.held_out_folder = None
        if held_out_folder is not None:
            self.held_out_folder = ImageFolder(held_out_folder, *settings, classes=self.folder.classes)
        self.num_classes = max(1, len(self.folder.classes))

    def prepare_data(self) -> None:
        self.folder.prepare()
        if self.held_out_folder is not None:
            self.held_out_folder.prepare()
        self.load()  # what is wrong is said before anything is written

    def load(self) -> tuple[ImageSet, ImageSet]:
        images = self.folder.read(self.skip_broken)
        if self.held_out_folder is not None:
            self.decoded, held_out = images, self.held_out_folder.read(self.skip_broken)
        else:
            if images.size < 2:
                raise DD2Error(f"{self.folder.folder} holds 1 image: one to learn from and one to hold out are needed")
            count = min(max(1, round(self.held_out_share * images.size)), images.size - 1)
            held_out, self.decoded = images.select(slice(count)), images.select(slice(count, None))
        return centred(self.decoded, self.size), centred(held_out, self.size)

    def everything(self) -> ImageSet:
        if self.held_out_folder is not None:
            return super().everything()
        return centred(self.folder.read(self.skip_broken), self.size)

    def held_out_batch(self) -> Batch:
        return HeldOutBatches(self.held_out, self.validation_size, self.validation_size, self.seed)[0]

    def held_out_batches(self) -> Sequence[Batch]:
        return HeldOutBatches(self.held_out, self.validation_size, self.batch_size, self.seed)

    def batches_of(self, size: int, seed: int, rank: int, world_size: int) -> ImageBatches:
        return ImageBatches(self.decoded, size, seed, rank, world_size, self.augment)

    def augment(self, pixels: Tensor, batch: Batch) -> Tensor:
        """Crop decoded images (b, channels, side, side) to (b, channels, size, size) and mirror some of them."""
        room = pixels.shape[-1] - self.size
        if room:
            corners = (batch.rand("crop", shape=(2,)) * (room + 1)).long().tolist()
            size, pairs = self.size, zip(pixels, corners, strict=True)
            pixels = torch.stack([image[:, y : y + size, x : x + size] for image, (y, x) in pairs])
        if self.flip:
            mirrored = batch.rand("flip", shape=(1, 1, 1)) < 0.5
            pixels = torch.where(mirrored, pixels.flip(-1), pixels)
        return pixels


class HeldOutBatches(Sequence[Batch]):
    """The first ``count`` images of a set in batches of ``size``, made when they are asked for."""

    def __init__(self, images: ImageSet, count: int, size: int, seed: int):
        self.images, self.size, self.seed = images.select(slice(count)), size, seed

    def __len__(self) -> int:
        return -(-self.images.size // self.size)

    def __getitem__(self, k):
        if not 0 <= k < len(self):
            raise IndexError(k)
        chosen = self.images.select(slice(k * self.size, (k + 1) * self.size))
        return Batch(chosen.labels, 0, self.seed, 0, chosen.size, images=chosen.pixels())


def centred(images: ImageSet, size: int) -> ImageSet:
    """The middle of images (N, channels, side, side), (N, channels, size, size), without a copy."""
    margin = (images.images.shape[-1] - size) // 2
    middle = slice(margin, margin + size)
    return ImageSet(images.images[..., middle, middle], images.labels)
