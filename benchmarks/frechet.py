"""Stage 4 on the digits: distances to held-out real images in features that were not trained on.

``make frechet_benchmark`` reads ``runs/NAME/seedN`` and writes ``benchmarks/frechet_NAME.json`` and ``.md``. All rows
have as many samples, since the bias of the distance falls with their number, and are compared with the same held-out
images, of which there are few (197 digits), so that their share of the bias is the same. KID has no bias.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.command import run_command
from dd2_lightning.artifacts import Artifact, load_generator, load_teacher
from dd2_lightning.data.images import ImageData, ImageSet
from dd2_lightning.data.named import images_of, open_images
from dd2_lightning.evaluation.baselines import IndependentSampler, Marginals
from dd2_lightning.evaluation.report import markdown_table, over_runs, to_json
from dd2_lightning.evaluation.samplers import OneStepSampler, ReferenceSampler, Sampler, Samples, TeacherSampler
from dd2_lightning.files import write_atomically
from dd2_lightning.metrics.diversity import WithinClassVariance
from dd2_lightning.metrics.features import feature_network, identity
from dd2_lightning.metrics.likelihood import sequence_nll
from dd2_lightning.metrics.quality import Quality
from dd2_lightning.noise import stream
from dd2_lightning.provenance import commit
from dd2_lightning.sampling import Sampling

MODELS = {"stage 4, real": "frechet", "stage 4, teacher": "frechet_teacher"}
"""Rows to the directories in a seed's runs; the first names what they start from."""

LABEL = "classifier"
"""The feature network that classifies for the column of the accuracy."""


class MLPFeatures(nn.Module):
    """Another architecture: a fully connected classifier of the training images, 48 tanh features."""

    width = 48

    def __init__(self, images: ImageSet, seed: int = 7, steps: int = 1500):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                nn.Flatten(), nn.Linear(images.pixels(slice(1)).numel(), 128), nn.GELU(), nn.Linear(128, self.width)
            )
            self.classify = nn.Linear(self.width, int(images.labels.max()) + 1)
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=1e-2)
        for step in range(steps):
            rows = torch.randint(images.size, (64,), generator=stream(seed, "MLP", step))
            raw = self.body(2 * images.pixels(rows) - 1)
            loss = F.cross_entropy(self.classify(raw.tanh()), images.labels[rows]) + 0.05 * raw.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.requires_grad_(False).eval()

    def features(self, images: Tensor) -> Tensor:
        return self.body(2 * images - 1).tanh()


@torch.no_grad()
def drawn(sampler: Sampler, samples: int) -> Samples:
    """The first samples of seed 0."""
    batches = list(sampler.batches(samples, 0, 500))
    return Samples(
        *(torch.cat([getattr(batch, name) for batch in batches]) for name in ("labels", "images", "indices"))
    )


def measure(runs: Path, teacher_path: Path, data: ImageData, samples: int, reference_samples: int) -> dict[str, Any]:
    """Rows of one seed: row, then feature network, then number."""
    teacher, models = load_teacher(teacher_path), {name: runs / model for name, model in MODELS.items()}
    settings = Artifact.open(models["stage 4, real"], ("frechet",), "runs").config["settings"]
    models = {"one step": Path(settings["init_from"]), **models}
    sampling = teacher.resolve_sampling(Sampling(settings["teacher_sampling"]["guidance_scale"]))
    networks: dict[str, Any] = {LABEL: feature_network("classifier", runs, data=data), "MLP": MLPFeatures(data.train)}
    networks |= {name: feature_network(name) for name in ("pixels", "random")}
    networks["trained on"] = feature_network("classifier", runs / "features", data=data, seed=1)
    reference = drawn(ReferenceSampler(name="reference").bind(teacher, sampling), reference_samples)
    rows = {"teacher": TeacherSampler(name="teacher").bind(teacher, sampling)}
    for name, path in models.items():
        if not (path / "config.json").is_file():
            continue
        generator = load_generator(path, teacher=teacher)
        assert set(generator.trained_on) <= {identity(networks["trained on"])}
        rows[name] = OneStepSampler(name=name, model=generator).bind(teacher, sampling)
    rows["independent"] = IndependentSampler(name="independent").bind(teacher, sampling)
    rows["independent"].marginals = Marginals(reference.indices, reference.labels, teacher.num_classes)
    sets = {name: drawn(sampler, samples) for name, sampler in rows.items()}
    train = data.train.pixels(slice(samples))
    sets["training images"] = Samples(data.train.labels[:samples], train, teacher.encode(train))
    found: dict[str, Any] = {name: {} for name in sets}
    for name, network in networks.items():
        held_out, whole = network.features(data.held_out.pixels()), network.features(reference.images)
        kept = 5000 if name == LABEL else 0  # precision and recall of one network
        to_real, to_teacher = Quality.of(held_out), Quality.of(whole, manifold_samples=kept)
        spread = spread_of(network, reference)
        for row, drawn_set in sets.items():
            features = network.features(drawn_set.images)
            found[row][name] = {"real": against(to_real, features), "teacher": against(to_teacher, features)}
            found[row][name]["diversity"] = spread_of(network, drawn_set) / spread
    for row, drawn_set in sets.items():
        nll = sequence_nll(teacher, drawn_set.indices, drawn_set.labels, sampling)
        hits = networks[LABEL](drawn_set.images).argmax(1) == drawn_set.labels
        found[row] |= {"nll": nll[nll.isfinite()].mean().item(), "accuracy": hits.double().mean().item()}
    return found


