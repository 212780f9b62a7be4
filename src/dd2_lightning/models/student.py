"""The student: a causal backbone and a velocity head.

AR-diffusion model, guidance network and one-step generator are this one class used in three ways: its flow at
teacher tokens, its flow at generator tokens, and its flow at noise.
"""

from torch import Tensor, nn

from dd2_lightning.flow import HeadFlow
from dd2_lightning.models.backbone import Backbone
from dd2_lightning.models.head import VelocityHead
from dd2_lightning.models.layers import Cache
from dd2_lightning.models.teacher import Teacher, check_labels
from dd2_lightning.models.walk import Walk


class Student(nn.Module):
    """A learned conditional flow: a ``backbone`` over token embeddings and a ``head`` (x_t, t, features) -> v.

    It has neither guidance nor a null label.
    """

    def __init__(self, backbone: Backbone, head: VelocityHead):
        super().__init__()
        self.backbone, self.head = backbone, head
        self.layout, self.num_classes, self.token_dim = backbone.layout, backbone.num_classes, backbone.token_dim

    def flow(self, tokens: Tensor, labels: Tensor) -> HeadFlow:
        """The flow of every token given the embeddings (B, n, C) before its position."""
        return HeadFlow(self.head, self.backbone(tokens, labels))

    def walk(self, labels: Tensor, prefix: Tensor | None = None) -> Walk[HeadFlow]:
        """Go through the positions with a key-value cache, after a prefix; tokens are embeddings."""
        check_labels(labels, self.num_classes)
        if prefix is None:
            prefix = self.head.output.weight.new_zeros(len(labels), 0, self.token_dim)
        cache = Cache(self.layout.length)

        def advance(tokens: Tensor) -> HeadFlow:
            return HeadFlow(self.head, self.backbone.next_position(tokens, labels, cache))

        return Walk(self.layout, advance, lambda tokens: tokens, prefix)

    def generate(self, noise: Tensor, labels: Tensor, head_time: float = 1.0) -> Tensor:
        """One-step generation: q = ε - t_g v(ε, t_g, f), f from the shifted noise ε (B, n, C), one backbone pass.

        At a ``head_time`` t_g of 1 (the paper's) an AR-diffusion head gives conditional means, below 1 distinct tokens.
        """
        t = noise.new_full((1, 1, 1), head_time)  # one time for all tokens: its embedding is computed once
        return self.flow(noise, labels).denoise(noise[:, :, None], t)[:, :, 0]


def build_student(teacher: Teacher, **head: int) -> Student:
    """A student of a teacher: its :meth:`~Teacher.student_backbone` and a new :class:`VelocityHead` of these sizes."""
    backbone = teacher.student_backbone()
    return Student(backbone, VelocityHead(backbone.token_dim, backbone.width, **head))
