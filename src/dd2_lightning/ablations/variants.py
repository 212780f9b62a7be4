"""What is varied, and what the paper and the prototype found: data, and nothing else."""

from dataclasses import dataclass, field
from typing import Any

BASELINE = "baseline"


@dataclass(frozen=True)
class Variant:
    """A change of one thing against the baseline.

    Attributes:
        name: on the command line, in tables and pictures.
        changes: ``stage.setting`` to its value; ``stage.setting.part`` of a setting with parts.
        align: share of the iterations that stage 3 takes, at the end.
        same_time: as many iterations as take the baseline's time, an update of either network costing the same.
    """

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    align: float = 0.0
    same_time: bool = False


@dataclass(frozen=True)
class Question:
    """Variants that are compared with each other.

    Attributes:
        name: on the command line and in file names.
        title: of its section.
        variants: one of them may be the baseline; it is not run twice.
    """

    name: str
    title: str
    variants: tuple[Variant, ...]


def adam_beta1(beta1: float) -> dict[str, Any]:
    """β₁ of both networks; β₂ as it is."""
    return {f"csd.{network}_optimizer.betas": [beta1, 0.95] for network in ("guidance", "generator")}


def weights(first: int, last: int) -> Variant:
    """Position weights, linear from the first to the last position."""
    return Variant(f"positions-{first}-{last}", {"csd.position_weights": [float(first), float(last)]})


QUESTIONS = (
    Question(
        "loss",
        "Loss of stage 1",
        (Variant("gts", {"init.loss": "gts"}), Variant("diffusion", {"init.loss": "diffusion"})),
    ),
    Question(
        "initialise",
        "What starts from stage 1",
        tuple(Variant(f"init-{who}", {"csd.initialise": who}) for who in ("both", "generator", "guidance", "none")),
    ),
    Question(
        "updates",
        "K, guidance updates a generator update",
        (
            *(Variant(f"K{K}", {"csd.guidance_updates": K}) for K in (1, 2, 5)),
            *(Variant(f"K{K}-same-time", {"csd.guidance_updates": K}, same_time=True) for K in (1, 2, 5)),
        ),
    ),
    Question(
        "form",
        "Form of the generator's loss",
        (
            *(Variant(f"sid-{alpha}", {"csd.form": "sid", "csd.alpha": alpha}) for alpha in (0.8, 1.0, 1.2)),
            Variant("dmd", {"csd.form": "dmd", "csd.alpha": 1.0}),
        ),
    ),
    Question(
        "normaliser",
        "What the weight ω is averaged over",
        tuple(Variant(f"normaliser-{over}", {"csd.normaliser": over}) for over in ("sample", "token", "none")),
    ),
    Question("positions", "Weights of the first and the last position", (weights(1, 1), weights(3, 1), weights(1, 3))),
    Question(
        "head-time",
        "t_g, time at which the generator calls its head",
        tuple(Variant(f"t_g-{time}", {"csd.head_time": time}) for time in (1.0, 0.6, 0.4, 0.2)),
    ),
    Question(
        "beta1",
        "Adam's β₁ of both networks",
        tuple(Variant(f"beta1-{beta1}", adam_beta1(beta1)) for beta1 in (0.0, 0.9)),
    ),
    Question(
        "stages", "Stage 3, at equal iterations in all", (Variant("two-stages"), Variant("three-stages", align=0.25))
    ),
)


@dataclass(frozen=True)
class Finding:
    """A claim that figures can bear out or not: what ``better`` names is smaller than what ``worse`` names.

    Attributes:
        question: name of its question.
        claim: in words.
        paper: what the paper has (FID on ImageNet).
        prototype: what a single-seed prototype had.
        better: variant and figure, see ``analysis.FIGURES``.
        worse: variant and figure.
        differs: False for the claim that there is no difference, which figures can refute only.
    """

    question: str
    claim: str
    paper: str
    prototype: str
    better: tuple[str, str]
    worse: tuple[str, str]
    differs: bool = True


