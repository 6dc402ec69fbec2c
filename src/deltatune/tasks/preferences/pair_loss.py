"""Losses of preference pairs, from the log-probabilities of both answers under a policy and a reference."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

LossType = Literal["sigmoid", "ipo", "hinge"]


def pair_losses(
    policy: Tensor,
    reference: Tensor,
    tokens: Tensor,
    loss_type: LossType = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The loss of each pair (B,), with h = log π(y)/π_ref(y) of the chosen answer less that of the rejected one.

    sigmoid: -log σ(βh), DPO, Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, equation 7. With label smoothing ε
    it is -(1-ε) log σ(βh) - ε log σ(-βh), where a label is wrong with probability ε (cDPO,
    https://ericmitchell.ai/cdpo.pdf). hinge: max(0, 1 - βh), SLiC, Zhao et al. 2023, https://arxiv.org/abs/2305.10425.
    ipo: (h - 1/(2β))², Azar et al. 2023, https://arxiv.org/abs/2310.12036, equation 17, with log-probabilities that are
    means over an answer's tokens.

    policy, reference: log-probabilities of whole answers in nats (B, 2), the chosen one first. tokens: their numbers of
    tokens (B, 2).
    """
    ratios = policy - reference  # (B, 2)
    if loss_type == "ipo":
        ratios = ratios / tokens.clamp(min=1)
    advantage = ratios[:, 0] - ratios[:, 1]  # (B,)
    if loss_type == "ipo":
        return (advantage - 1 / (2 * beta)) ** 2
    if loss_type == "hinge":
        return F.relu(1 - beta * advantage)
    right, wrong = F.logsigmoid(beta * advantage), F.logsigmoid(-beta * advantage)
    return -(1 - label_smoothing) * right - label_smoothing * wrong
