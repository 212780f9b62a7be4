"""``dd2 bench``: how long things take here, on this machine."""

from dd2_lightning.benchmarks.flows import bench_flow
from dd2_lightning.benchmarks.sampling import bench_sample
from dd2_lightning.benchmarks.training import bench_train

__all__ = ["bench_flow", "bench_sample", "bench_train"]
