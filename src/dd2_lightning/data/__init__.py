"""What the stages are fed: labels with teacher-sampled prefixes, and image sets for small teachers."""

from dd2_lightning.data.batch import Batch
from dd2_lightning.data.images import DigitsData
from dd2_lightning.data.prefixes import PrefixData

__all__ = ["Batch", "DigitsData", "PrefixData"]
