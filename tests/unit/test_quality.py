"""Quality of pictures from features, against scipy, numpy and brute force."""

import json
import os

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from dd2_lightning.metrics import manifold
from dd2_lightning.metrics.frechet import FeatureGaussian
from dd2_lightning.metrics.manifold import FirstFeatures, Manifold, precision_recall
from dd2_lightning.metrics.quality import Quality, QualityScores, kernel_distance
from memory import needs_proc, output_of

pytestmark = pytest.mark.filterwarnings("ignore:.*(save all extracted|degrees of freedom|called before the ``update``)")


def features(count, width, seed, shift=0.0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator)
    return scale * torch.randn(count, width, generator=generator) @ mix / width**0.5 + shift


def scored(quality, samples, logits=None, batch=57):
    for start in range(0, len(samples), batch):
        rows = slice(start, start + batch)
        quality.update(samples[rows], None if logits is None else logits[rows])
    return quality.compute()


# --- references ------------------------------------------------------------------------------------------------------


def brute_force_fid(first, second):
    a, b = first.double().numpy(), second.double().numpy()
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)


def brute_force_mmd(first, second):
    """The unbiased estimate, pair by pair."""
    a, b = first.double().numpy(), second.double().numpy()
    kernel = lambda x, y: (x @ y / len(x) + 1) ** 3  # noqa: E731
    within = [np.mean([kernel(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j]) for s in (a, b)]
    return sum(within) - 2 * np.mean([kernel(x, y) for x in a for y in b])


def brute_force_coverage(points, others, k):
    """Share of ``others`` inside a ball of ``points``, pair by pair."""
    points, others = points.double().numpy(), others.double().numpy()
    radii = [sorted(np.linalg.norm(p - q) for j, q in enumerate(points) if j != i)[k - 1] for i, p in enumerate(points)]
    inside = [any(np.linalg.norm(o - p) <= r for p, r in zip(points, radii, strict=True)) for o in others]
    return np.mean(inside)


# --- each metric -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [3, 32, 100])
def test_fid_equals_scipys_and_torchmetrics(width):
    reference, samples = features(700, width, 0), features(400, width, 1, shift=0.3)
    found = scored(Quality.of(reference), samples).frechet
    assert found == pytest.approx(brute_force_fid(reference, samples), rel=1e-6)
    library = FrechetInceptionDistance(nn.Identity(), input_img_size=(width,)).set_dtype(torch.float64)
    library.update(reference.double(), real=True)
    library.update(samples.double(), real=False)
    assert found == pytest.approx(library.compute().item(), rel=1e-6)


@pytest.mark.parametrize("width", [3, 40])
def test_kid_equals_the_double_sum_over_pairs(width):
    reference, samples = features(60, width, 0), features(60, width, 1, shift=0.3)
    expected = brute_force_mmd(reference, samples)
    assert kernel_distance(reference, samples) == pytest.approx(expected, rel=1e-9)
    assert scored(Quality.of(reference), samples, batch=7).kid == pytest.approx(expected, rel=1e-9)
    library = KernelInceptionDistance(nn.Identity(), subsets=1, subset_size=60)
    library.update(reference.double(), real=True)
    library.update(samples.double(), real=False)
    assert library.compute()[0].item() == pytest.approx(expected, rel=1e-9)


def test_kid_of_subsets_is_near_that_of_everything_and_has_no_bias():
    reference, samples = features(300, 8, 0), features(200, 8, 1, shift=0.3)
    subsets = kernel_distance(reference, samples, subsets=400, subset_size=100)
    assert subsets == pytest.approx(brute_force_mmd(reference, samples), rel=0.05)
    assert subsets != kernel_distance(reference, samples, subsets=400, subset_size=100, seed=1)
    whole = features(4000, 4, 2)
    same = [kernel_distance(whole[k : k + 50], whole[k + 50 : k + 100]) for k in range(0, 4000, 100)]
    assert abs(np.mean(same)) < 3 * np.std(same) / len(same) ** 0.5
    assert min(same) < 0 < max(same)


def test_inception_score_is_the_formula():
    logits = features(600, 10, 0, scale=3.0)
    quality = Quality.of(features(10, 2, 0), splits=1)
    found = scored(quality, features(600, 2, 1), logits).inception_score
    p = scipy.special.softmax(logits.double().numpy(), 1)
    expected = np.exp(np.mean(np.sum(p * (np.log(p) - np.log(p.mean(0))), 1)))
    assert found == pytest.approx(expected, rel=1e-5)
    # all classes equally often and surely: as many as there are
    sure = 1000 * torch.eye(10).repeat(100, 1)
    assert scored(Quality.of(features(10, 2, 0), splits=1), features(1000, 2, 1), sure).inception_score == (
        pytest.approx(10, rel=1e-5)
    )


def test_inception_score_does_not_depend_on_the_global_random_state():
    logits, found = features(600, 10, 0, scale=3.0), []
    for state in (1, 2):
        torch.manual_seed(state)
        found.append(scored(Quality.of(features(10, 2, 0)), features(600, 2, 1), logits).inception_score)
        assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(state))
    assert found[0] == found[1]


@pytest.mark.parametrize(("width", "k", "shift"), [(2, 3, 0.5), (8, 1, 0.3), (60, 3, 0.1), (60, 5, 100.0)])
def test_precision_and_recall_are_those_of_brute_force(width, k, shift, monkeypatch):
    reference, samples = features(90, width, 0), features(70, width, 1, shift=shift, scale=0.8)
    expected = brute_force_coverage(reference, samples, k), brute_force_coverage(samples, reference, k)
    if shift < 100:
        assert 0 < expected[0] < 1 and expected[0] != expected[1]
    for chunk in (2**23, 500):  # in one piece and in many
        monkeypatch.setattr(manifold, "CHUNK", chunk)
        found = scored(Quality.of(reference, k=k), samples)
        assert (found.precision, found.recall) == expected


