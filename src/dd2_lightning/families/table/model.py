"""The table teacher: a joint distribution written out in full, so that its conditionals and distances are exact."""

from typing import Any

import torch
from torch import Tensor, nn

from dd2_lightning.layout import Layout
from dd2_lightning.models.backbone import Backbone
from dd2_lightning.models.codebook import nearest_code
from dd2_lightning.models.codebook_teacher import CodebookTeacher
from dd2_lightning.models.dd1 import DD1Student
from dd2_lightning.models.layers import (
    AdaLNBlock,
    AdaptiveNorm,
    Cache,
    exact_linear,
    fourier_features,
    visibility,
)
from dd2_lightning.models.tokenizer import Tokenizer
from dd2_lightning.sampling import Sampling


def normalise(joint: Tensor) -> Tensor:
    """Make each class's table (classes, V, ..., V) sum to one."""
    return joint / joint.flatten(1).sum(1).view(-1, *[1] * (joint.ndim - 1))


class TableBackbone(Backbone):
    """Looks up log p(q_i | q_<i, class); its features *are* the logits. Embeddings are snapped to the codebook (V, C).

    The joint (classes, V, ..., V) has an axis for each of the n tokens.
    """

    def __init__(self, joint: Tensor, codebook: Tensor):
        super().__init__()
        classes, V, *rest = joint.shape
        self.layout = Layout((1,) * (len(rest) + 1))
        self.num_classes, self.token_dim, self.width = classes, codebook.shape[1], V
        joint = normalise(joint)
        joint = torch.cat([joint, joint.mean(0, keepdim=True)])  # the null label: the mixture of classes
        self.codebook: Tensor
        self.register_buffer("codebook", codebook.clone())
        for i in range(self.layout.length):
            p = joint.reshape(classes + 1, V**i, V, -1).sum(-1)
            mass = p.sum(-1, keepdim=True)
            p = torch.where(mass > 0, p / mass, 1 / V)  # any distribution may follow an impossible prefix
            self.register_buffer(f"log_p{i}", p.log())

    def forward(self, tokens: Tensor, labels: Tensor, cache: Cache | None = None) -> Tensor:
        start, stop = self.new_positions(tokens, cache)
        indices = nearest_code(tokens, self.codebook)
        prefix = torch.zeros_like(labels)
        rows = []
        for i in range(stop):
            if i >= start:
                rows.append(self.get_buffer(f"log_p{i}")[labels, prefix])
            if i < stop - 1:
                prefix = prefix * self.width + indices[:, i]
        return torch.stack(rows, 1)


class LogitFeatures(nn.Module):
    """A classifier for features that are logits already."""

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        return features


class CodebookOnly(Tokenizer):
    """A codebook without pixel networks."""

    has_images = False

    def __init__(self, codebook: Tensor, layout: Layout):
        super().__init__()
        self.layout = layout
        self._codebook: Tensor
        self.register_buffer("_codebook", codebook)

    @property
    def codebook(self) -> Tensor:
        return self._codebook


class CausalBackbone(Backbone):
    """A small causal transformer over embeddings: the student of a table, one token a position.

    Slot i reads token i-1, slot 0 the class; the class also modulates every block. ``frequencies`` counts the
    :func:`fourier_features` of the input.
    """

    def __init__(
        self,
        layout: Layout,
        token_dim: int,
        num_classes: int,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        frequencies: int = 0,
    ):
        super().__init__()
        if max(layout.counts) > 1:
            raise ValueError(f"this backbone shifts by one token a position, got the layout {layout.counts}")
        self.layout, self.token_dim, self.width, self.num_classes = layout, token_dim, width, num_classes
        self.frequencies = frequencies
        self.input = nn.Linear(token_dim * (1 + 2 * frequencies), width)
        self.classes = nn.Embedding(num_classes + 1, width)
        self.place = nn.Parameter(torch.randn(layout.length, width) * 0.02)
        self.blocks = nn.ModuleList(AdaLNBlock(width, heads) for _ in range(depth))

    def forward(self, tokens: Tensor, labels: Tensor, cache: Cache | None = None) -> Tensor:
        start, stop = self.new_positions(tokens, cache)
        c = self.classes(labels)
        new = slice(start, stop)
        x = self.shifted(c, lambda q: self.input(fourier_features(q, self.frequencies)), tokens, start, stop)
        x, mask = x + self.place[new], visibility(self.layout, new, tokens.device)
        for i, block in enumerate(self.blocks):
            x = block(x, c, mask, cache.layers[i] if cache else None)
        return x


