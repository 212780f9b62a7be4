"""``dd2 sample``: images of a generator."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dd2_lightning.errors import check_at_least_one, check_samples
from dd2_lightning.families.registry import AnySampling
from dd2_lightning.sampling import Sampling

if TYPE_CHECKING:
    from torch import Tensor

    from dd2_lightning.models.generator import Generator


def sample(
    model: str,
    output: str,
    labels: str | None = None,
    num: int | None = None,
    protocol: str | None = None,
    steps: int = 1,
    teacher: str | None = None,
    sampling: AnySampling = Sampling(),
    split: int | None = None,
    seed: int = 0,
    batch_size: int | Literal["auto"] = "auto",
    device: str = "auto",
    precision: str | int = "32",
    graphs: bool = False,
) -> None:
    """Draw images with a one-step generator, with a model of the baseline DD1, or with a teacher at all its steps.

    An ``.npz`` file may be larger than memory; the same command continues after an interruption.

    Args:
        model: directory of a finished csd, align, frechet or dd1 stage, or of a teacher, which takes all its steps; or
            user/name of a model on the Hub.
        output: a ``.png``, ``.jpg``, ``.jpeg`` or ``.webp`` file for one grid, a ``.npz`` file (uint8, NHWC, ``arr_0``,
            and ``labels``), or a directory, without an ending, for one PNG file an image.
        labels: classes separated by commas, repeated in turn until there are ``num``; all classes by default.
        num: number of images; by default one a label.
        protocol: in place of labels, with num: openai, every class equally often, or dd1, classes at random.
        steps: 1, or k to let the teacher re-sample the last k - 1 positions. A DD1 model takes 1 or 2 steps by itself;
            with more the teacher re-samples the last k - 2 of the m positions before its second call, or all m with
            k = m + 1.
        teacher: directory of the teacher, for ``steps`` above 1, with a DD1 model above 2.
        sampling: guidance and truncation of the teacher, like --sampling.guidance_scale 1.5.
        split: of a DD1 model: how many positions come out as codes, if not as many as in its config.json.
        seed: of the noise; image i depends on the seed and i only.
        batch_size: images at a time; auto is the largest that fits the GPU's memory, or 4 GB on a CPU, up to 500.
        device: where to compute: auto, cpu, cuda, cuda:1, mps.
        precision: of the networks: 32 or bf16; flows and look-ups of codes are in float32 in either.
        graphs: replay CUDA graphs, which launch all kernels of a batch at once: several times as fast where batches are
            small; on a CPU nothing changes.

    Examples:
        dd2 sample --model runs/var/align --labels 3,1,4 --num 30 --output grid.png
        dd2 sample --model user/name@v1 --num 50000 --protocol openai --output samples.npz
        dd2 sample --model runs/var/align --steps 2 --teacher runs/var/teacher --output refined.png
        dd2 sample --model runs/var/teacher --sampling.guidance_scale 1.0 --num 30 --output teacher.png
    """
    import torch

    from dd2_lightning.artifacts import load_teacher, state_hash
    from dd2_lightning.cli.finish import finish
    from dd2_lightning.costs import largest_batch, peak_of, sampling_peak
    from dd2_lightning.devices import autocast, check_precision, resolve_device
    from dd2_lightning.files import check_writable, sha256
    from dd2_lightning.images.files import output_kind
    from dd2_lightning.images.sample_sets import SampleSet
    from dd2_lightning.models.generator import TeacherGenerator
    from dd2_lightning.models.graphs import Replayed
    from dd2_lightning.noise import SampleNoise

    check_samples(seed, num=num, batch_size=None if batch_size == "auto" else batch_size)
    check_at_least_one("--", steps=steps)
    if protocol is not None and (labels is not None or num is None):
        raise ValueError("--protocol decides on the labels: it needs --num and goes without --labels")
    kind, path, chosen = output_kind(output), Path(output), resolve_device(device)
    check_precision(chosen, precision)
    check_writable(path.parent)
    generator = open_model(model).to(chosen)
    classes = choose_labels(generator.num_classes, labels, num, protocol, seed)
    refiner = load_teacher(teacher).to(chosen) if teacher and steps > 1 else None
    drawing_teacher = generator.teacher if isinstance(generator, TeacherGenerator) else refiner
    tokens_of = generator.sampler(steps, refiner, sampling, split)
    n, C = generator.layout.length, generator.token_dim

    @torch.no_grad()
    def images_of(*inputs: "Tensor") -> "Tensor":
        with autocast(chosen, precision):
            return generator.decode(tokens_of(*inputs)).float()

    drawn = Replayed(images_of) if graphs else images_of

    def draw(start: int, labels: "Tensor") -> "Tensor":
        noise = SampleNoise(seed, start, len(labels), chosen)
        return drawn(labels.to(chosen), *noise.for_generators(n, C)).cpu()

    def peak(size: int) -> int:
        classes, noise = torch.zeros(size, dtype=torch.long, device=chosen), torch.zeros(size, n, C, device=chosen)
        with torch.no_grad(), autocast(chosen, precision):
            decoding = peak_of(lambda: generator.decode(noise))
            if isinstance(generator, TeacherGenerator):
                return decoding
            sampler = generator.sampler(split=split)
            return max(decoding, peak_of(lambda: sampler(classes, noise, noise[..., 0])))

    if batch_size == "auto":
        peaks = [partial(sampling_peak, drawing_teacher, sampling=sampling)] if drawing_teacher else []
        batch_size = largest_batch(chosen, len(classes), peak, *peaks)
    if kind == "npz":
        settings = {
            "model": state_hash(generator),
            "model_config": sha256((generator.directory or Path(model)) / "config.json"),
            "protocol": protocol,
            "steps": steps,
            "split": split,
            "teacher": None if refiner is None else state_hash(refiner),
            "sampling": None if drawing_teacher is None else asdict(drawing_teacher.resolve_sampling(sampling)),
            "seed": seed,
            "device": chosen.type,
            "precision": str(precision),
            **({"trained_on": generator.trained_on} if generator.trained_on else {}),
        }
        SampleSet(path, classes, batch_size, settings).complete(draw)
    else:
        write_images(draw, classes, batch_size, path)
    finish(f"sample {kind}", f"{len(classes)} images -> {output}", output=output, model=model)


def open_model(path: str) -> "Generator":
    """Open a generator or, to draw with all its steps, a teacher."""
    from dd2_lightning.artifacts import Artifact, load_generator, load_teacher
    from dd2_lightning.models.generator import TeacherGenerator

    artifact = Artifact.open(path, ("csd", "align", "frechet", "dd1", "teacher"), "generator")
    if artifact.config["stage"] != "teacher":
        return load_generator(path)
    generator = TeacherGenerator(load_teacher(path))
    generator.directory = artifact.directory
    return generator


def choose_labels(
    num_classes: int, labels: str | None = None, num: int | None = None, protocol: str | None = None, seed: int = 0
) -> "Tensor":
    """Classes of all images, (num,), as the options of ``dd2 sample`` say; a ValueError if they cannot be."""
    import torch

    from dd2_lightning.metrics.protocols import protocol_named
    from dd2_lightning.models.teacher import check_labels

    if protocol is not None:
        assert num is not None
        return protocol_named(protocol).labels(num, num_classes, seed)
    classes = torch.arange(num_classes) if labels is None else parse_labels(labels)
    check_labels(classes, num_classes)
    num = num or len(classes)
    return classes.repeat(-(-num // len(classes)))[:num]


def parse_labels(text: str) -> "Tensor":
    """Parse ``0,1,2``."""
    import torch

    try:
        return torch.tensor([int(part) for part in text.split(",")])
    except (ValueError, RuntimeError):
        raise ValueError(f"--labels must be classes separated by commas, like 0,1,2; got {text!r}") from None


def write_images(draw: "Callable[[int, Tensor], Tensor]", classes: "Tensor", batch_size: int, path: Path) -> None:
    """Draw all images with progress; write one grid, ten or fewer a row, or a PNG file each if ``path`` is a directory.

    A grid that is too large is refused after its first batch. Files are named by number and class.
    """
    import torch

    from dd2_lightning.files import write_atomically
    from dd2_lightning.images.files import check_grid, encode_image, save_grid, to_bytes
    from dd2_lightning.progress import tracked

    columns, digits, batches = min(len(classes), 10), len(str(len(classes) - 1)), []
    starts = range(0, len(classes), batch_size)
    for start in tracked(starts, f"sample: {path.name}", len(classes), size=batch_size):
        images = to_bytes(draw(start, classes[start : start + batch_size]))
        if path.suffix:
            if start == 0:
                check_grid(len(classes), images.shape[2], images.shape[3], columns, path)
            batches.append(images)
        else:
            for i, image in enumerate(images, start):
                write_atomically(path / f"{i:0{digits}d}_class{int(classes[i])}.png", encode_image(image))
    if batches:
        save_grid(torch.cat(batches), path, columns)
