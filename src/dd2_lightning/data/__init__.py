"""What the stages are fed: labels, sequences and pairs from a teacher, and image sets for small teachers."""

from dd2_lightning.data.batch import Batch
from dd2_lightning.data.images import DigitsData
from dd2_lightning.data.prefixes import PairData, PrefixData

__all__ = ["Batch", "DigitsData", "PairData", "PrefixData"]
