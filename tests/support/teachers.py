"""Small models of every family: what the protocol tests run on."""

import re
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from dd2_lightning.families.llamagen.config import LlamaGenConfig
from dd2_lightning.families.llamagen.model import LlamaGenTeacher
from dd2_lightning.families.table.model import TableTeacher
from dd2_lightning.families.var.config import VARConfig
from dd2_lightning.families.var.model import VARTeacher
from dd2_lightning.models.codebook_teacher import CodebookTeacher
from dd2_lightning.models.dd1_generator import DD1Generator
from dd2_lightning.models.student import Student, build_student
from helpers import circle


def randomise(module: nn.Module, std: float = 0.2) -> nn.Module:
    """Give every parameter a value: heads and gates that start at zero would make a test of them vacuous."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=std)
    return module.eval()


def table_teacher(classes: int = 2, codes: int = 4, tokens: int = 3) -> TableTeacher:
    """A random joint with full support, its codes on a circle."""
    joint = torch.randn(classes, *[codes] * tokens).mul(1.5).exp()
    return TableTeacher(joint, circle(codes), {"width": 32, "depth": 2, "heads": 2})


def two_sequences() -> TableTeacher:
    """Half of the mass on (0, 0), half on (1, 1): the example on which independent tokens fail."""
    joint = torch.zeros(1, 2, 2)
    joint[0, 0, 0] = joint[0, 1, 1] = 0.5
    return TableTeacher(joint, torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), {"width": 32, "depth": 1, "heads": 2})


def var_teacher() -> VARTeacher:
    """A VAR of three scales and 14 tokens."""
    sizes = {"width": 32, "depth": 2, "heads": 2, "ch": 32, "ch_mult": (1,), "num_res_blocks": 1}
    config = VARConfig(sides=(1, 2, 3), codes=12, token_dim=4, num_classes=3, image_channels=1, **sizes)
    teacher = randomise(VARTeacher(config))
    teacher.adopt_tokenizer()
    return teacher


def llamagen_teacher(**sizes) -> LlamaGenTeacher:
    """An adapted LlamaGen of 9 tokens, with grouped-query heads."""
    pixels = {"ch": 32, "encoder_ch_mult": (1,), "decoder_ch_mult": (1,), "num_res_blocks": 1, "z_channels": 8}
    heads = {"width": 32, "depth": 2, "heads": 4, "kv_heads": 2, "multiple_of": 32, "continuous_input": True}
    shape = {"grid": 3, "codes": 12, "token_dim": 4, "num_classes": 3, "image_channels": 1, "code_norm": 2.0}
    return randomise(LlamaGenTeacher(LlamaGenConfig(**{**pixels, **heads, **shape, **sizes})))


DOCUMENT = (Path(__file__).parents[2] / "docs/own_teacher.md").read_text()


def code_of_the_document() -> list[str]:
    """The Python blocks of ``docs/own_teacher.md``: a module, and how it is used."""
    return re.findall(r"```python\n(.*?)```", DOCUMENT, re.S)


def gru_teacher() -> CodebookTeacher:
    """The teacher of the document, under the name that it tells users to give it."""
    if "gru_teacher" not in sys.modules:
        sys.modules["gru_teacher"] = ModuleType("gru_teacher")
        exec(code_of_the_document()[0], vars(sys.modules["gru_teacher"]))
    teacher = sys.modules["gru_teacher"].GRUTeacher(tokens=4, codes=6, token_dim=2, num_classes=3, width=24)
    teacher.tokenizer.table.copy_(circle(6))
    return randomise(teacher)


FAMILIES = {"table": table_teacher, "var": var_teacher, "llamagen": llamagen_teacher, "gru": gru_teacher}


def student_of(teacher: CodebookTeacher) -> Student:
    """A student with a head and a backbone that both say something."""
    return randomise(build_student(teacher, width=16, depth=2))


def labels_for(teacher: CodebookTeacher, batch: int) -> Tensor:
    """Labels that go round the classes."""
    return torch.arange(batch) % teacher.num_classes


def random_indices(teacher: CodebookTeacher, batch: int) -> Tensor:
    """Indices (B, n)."""
    return torch.randint(len(teacher.codebook), (batch, teacher.layout.length))


DD1_TEACHERS = {
    "table": table_teacher,
    "var": var_teacher,
    "llamagen": llamagen_teacher,
    "not adapted": lambda: llamagen_teacher(continuous_input=False),
}
"""Teachers that have a network for DD1."""


def dd1_generator(teacher: CodebookTeacher, split: int = 1, second: int = 2) -> DD1Generator:
    """A generator whose every parameter says something; the teacher is frozen."""
    student = randomise(teacher.requires_grad_(False).eval().dd1_student())
    return DD1Generator(student, teacher.tokenizer, split, second).requires_grad_(False).eval()
