"""The command that draws pictures: ``dd2 sample``."""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from dd2_lightning.artifacts import check_writable, load_generator, load_teacher, sha256, state_hash
from dd2_lightning.errors import DD2Error, check_at_least_one
from dd2_lightning.evaluation.protocols import protocol_named
from dd2_lightning.evaluation.sample_sets import SampleSet
from dd2_lightning.families.registry import AnySampling
from dd2_lightning.models.teacher import check_labels
from dd2_lightning.noise import SampleNoise
from dd2_lightning.sampling import Sampling


@torch.no_grad()
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
    batch_size: int = 500,
    device: str = "cpu",
) -> None:
    """Draw pictures with a one-step generator, or with a model of the baseline DD1.

    An ``.npz`` file may be larger than memory; the same command continues after an interruption.

    Args:
        model: directory of a finished csd, align or dd1 stage.
        output: a ``.png`` file for one grid, a ``.npz`` file (uint8, NHWC, ``arr_0``, and ``labels``), or a directory
            for one PNG a picture.
        labels: classes separated by commas, repeated in turn until there are ``num``; all classes by default.
        num: number of pictures; by default one a label.
        protocol: in place of labels, with num: openai, every class equally often, or dd1, classes at random.
        steps: 1, or k to let the teacher re-sample the last k - 1 positions. A DD1 model takes 1 or 2 steps by itself;
            with more the teacher re-samples the last k - 2 of the m positions before its second call, or all m with
            k = m + 1.
        teacher: directory of the teacher, for ``steps`` above 1, with a DD1 model above 2.
        sampling: guidance and truncation of that teacher.
        split: of a DD1 model: how many positions come out as codes, if not as many as in its config.json.
        seed: of the noise; picture i depends on the seed and i only.
        batch_size: pictures at a time.
        device: where to compute.
    """
    check_at_least_one("--", steps=steps, batch_size=batch_size, num=num)
    if protocol is not None and (labels is not None or num is None):
        raise ValueError("--protocol decides on the labels: it needs --num and goes without --labels")
    check_writable(Path(output).parent)
    generator = load_generator(model).to(device)
    classes = choose_labels(generator.num_classes, labels, num, protocol, seed)
    refiner = load_teacher(teacher).to(device) if teacher and steps > 1 else None
    tokens_of = generator.sampler(steps, refiner, sampling, split)
    n, C = generator.layout.length, generator.token_dim

    def draw(start: int, labels: Tensor) -> Tensor:
        noise = SampleNoise(seed, start, len(labels), device)
        tokens = tokens_of(labels.to(device), *noise.for_generators(n, C))
        return generator.decode(tokens).cpu()

    if Path(output).suffix == ".npz":
        settings = {
            "model": state_hash(generator),
            "model_config": sha256(Path(model) / "config.json"),
            "protocol": protocol,
            "steps": steps,
            "split": split,
            "teacher": None if refiner is None else state_hash(refiner),
            "sampling": None if refiner is None else asdict(refiner.resolve_sampling(sampling)),
            "seed": seed,
            "device": torch.device(device).type,
        }
        SampleSet(output, classes, batch_size, settings).complete(draw)
    elif Path(output).suffix == ".png":
        starts = range(0, len(classes), batch_size)
        pictures = [draw(start, classes[start : start + batch_size]) for start in starts]
        write_pictures(torch.cat(pictures), classes, Path(output))
    else:
        for start in range(0, len(classes), batch_size):
            part = classes[start : start + batch_size]
            write_pictures(draw(start, part), part, Path(output), start, len(classes))
    print(f"{len(classes)} pictures -> {output}")


def choose_labels(
    num_classes: int, labels: str | None = None, num: int | None = None, protocol: str | None = None, seed: int = 0
) -> Tensor:
    """Classes of all pictures, (num,), as the options of ``dd2 sample`` say.

    Raises:
        ValueError: for labels that are none, or no classes, or numbers that a protocol does not have.
    """
    if protocol is not None:
        return protocol_named(protocol).labels(num, num_classes, seed)
    classes = torch.arange(num_classes) if labels is None else parse_labels(labels)
    check_labels(classes, num_classes)
    num = num or len(classes)
    return classes.repeat(-(-num // len(classes)))[:num]


def parse_labels(text: str) -> Tensor:
    """``0,1,2`` as a tensor.

    Raises:
        ValueError: if that is not what the text is.
    """
    try:
        return torch.tensor([int(part) for part in text.split(",")])
    except ValueError:
        raise ValueError(f"--labels must be classes separated by commas, like 0,1,2; got {text!r}") from None


def write_pictures(images: Tensor, labels: Tensor, output: Path, start: int = 0, total: int | None = None) -> None:
    """Write pictures (B, channels, H, W) in [0, 1] as a grid or as PNG files in a directory.

    Args:
        images: the pictures.
        labels: their classes, (B,).
        output: a ``.png`` file, or a directory.
        start: number of the first picture, in the names of files in a directory.
        total: pictures in the directory in the end.

    Raises:
        ArtifactError: naming the path, if it cannot be written.
        DD2Error: if the ``demo`` extra is needed and missing.
    """
    try:
        from dd2_lightning.evaluation.pictures import save_grid
    except ModuleNotFoundError as error:
        raise DD2Error(f"PNG output needs {error.name}: pip install 'dd2-lightning[demo]'") from error
    if output.suffix == ".png":
        save_grid(images, output, columns=min(len(images), 10))
        return
    width = len(str((total or len(images)) - 1))
    for i, (image, label) in enumerate(zip(images, labels, strict=True), start):
        save_grid(image[None], output / f"{i:0{width}d}_class{int(label)}.png", columns=1)
