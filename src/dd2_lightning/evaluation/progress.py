"""The former place of :mod:`dd2_lightning.progress`."""

from functools import partial

from dd2_lightning import progress

tracked = partial(progress.tracked, unit="batches")
