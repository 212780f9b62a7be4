"""A teacher with pictures that needs no training: an exact joint whose codes are 8x8 patterns; pictures of stripes."""

import torch
import torch.nn.functional as F

from dd2_lightning.families.table.model import CodebookOnly, TableTeacher
from dd2_lightning.models.student import build_student
from dd2_lightning.models.tokenizer import TokenizerLosses, VQTokenizer
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


def check_training(tokenizer: VQTokenizer, iterations: int) -> TokenizerLosses:
    """Training on stripes makes the error small, and what is reported is that of decoded codes; the last losses."""
    generator, images = torch.Generator().manual_seed(0), stripes(16)
    optimizer, losses = torch.optim.Adam(tokenizer.parameters(), 5e-3), []
    for _ in range(iterations):
        losses.append(tokenizer.training_losses(images, generator))
        optimizer.zero_grad()
        losses[-1].loss.backward()
        optimizer.step()
    assert losses[-1].reconstruction < losses[0].reconstruction / 4
    error = F.mse_loss(tokenizer.decode(tokenizer.codebook[tokenizer.encode(images)]), images)
    assert error < images.var() / 4
    torch.testing.assert_close(error, losses[-1].reconstruction, rtol=0.5, atol=0.01)
    return losses[-1]


def idle_parameters(tokenizer: VQTokenizer) -> list[str]:
    """Parameters that get no gradient from the tokenizer's loss."""
    tokenizer.training_losses(stripes(8)).loss.backward()
    return [name for name, value in tokenizer.named_parameters() if value.grad is None or not value.grad.any()]
