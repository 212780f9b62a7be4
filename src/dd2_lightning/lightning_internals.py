"""Private names of Lightning that training needs; tests hold each against the pinned version."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.core.optimizer import LightningOptimizer, do_nothing_closure


@contextmanager
def uncounted(optimizer: LightningOptimizer) -> Iterator[None]:
    """Within this context, steps of ``optimizer`` do not advance ``trainer.global_step``.

    In manual optimization Lightning counts every ``optimizer.step``, through two callbacks that it binds to each
    optimizer before every ``training_step``.
    """
    counters = optimizer._on_before_step, optimizer._on_after_step
    optimizer._on_before_step = optimizer._on_after_step = do_nothing_closure
    try:
        yield
    finally:
        optimizer._on_before_step, optimizer._on_after_step = counters
