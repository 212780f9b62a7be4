"""Teachers with a codebook, whose flow follows exactly from the logits of a classifier."""

from collections.abc import Callable
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn

from dd2_lightning.errors import InputTypeError
from dd2_lightning.flow import CodebookFlow, chunks
from dd2_lightning.models.backbone import Backbone
from dd2_lightning.models.codebook import nearest_code
from dd2_lightning.models.layers import Cache
from dd2_lightning.models.teacher import Teacher, check_labels
from dd2_lightning.models.tokenizer import Tokenizer
from dd2_lightning.models.truncation import LOGITS, draw, keep_likeliest
from dd2_lightning.models.walk import Walk
from dd2_lightning.sampling import Sampling


class CodebookTeacher(Teacher):
    """A causal backbone, a classifier over a codebook, and the tokenizer the codebook belongs to.

    The classifier maps (features (B, n, d), labels) to logits (B, n, V). A family overrides :meth:`guide`,
    :meth:`truncate` and :meth:`choose` where it differs.
    """

    def __init__(self, backbone: Backbone, classifier: nn.Module, tokenizer: Tokenizer):
        super().__init__()
        self.backbone, self.classifier, self.tokenizer = backbone, classifier, tokenizer
        self.layout, self.num_classes, self.token_dim = backbone.layout, backbone.num_classes, backbone.token_dim
        self.positions: Tensor
        self.register_buffer("positions", self.layout.position_of_token(torch.device("cpu")), persistent=False)

    @property
    def codebook(self) -> Tensor:
        """Codebook vectors as they are used, (V, C)."""
        return self.tokenizer.codebook

    def are_indices(self, tokens: Tensor) -> bool:
        """Whether tokens are integer indices (B, n) or floating embeddings (B, n, C); refuses anything else."""
        integer = not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool)
        if tokens.ndim == 2 and integer:
            return True
        if tokens.ndim == 3 and tokens.is_floating_point() and tokens.shape[-1] == self.token_dim:
            return False
        raise InputTypeError(
            f"tokens are integer indices (B, n) or floating embeddings (B, n, {self.token_dim}), "
            f"got {tokens.dtype} {tuple(tokens.shape)}"
        )

    def embed(self, tokens: Tensor) -> Tensor:
        return self.tokenizer.look_up(tokens.long()) if self.are_indices(tokens) else tokens  # a byte would be a mask

    def snap(self, tokens: Tensor) -> Tensor:
        """Nearest code of every token: (B, n, C) -> indices (B, n)."""
        return nearest_code(tokens, self.codebook)

    def prepare(self, tokens: Tensor) -> Tensor:
        """Convert indices (B, n) or embeddings (B, n, C) to the backbone's input, by default embeddings.

        A family that reads indices only refuses embeddings with an ``InputTypeError``.
        """
        return self.embed(tokens)

    def guide(self, cond: Tensor, uncond: Tensor, sampling: Sampling, positions: Tensor) -> Tensor:
        """Classifier-free guidance of logits (B, n', V): uncond + s (cond - uncond), with the null label's ``uncond``.

        A family has its convention for the ``guidance_scale`` s, and may use the position of each token, (n',).
        """
        assert sampling.guidance_scale is not None
        return uncond + sampling.guidance_scale * (cond - uncond)

    def truncate(self, logits: Tensor, sampling: Sampling) -> Tensor:
        """Temperature (1e-5 at least), top-k and top-p on guided logits (B, n', V); tokens that are cut become -inf."""
        return keep_likeliest(logits / max(sampling.temperature, 1e-5), sampling.top_k, sampling.top_p)

    def choose(
        self, flow: CodebookFlow, sampling: Sampling, uniforms: Tensor, position: int, rng: torch.Generator | None
    ) -> Tensor:
        """Draw the tokens of one position from ``uniforms`` (B, n_i): indices (B, n_i), or embeddings for soft tokens.

        A family draws further numbers from ``rng``.
        """
        return draw(flow, uniforms)

    def logits(self, tokens: Tensor, labels: Tensor, guidance_scale: float | None = None) -> Tensor:
        """Next-token logits (B, n, V) before truncation, in float32; without a ``guidance_scale`` the conditional ones.

        Tokens are as in :meth:`flow`; a ``ValueError`` refuses labels that no class has.
        """
        check_labels(labels, self.num_classes)
        sampling = self.resolve_sampling(Sampling(guidance_scale))
        return self._guided_logits(self.prepare(tokens), labels, sampling, len(self.codebook))

    def predict(self, prepared: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, n, V) of one pass over :meth:`prepare`-d tokens; labels (B,) may be the null label."""
        return self.classifier(self.backbone(prepared, labels), labels).float()

    def _guided_logits(
        self,
        tokens: Tensor,
        labels: Tensor,
        sampling: Sampling,
        codes: int,
        cache: Cache | None = None,
        finish: Callable[[Tensor], Tensor] = lambda logits: logits,
    ) -> Tensor:
        """Guided logits (B, n', V) after ``finish``, a few sequences at a time: those of both halves would be large."""
        B, guided = len(labels), sampling.guidance_scale is not None
        if guided:
            tokens, labels = torch.cat([tokens, tokens]), torch.cat([labels, torch.full_like(labels, self.num_classes)])
        read = self.backbone if cache is None else partial(self.backbone.next_position, cache=cache)
        features, labels = (x.unflatten(0, (1 + guided, B)) for x in (read(tokens, labels), labels))
        span = self.layout.span(cache.positions - 1) if cache else slice(features.shape[2])

        def logits_of(rows: slice) -> Tensor:
            logits = self.classifier(features[:, rows].flatten(0, 1), labels[:, rows].flatten()).float()
            if guided:
                cond, uncond = logits.chunk(2)
                logits = self.guide(cond, uncond, sampling, self.positions[span])
            return finish(logits)

        size = max(1, LOGITS // (codes * features.shape[0] * features.shape[2]))
        parts = [logits_of(rows) for rows in chunks(B, size)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _flow(
        self,
        tokens: Tensor,
        labels: Tensor,
        sampling: Sampling | None,
        cache: Cache | None = None,
        codebook: Tensor | None = None,
    ) -> CodebookFlow:
        sampling, codebook = self.resolve_sampling(sampling), self.codebook if codebook is None else codebook

        def log_p(logits: Tensor) -> Tensor:
            return self.truncate(logits, sampling).log_softmax(-1)

        return CodebookFlow(codebook, self._guided_logits(tokens, labels, sampling, len(codebook), cache, log_p))

    def flow(self, tokens: Tensor, labels: Tensor, sampling: Sampling | None = None) -> CodebookFlow:
        return self._flow(self.prepare(tokens), labels, sampling)

    def walk(
        self, labels: Tensor, sampling: Sampling | None = None, prefix: Tensor | None = None
    ) -> Walk[CodebookFlow]:
        check_labels(labels, self.num_classes)
        if prefix is None:
            prefix = labels.new_zeros(len(labels), 0)
        cache = Cache(self.layout.length)
        advance = partial(self._flow, labels=labels, sampling=sampling, cache=cache, codebook=self.codebook)
        return Walk(self.layout, advance, self.prepare, self.prepare(prefix))

    @torch.no_grad()
    def sample(
        self,
        labels: Tensor,
        sampling: Sampling | None = None,
        generator: torch.Generator | None = None,
        prefix: Tensor | None = None,
        uniforms: Tensor | None = None,
        until: int | None = None,
    ) -> Tensor:
        sampling = self.resolve_sampling(sampling)
        walk = self.walk(labels, sampling, prefix)
        if uniforms is None:
            uniforms = torch.rand(len(labels), self.layout.length, generator=generator, device=labels.device)
        drawn = [labels.new_zeros(len(labels), 0)]
        if prefix is not None and walk.position:
            drawn.append(prefix if self.are_indices(prefix) else self.snap(prefix))
        until = self.layout.num_positions if until is None else until
        for flow in islice(walk, max(0, until - walk.position)):
            drawn.append(self.choose(flow, sampling, uniforms[:, walk.span], walk.position, generator))
            walk.append(drawn[-1])
        if drawn[-1].is_floating_point():
            drawn = [self.embed(tokens) for tokens in drawn]
        return torch.cat(drawn, 1)

    @torch.no_grad()
    def refine(
        self,
        tokens: Tensor,
        labels: Tensor,
        steps: int,
        sampling: Sampling | None = None,
        generator: torch.Generator | None = None,
        uniforms: Tensor | None = None,
    ) -> Tensor:
        """Teacher-refined sampling (alg. 4): re-sample the last ``steps - 1`` positions of a one-step draft (B, n, C).

        The total steps are k: 1 returns the draft, N + 1 is the teacher itself. Others are as in :meth:`sample`.
        """
        self.check_steps(steps)
        if steps == 1:
            return tokens
        kept = tokens[:, : self.layout.offsets[self.layout.num_positions + 1 - steps]]
        drawn = self.sample(labels, sampling, generator, kept, uniforms)
        return torch.cat([kept, self.embed(drawn[:, kept.shape[1] :])], 1)

    def check_steps(self, steps: int) -> None:
        """Refuse a number of steps outside 1..N+1, with a ``ValueError``."""
        N = self.layout.num_positions
        if not 1 <= steps <= N + 1:
            raise ValueError(f"steps must be in 1..{N + 1} for a teacher of {N} positions, got {steps}")


def require_codebook(teacher: Teacher) -> CodebookTeacher:
    """The teacher itself, for code that needs its codebook; an ``InputTypeError`` if it has none."""
    if not isinstance(teacher, CodebookTeacher):
        raise InputTypeError(f"this needs a teacher with a codebook; {type(teacher).__name__} has none")
    return teacher
