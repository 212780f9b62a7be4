"""Batches of labels, teacher sequences and images; a DataModule knows no network."""

from dd2_lightning.data.batch import Batch
from dd2_lightning.data.digits import DigitsData
from dd2_lightning.data.image_folder import ImageFolderData
from dd2_lightning.data.mnist import MnistData
from dd2_lightning.data.prefixes import PairData, PrefixData

__all__ = ["Batch", "DigitsData", "ImageFolderData", "MnistData", "PairData", "PrefixData"]