def test_duplicates_are_inside_balls_without_extent():
    reference = features(5, 50, 0, shift=1e3).repeat_interleave(4, 0)  # the third neighbour is itself
    samples = torch.cat([reference[[0, 0, 0, 0, 4, 4, 4, 4]], features(8, 50, 1)])
    assert precision_recall(Manifold(reference), Manifold(samples)) == (0.5, 0.4)


def test_a_dropped_mode_costs_recall_and_a_foreign_one_precision():
    modes = torch.randn(300, 4) + 50 * torch.eye(4)[torch.arange(300) % 3]
    wanted, dropped, foreign = (
        modes,
        modes[torch.arange(300) % 3 < 2],
        modes + 25 * (torch.arange(300) % 3 == 2)[:, None],
    )
    again = torch.randn(300, 4) + 50 * torch.eye(4)[torch.arange(300) % 3]
    scores = {name: scored(Quality.of(wanted), s) for name, s in (("d", dropped), ("f", foreign), ("a", again))}
    assert scores["d"].precision == 1 and scores["d"].recall == pytest.approx(2 / 3, abs=0.01)
    assert scores["f"].precision == pytest.approx(2 / 3, abs=0.01) and scores["f"].recall == pytest.approx(
        2 / 3, abs=0.01
    )
    assert scores["a"].precision > 0.8 and scores["a"].recall > 0.8


# --- all together ----------------------------------------------------------------------------------------------------


def test_scores_do_not_depend_on_the_batches_and_a_reset_forgets_the_samples():
    reference, first, second = features(200, 6, 0), features(150, 6, 1), features(150, 6, 2, shift=1.0)
    quality = Quality.of(reference)
    ours = scored(quality, first, first, batch=150)
    quality.reset()
    other = scored(quality, second, second)
    quality.reset()
    again = scored(quality, first, first, batch=11)
    for name, value in vars(ours).items():
        assert vars(again)[name] == pytest.approx(value, rel=1e-9), name
        assert vars(other)[name] != pytest.approx(value, rel=1e-3), name


def test_statistics_alone_give_fid_only():
    reference, samples = features(300, 4, 0), features(200, 4, 1)
    fit = FeatureGaussian(4)
    fit.update(reference)
    assert scored(Quality(fit.compute()), samples) == QualityScores(scored(Quality.of(reference), samples).frechet)


def test_only_the_first_samples_make_the_manifold():
    reference, samples = features(200, 4, 0), features(300, 4, 1, shift=0.5)
    limited = scored(Quality.of(reference, manifold_samples=80), samples)
    whole = scored(Quality.of(reference[:80]), samples[:80])
    assert (limited.precision, limited.recall, limited.kid) == (whole.precision, whole.recall, whole.kid)
    assert limited.frechet == pytest.approx(scored(Quality.of(reference), samples).frechet)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="at least 4 samples"):
        Quality.of(features(3, 2, 0))
    quality = Quality.of(features(20, 2, 0))
    quality.update(features(3, 2, 0))
    with pytest.raises(ValueError, match="at least 4 samples"):
        quality.compute()
    with pytest.raises(ValueError, match=r"features must be \(B, 2\)"):
        quality.update(features(3, 5, 0))
    with pytest.raises(ValueError, match="KID needs at least 2"):
        kernel_distance(torch.zeros(1, 2), torch.zeros(5, 2))
    with pytest.raises(ValueError, match="no features yet"):
        FirstFeatures().compute()
    with pytest.raises(ValueError, match="at least 1"):
        FirstFeatures(0)


# --- memory ----------------------------------------------------------------------------------------------------------

MEASURE = """
import json, sys, time
import torch
torch.set_num_threads(1)
from dd2_lightning.metrics.frechet import FeatureGaussian
from dd2_lightning.metrics.manifold import FirstFeatures
from dd2_lightning.metrics.quality import Quality
from memory import peak
samples, width, classes, kept, batch = map(int, sys.argv[1:])
start = time.perf_counter()
gaussian, first = FeatureGaussian(width), FirstFeatures(kept)
for _ in range(0, samples, batch):
    part = torch.randn(batch, width).relu()
    gaussian.update(part)
    first.update(part)
quality = Quality(gaussian.compute(), first.compute(), kept)
for _ in range(0, samples, batch):
    quality.update(torch.randn(batch, width).relu(), torch.randn(batch, classes) if classes else None)
scores = quality.compute()
seconds = time.perf_counter() - start
print(json.dumps({"peak": peak(), "seconds": seconds, **vars(scores)}))
"""


def measure(samples, width, classes, kept, batch=500):
    """Peak memory in MB and seconds of a whole evaluation, reference included, in a process of its own."""
    return json.loads(output_of(MEASURE, samples, width, classes, kept, batch))


@needs_proc
def test_memory_does_not_grow_with_the_features():
    """Of 200,000 samples a side's features are 205 MB. Without logits: those are kept, as the inception score needs."""
    few, many = (measure(samples, 256, 0, 200)["peak"] for samples in (10_000, 200_000))
    assert many - few < 30


@needs_proc
@pytest.mark.skipif("DD2_SLOW_TESTS" not in os.environ, reason="minutes; DD2_SLOW_TESTS=1 runs it")
def test_a_whole_evaluation_of_inception_features_stays_within_four_gigabytes():
    measured = measure(50_000, 2048, 1008, int(os.environ.get("DD2_MANIFOLD_SAMPLES", 10_000)))
    print(measured)
    assert measured["peak"] < 4096