def spread_of(network: Any, samples: Samples) -> float:
    """Within-class variance of the features."""
    variance = WithinClassVariance(int(samples.labels.max()) + 1, network.width, minimum=2)
    variance.update(network.features(samples.images), samples.labels)
    return variance.compute()


def against(quality: Quality, features: Tensor) -> dict[str, float | None]:
    """Distance, KID, precision and recall of features."""
    quality.reset()
    quality.update(features)
    scores = quality.compute()
    return {name: getattr(scores, name) for name in ("frechet", "kid", "precision", "recall")}


def left(rows: dict[str, Any], row: str, value: Callable[[dict[str, Any]], float]) -> float:
    """How much of the independent tokens' error a row leaves: 0 is the teacher, 1 is independent."""
    first, last = value(rows["teacher"]), value(rows["independent"])
    return (value(rows[row]) - first) / (last - first)


def table(seeds: list[dict[str, Any]], name: str, samples: int) -> str:
    """Medians over the seeds, as Markdown."""
    rows = over_runs(median, seeds)
    networks = [name for name, value in rows["teacher"].items() if isinstance(value, dict)]
    head = ["to held-out real images", *(f"{name}: Fréchet | KID x 1000" for name in networks)]
    head = " | ".join(head).split(" | ")
    lines = [[row, *(text for name in networks for text in both(values[name]["real"]))] for row, values in rows.items()]
    text = ["", f"**{name}**, medians of {len(seeds)} seeds, {samples:,} samples a row.", ""]
    text += markdown_table(head, lines)
    head = [
        "row",
        *(f"left, {name}" for name in networks),
        "left, NLL",
        "NLL",
        "prec.",
        "recall",
        "recall, real",
        "acc.",
        "div.",
    ]
    lines = []
    for row, values in rows.items():
        entries = [left(rows, row, lambda value, name=name: value[name]["teacher"]["frechet"]) for name in networks]
        entries += [left(rows, row, lambda value: value["nll"]), values["nll"]]
        seen = values[LABEL]
        entries += [seen["teacher"]["precision"], seen["teacher"]["recall"], seen["real"]["recall"]]
        lines.append([row, *(f"{value:.3f}" for value in (*entries, values["accuracy"], seen["diversity"]))])
    return "\n".join([*text, "", *markdown_table(head, lines), ""])


def both(scores: dict[str, float]) -> list[str]:
    """Distance and kernel distance as text."""
    return [f"{scores['frechet']:.4f}", f"{1000 * scores['kid']:.3f}"]


def main(
    teacher: str,
    runs: str,
    output: str,
    images: str | None = None,
    seeds: list[int] = [0, 1, 2],  # noqa: B006
    samples: int = 1600,
    reference_samples: int = 20_000,
) -> None:
    """Measure stage 4 and what it starts from.

    Args:
        teacher: its directory.
        runs: directory of seed0, seed1, …
        output: JSON file, with the table beside it.
        images: data module of the real images; by default what the teacher was trained on.
        seeds: of the runs.
        samples: of each row.
        reference_samples: of the teacher, for what is left of the independent tokens' error.
    """
    origin = Artifact.open(teacher, ("teacher",), "--teacher")
    data = open_images(images) if images else images_of(origin.directory, origin.config)
    found = [measure(Path(runs) / f"seed{seed}", origin.directory, data, samples, reference_samples) for seed in seeds]
    report = {"samples": samples, "commit": commit(), "seeds": dict(zip(seeds, found, strict=True))}
    text = table(found, Path(output).stem, samples)
    write_atomically(Path(output), to_json(report))
    write_atomically(Path(output).with_suffix(".md"), text.lstrip().encode())
    print(text)


if __name__ == "__main__":
    run_command("benchmarks.frechet", main)
