"""What every logged tag shows, and how it looks in a healthy run."""

import re

FCS = (
    "Error of the guidance network on generator samples, ‖v_ψ - (ε - q)‖² (L_FCS, eq. 4). Falls at once, then stays "
    "level above 0, by what cannot be known of the noise. High or rising, it lags behind the generator: raise "
    "model.guidance_updates or its rate, or lower the generator's."
)
GAP = "Score gap ‖x̂0 of the teacher - x̂0 of the guidance network‖², 0 where the two distributions agree"
GTS = "Error of the student's velocity on teacher sequences, ‖v_student - v_teacher‖² (L_GTS, eq. 6)"
CROSS_ENTROPY = "Cross-entropy of the codes, in nats a token. Falls, then levels off at the entropy of the data."
NLL = "Negative log likelihood under the teacher, in nats a sequence,"
RECONSTRUCTION = "Mean squared error of decoded images in [0, 1]. Falls and levels off."
INPUT = "‖mlp(c) - emb(c)‖², averaged over the codebook. Falls by orders of magnitude."

DESCRIPTIONS = {
    "loss/guidance": FCS,
    "loss/generator": "Value of L_CSD (eqs. 5 and 12). **It means nothing**: its gradient does, and its expectation is "
    "0 at alpha 1 in good runs and in bad ones. Watch score_gap and val/nll_one_step.",
    "loss/tokenizer": "Weighted reconstruction and commitment error of the tokenizer. Falls and levels off.",
    "loss/input": INPUT,
    "loss/student": "Cross-entropy and weighted distance of DD1, a token. Falls steadily.",
    "fcs": FCS,
    "score_gap": f"{GAP}. Rises first, while the guidance network learns what the generator draws, then falls; early "
    "positions lead. Small from the start, with a guidance loss that stays high: the guidance network lags behind.",
    "val/score_gap_generator": f"{GAP}, at generator samples. Falls towards that of the teacher's sequences.",
    "val/score_gap_teacher": f"{GAP}, at teacher sequences. Falls. Large while that of the generator is small, the "
    "generator leaves out a part of what the teacher draws.",
    "val/nll_one_step": f"{NLL} of one-step samples of the EMA. Falls to val/nll_teacher from above; below it, samples "
    "vary less than the teacher's.",
    "val/nll_teacher": f"{NLL} of its own sequences: where val/nll_one_step should arrive. Constant.",
    "gts": f"{GTS}. Falls steadily, most in the first tenth of a run. On held-out sequences it falls alike; if it "
    "rises there, the cache has too few.",
    "diffusion": "‖v_student - (ε - q)‖² on teacher sequences. Falls, then stays level above 0.",
    "cross_entropy": CROSS_ENTROPY,
    "val/cross_entropy_original": "Cross-entropy of the teacher that is adapted, in nats a token. Constant.",
    "val/cross_entropy_adapted": "Cross-entropy of the adapted teacher, in nats a token. Falls to the original's.",
    "val/ratio": "Cross-entropy of the adapted teacher over that of the original. Falls to 1; the goal is 1.005.",
    "val/input": INPUT,
    "accuracy": "Share of codes that are predicted exactly. Rises; later positions are harder.",
    "reconstruction": RECONSTRUCTION,
    "perplexity": "Effective number of codes in use. Rises towards the codebook's size; far below it, codes are dead.",
    "reconstructions": "Above: images; below: what the tokenizer makes of them.",
    "perceptual": "Distance of images and their reconstructions in the features of a network. Falls and levels off.",
    "adversarial": "The critic's mean verdict on reconstructions, with the sign turned. Wanders around a level.",
    "adversarial_weight": "Ratio of the gradients that the reconstruction and the critic send to the last layer.",
    "discriminator": "Hinge or cross-entropy loss of the critic. Near its start, it cannot tell the two apart; near 0, "
    "it can always, and its gradients say little.",
    "frechet": "Fréchet distance of features of generator images to the reference. Falls; one network's alone says "
    "that the generator learns that network, so measure with another.",
    "gradient_norm": "Norm of the gradient before clipping. Steady within a factor of ten; one that grows announces "
    "divergence.",
    "lr": "Learning rate of the last step: warm-up, plateau and decay, as configured.",
    "ema_rate": "Rate of the moving average, min(limit, (i+1)/(i+10)) after i updates.",
    "samples": "Images at fixed noise, a column a class; beside them, where a teacher is distilled, what its flow "
    "makes of the same noise. For init and dd1 these are the target, and both sides become equal. csd and align "
    "match the distribution, not each image: look for every class, and for as much variety as on the right.",
    "time": "Seconds of the run so far, over all resumes: of the processor, and by the wall.",
}
"""By tag, without the ending for positions; by quantity; or by the part before the slash."""

LINEAR = ("accuracy",)  # quantities whose heat map has a linear colour scale


def describe(tag: str) -> str:
    """Description of a tag for TensorBoard, in Markdown; empty for a tag that is not known."""
    name = re.sub(r"(_at_position/.*|_per_token|_from_\d+)$", "", re.sub(r"^val_", "val/", tag))
    for key in (
        name,
        re.sub(r"^val/(\d+_)?", "", name),
        name.partition("/")[0],
        name.partition("/")[2],
        name.partition("_")[0],
    ):
        if key in DESCRIPTIONS:
            return DESCRIPTIONS[key]
    return ""