def distances(better: str, worse: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """Two variants at equal iterations."""
    return (better, "distance"), (worse, "distance")


FINDINGS = (
    Finding(
        "loss",
        "GTS learns the teacher's velocity better than the plain diffusion loss",
        "appears: FID-5k of the AR-diffusion model 11.41, plain 17.98",
        "appears: velocity error 0.6 to 0.85 times as large",
        ("gts", "velocity_error"),
        ("diffusion", "velocity_error"),
    ),
    Finding(
        "loss",
        "stage 2 is better after GTS than after the plain diffusion loss",
        "not given",
        "not run",
        *distances("gts", "diffusion"),
    ),
    Finding(
        "initialise",
        "a generator that starts from stage 1 is better than a fresh one",
        "appears: 14.77, fresh 16.08 (LlamaGen-L); collapse (VAR-d24)",
        "appears: 0.216, fresh 0.272",
        *distances("init-both", "init-guidance"),
    ),
    Finding(
        "initialise",
        "a guidance network that starts from stage 1 is better than a fresh one",
        "appears: 14.77, fresh 21.76 (LlamaGen-L); collapse (VAR-d24)",
        "does not appear: 0.216, fresh 0.215",
        *distances("init-both", "init-generator"),
    ),
    Finding(
        "initialise",
        "the guidance network's start matters more than the generator's",
        "appears: 16.08 against 21.76 (LlamaGen-L)",
        "reversed: 0.272 against 0.215",
        *distances("init-guidance", "init-generator"),
    ),
    Finding(
        "initialise",
        "both starting from stage 1 is better than neither",
        "not given",
        "appears: 0.216 against 0.257",
        *distances("init-both", "init-none"),
    ),
    Finding(
        "updates",
        "K = 5 is better than K = 1 at equal iterations",
        "not given; it takes 5, then 2",
        "appears, with other settings changed as well",
        *distances("K5", "K1"),
    ),
    Finding(
        "updates",
        "K = 5 is better than K = 1 at equal seconds",
        "not given; it takes 5, then 2",
        "no difference: 0.225 against 0.196, other settings changed as well",
        ("K5-same-time", "seconds"),
        ("K1-same-time", "seconds"),
    ),
    Finding(
        "form",
        "SiD is better than DMD",
        "appears: 8.35 against 15.70 (VAR-d16), 7.95 against 8.13 (LlamaGen-L)",
        "reversed: 0.253 against 0.216; a tie on digits",
        *distances("sid-1.0", "dmd"),
    ),
    Finding(
        "form",
        "SiD with α = 0.8 is as good as with α = 1",
        "appears: 8.28 against 8.35",
        "1 is better: 0.23 against 0.26",
        *distances("sid-1.0", "sid-0.8"),
        differs=False,
    ),
    Finding(
        "form",
        "SiD with α = 1.2 is as good as with α = 1",
        "appears: 8.23 against 8.35",
        "1 is better: 0.27 against 0.42",
        *distances("sid-1.0", "sid-1.2"),
        differs=False,
    ),
    Finding(
        "normaliser",
        "ω over a sample is better than over a token",
        "appears: 8.35 against 10.85",
        "appears with β₁ = 0.9; no difference with 0",
        *distances("normaliser-sample", "normaliser-token"),
    ),
    Finding(
        "normaliser",
        "ω over a sample is better than none",
        "not given",
        "appears: 0.234 against 0.280",
        *distances("normaliser-sample", "normaliser-none"),
    ),
    Finding(
        "positions",
        "weights 3 to 1 are better than equal ones",
        "appears: 6.91 against 8.35",
        "no difference: 0.209 against 0.216",
        *distances("positions-3-1", "positions-1-1"),
    ),
    Finding(
        "positions",
        "equal weights are better than 1 to 3",
        "appears: 8.35 against 10.44",
        "not run",
        *distances("positions-1-1", "positions-1-3"),
    ),
    Finding(
        "head-time",
        "t_g = 0.4 is better than 1",
        "not given; it takes 1",
        "appears: 0.216 against 0.234",
        *distances("t_g-0.4", "t_g-1.0"),
    ),
    Finding(
        "head-time",
        "t_g = 0.4 is better than 0.2",
        "not given",
        "appears: 0.183 against 0.216",
        *distances("t_g-0.4", "t_g-0.2"),
    ),
    Finding(
        "beta1",
        "β₁ = 0 is better than 0.9",
        "not given; it takes 0.9",
        "appears: 0.198 against 0.234",
        *distances("beta1-0.0", "beta1-0.9"),
    ),
    Finding(
        "stages",
        "stage 3 is better than more of stage 2",
        "appears, without equal iterations: 6.21 after 8.35",
        "does not appear, without equal iterations: 0.100 after 0.088",
        *distances("three-stages", "two-stages"),
    ),
    Finding(
        "stages",
        "the generator fluctuates less after alignment (second half of stage 3) than before (last quarter of stage 2)",
        "not given",
        "not measured",
        ("three-stages", "fluctuation after"),
        ("three-stages", "fluctuation before"),
    ),
    Finding(
        "stages",
        "the EMA fluctuates less than the generator that it follows",
        "not given; the EMA is what it evaluates",
        "not measured",
        ("two-stages", "fluctuation ema"),
        ("two-stages", "fluctuation raw"),
    ),
)
