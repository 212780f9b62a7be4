"""A teacher with pictures that needs no training: an exact joint whose codes are 8x8 patterns."""

import torch

from dd2_lightning.families.table.model import CodebookOnly, TableTeacher
from dd2_lightning.models.student import build_student
from helpers import circle

CLASSES, CODES, TOKENS = 10, 5, 3


class ToyTokenizer(CodebookOnly):
    """Codes are 8x8 patterns: every token adds a smooth pattern of its own position."""

    has_images = True

    def __init__(self, codebook, layout):
        super().__init__(codebook, layout)
        generator = torch.Generator().manual_seed(5)
        self.register_buffer("patterns", torch.randn(layout.length * codebook.shape[1], 64, generator=generator))

    def encode(self, images):
        return (images.flatten(1)[:, : self.layout.length] * 100).long() % len(self.codebook)

    def decode(self, tokens):
        return (tokens.flatten(1) @ self.patterns).sigmoid().unflatten(1, (1, 8, 8))


def toy_teacher(classes=CLASSES):
    generator = torch.Generator().manual_seed(1)
    joint = torch.rand(classes, *[CODES] * TOKENS, generator=generator) ** 6 + 1e-5
    teacher = TableTeacher(joint, circle(CODES), {"width": 16, "depth": 1, "heads": 2})
    teacher.tokenizer = ToyTokenizer(circle(CODES), teacher.layout)
    return teacher.requires_grad_(False).eval()


def toy_student(teacher):
    torch.manual_seed(2)
    student = build_student(teacher, width=16, depth=1)
    torch.nn.init.normal_(student.head.output.weight, std=0.3)
    return student.requires_grad_(False).eval()


def stripes(batch: int) -> torch.Tensor:
    """Pictures (B, 1, 4, 4) of one grey on the left and another on the right."""
    return torch.rand(batch, 1, 1, 2).repeat_interleave(2, 3).expand(-1, -1, 4, -1).contiguous()