class DD1Causal(DD1Student):
    """A small transformer with fresh weights over any layout; the class also modulates every block.

    ``frequencies`` counts the :func:`fourier_features` of tokens and noise.
    """

    def __init__(
        self,
        layout: Layout,
        token_dim: int,
        num_classes: int,
        codes: int,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        frequencies: int = 0,
    ):
        super().__init__(layout, token_dim, num_classes, width)
        self.frequencies = frequencies
        self.input = nn.Linear(token_dim * (1 + 2 * frequencies), width)
        self.classes = nn.Embedding(num_classes, width)
        self.place = nn.Parameter(torch.randn(len(self.position), width) * 0.02)
        self.blocks = nn.ModuleList(AdaLNBlock(width, heads) for _ in range(depth))
        self.head_nm = AdaptiveNorm(width)
        self.head = nn.Linear(width, codes)

    def features(self, x: Tensor, labels: Tensor, flags: Tensor) -> tuple[Tensor, Tensor]:
        c = self.classes(labels)
        h = torch.cat([c[:, None], self.input(fourier_features(x, self.frequencies))], 1) + self.place + flags
        for block in self.blocks:
            h = block(h, c, self.mask)
        return h[:, 1:], c

    def classify(self, h: Tensor, c: Tensor) -> Tensor:
        return exact_linear(self.head, self.head_nm(h, c))


class TableTeacher(CodebookTeacher):
    """An exact joint distribution over token sequences, without weights that a student could start from.

    The joint, (classes, V, ..., V), need not be normalised; ``student`` has width, depth, heads and frequencies of the
    student's :class:`CausalBackbone`.
    """

    def __init__(self, joint: Tensor, codebook: Tensor, student: dict | None = None):
        backbone = TableBackbone(joint, codebook)
        super().__init__(backbone, LogitFeatures(), CodebookOnly(codebook, backbone.layout))
        self.student = student or {}
        sizes = {"classes": self.num_classes, "codes": len(codebook), "tokens": self.layout.length}
        self.config = {**sizes, "token_dim": self.token_dim, "student": self.student}
        self.joint: Tensor
        self.register_buffer("joint", normalise(joint))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "TableTeacher":
        joint = torch.ones(config["classes"], *[config["codes"]] * config["tokens"])
        return cls(joint, torch.zeros(config["codes"], config["token_dim"]), config["student"])

    def guide(self, cond: Tensor, uncond: Tensor, sampling: Sampling, positions: Tensor) -> Tensor:
        # where a token is impossible there is nothing to extrapolate
        impossible = cond.isinf() | uncond.isinf()
        return torch.where(impossible, cond, super().guide(cond, uncond, sampling, positions))

    def student_backbone(self) -> CausalBackbone:
        return CausalBackbone(self.layout, self.token_dim, self.num_classes, **self.student)

    def dd1_student(self) -> DD1Causal:
        return DD1Causal(self.layout, self.token_dim, self.num_classes, len(self.codebook), **self.student)

    def total_variation(self, indices: Tensor, label: int = 0) -> tuple[float, float]:
        """Distance of drawn sequences (samples, n) from the joint, and their mass on impossible ones."""
        V = self.codebook.shape[0]
        joint = self.joint[label].flatten()
        index = torch.zeros_like(indices[:, 0])
        for column in indices.unbind(1):
            index = index * V + column
        drawn = torch.bincount(index, minlength=len(joint)) / len(indices)
        return (drawn - joint).abs().sum().item() / 2, drawn[joint == 0].sum().item()
