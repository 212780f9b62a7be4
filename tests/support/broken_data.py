"""Data modules that a user could have written, and that fail."""

from lightning.pytorch import LightningDataModule

from dd2_lightning.data import PrefixData


class FailsInSecondProcess(PrefixData):
    def train_dataloader(self):
        if self.trainer.global_rank == 1:
            raise SystemExit(7)
        return super().train_dataloader()


class RefusesInSecondProcess(PrefixData):
    def train_dataloader(self):
        if self.trainer.global_rank == 1:
            from dd2_lightning.errors import DD2Error

            raise DD2Error("the second process finds no data")
        return super().train_dataloader()


class WithoutLoaders(LightningDataModule):
    """And without a seed."""

    def __init__(self, batch_size: int = 4):
        super().__init__()
