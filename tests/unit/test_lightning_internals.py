"""Lightning's private names, against the version that is installed."""

import lightning.pytorch as pl
import pytest
import torch

from dd2_lightning.lightning_internals import uncounted


class Two(pl.LightningModule):
    """Two optimizers, each of which steps twice an iteration; the last step alone is counted."""

    def __init__(self, count_all: bool):
        super().__init__()
        self.automatic_optimization = False
        self.networks = torch.nn.ModuleList([torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)])
        self.count_all, self.seen = count_all, []

    def configure_optimizers(self):
        return [torch.optim.SGD(network.parameters(), lr=0.1) for network in self.networks]

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        for optimizer in (first, first, second):
            self.step(optimizer, counted=self.count_all)
        self.step(second, counted=True)
        self.seen.append(self.trainer.global_step)

    def step(self, optimizer, counted):
        if counted:
            optimizer.step()
        else:
            with uncounted(optimizer):
                optimizer.step()


@pytest.mark.parametrize(("count_all", "seen"), [(False, [1, 2, 3]), (True, [4, 8, 12])])
def test_uncounted_steps(tmp_path, count_all, seen):
    module = Two(count_all)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.zeros(3, 1)))
    assert module.seen == seen
