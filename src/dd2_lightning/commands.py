"""The commands that do not train: ``dd2 sample`` and ``dd2 evaluate``."""

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dd2_lightning.artifacts import load_generator, load_teacher, write_atomically
from dd2_lightning.errors import DD2Error
from dd2_lightning.models.families import AnySampling
from dd2_lightning.models.teacher import check_labels
from dd2_lightning.noise import stream
from dd2_lightning.sampling import Sampling


@torch.no_grad()
def sample(
    model: str,
    output: str,
    labels: str | None = None,
    num: int | None = None,
    steps: int = 1,
    teacher: str | None = None,
    sampling: AnySampling = Sampling(),
    split: int | None = None,
    seed: int = 0,
    batch_size: int = 500,
    device: str = "cpu",
) -> None:
    """Draw pictures with a one-step generator, or with a model of the baseline DD1.

    Args:
        model: directory of a finished csd, align or dd1 stage.
        output: a ``.png`` file for one grid, a ``.npz`` file (uint8, NHWC, ``arr_0``, and ``labels``), or a directory
            for one PNG a picture.
        labels: classes separated by commas, repeated in turn until there are ``num``; all classes by default.
        num: number of pictures; by default one a label.
        steps: 1, or k to let the teacher re-sample the last k - 1 positions. A DD1 model has 1 or 2 by itself; with k
            above 2 the teacher re-samples the k - 2 positions before its second call, or all of these with k = m + 1,
            where m is their number.
        teacher: directory of the teacher, for ``steps`` above 1, with a DD1 model above 2.
        sampling: guidance and truncation of that teacher.
        split: of a DD1 model: how many positions come out as codes, if not as many as in its config.json.
        seed: of the noise; picture i depends on the seed and i only.
        batch_size: pictures at a time.
        device: where to compute.
    """
    for name, value in (("steps", steps), ("batch_size", batch_size), ("num", 1 if num is None else num)):
        if value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    generator = load_generator(model).to(device)
    classes = torch.arange(generator.num_classes) if labels is None else parse_labels(labels)
    check_labels(classes, generator.num_classes)
    refiner = load_teacher(teacher).to(device) if teacher and steps > 1 else None
    draw = generator.sampler(steps, refiner, sampling, split)
    num = num or len(classes)
    classes = classes.repeat(-(-num // len(classes)))[:num].to(device)
    n, C = generator.layout.length, generator.token_dim
    noise = torch.randn(num, n, C, generator=stream(seed, "sample", device=device), device=device)
    chance = torch.rand(num, n, generator=stream(seed, "refine", device=device), device=device)
    pictures = []
    for part in torch.arange(num, device=device).split(batch_size):
        tokens = draw(classes[part], noise[part], chance[part])
        pictures.append(generator.decode(tokens).cpu())
    write_pictures(torch.cat(pictures), classes.cpu(), Path(output))
    print(f"{num} pictures -> {output}")


def parse_labels(text: str) -> Tensor:
    """``0,1,2`` as a tensor.

    Raises:
        ValueError: if that is not what the text is.
    """
    try:
        return torch.tensor([int(part) for part in text.split(",")])
    except ValueError:
        raise ValueError(f"--labels must be classes separated by commas, like 0,1,2; got {text!r}") from None


def write_pictures(images: Tensor, labels: Tensor, output: Path) -> None:
    """Write pictures (B, channels, H, W) in [0, 1] as a grid, an npz file or a directory of PNG files.

    Raises:
        ArtifactError: naming the path, if it cannot be written.
        DD2Error: if the ``demo`` extra is needed and missing.
    """
    if output.suffix == ".npz":
        pixels = (images * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
        buffer = io.BytesIO()
        np.savez(buffer, arr_0=pixels.numpy(), labels=labels.numpy())
        write_atomically(output, buffer.getvalue())
        return
    try:
        from dd2_lightning.evaluation.pictures import save_grid
    except ModuleNotFoundError as error:
        raise DD2Error(f"PNG output needs {error.name}: pip install 'dd2-lightning[demo]'") from error
    if output.suffix == ".png":
        save_grid(images, output, columns=min(len(images), 10))
        return
    width = len(str(len(images) - 1))
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        save_grid(image[None], output / f"{i:0{width}d}_class{int(label)}.png", columns=1)
