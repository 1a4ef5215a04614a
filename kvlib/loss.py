"""The losses of distillation: softened KL mixed with the loss on the labels, and two on hidden states."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kvlib.bottleneck import DiscreteKeyValueBottleneck
from kvlib.search import full_precision


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor | None = None,
    temperature: float = 2.0,
    alpha: float = 1.0,
) -> Tensor:
    r"""Mix the loss against the teacher with the loss against the labels.

    .. math:: L = \alpha T^2 \, \mathrm{KL}(p^{T}_{teacher} \Vert p^{T}_{student})
              + (1 - \alpha) \, \mathrm{CE}(p_{student}, y),
              \quad p^{T} = \mathrm{softmax}(z / T)

    for logits z ``(B, num_labels)`` and labels y ``(B,)``, int64, both terms means over the batch (Hinton, Vinyals
    & Dean 2015, section 2). A larger T softens both distributions; alpha is the weight of the *teacher's* (soft)
    loss, while some libraries mean the opposite. The teacher's logits are taken without gradient, and may be None
    if alpha is 0, as the labels may if it is 1. With one logit (regression, STS-B) labels are scores, the first
    term is the squared error to the teacher's, the second that to the label, and T has no part.

    Raises ValueError unless T > 0 and alpha is from 0 to 1, if shapes disagree, or if a term's input is missing.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}, expected a positive, finite number")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, expected the weight of the teacher's loss, from 0 to 1")
    if alpha > 0 and teacher_logits is None:
        raise ValueError(f"alpha is {alpha} but there are no teacher_logits; pass them or use alpha=0")
    if alpha < 1 and labels is None:
        raise ValueError(f"alpha is {alpha} but there are no labels; pass them or use alpha=1")
    if teacher_logits is not None and teacher_logits.shape != student_logits.shape:
        # a (B,) against a (B, 1) would broadcast to (B, B) without a word
        raise ValueError(
            f"teacher_logits {tuple(teacher_logits.shape)} and student_logits {tuple(student_logits.shape)} "
            "must have the same shape"
        )
    loss = student_logits.new_zeros(())
    if alpha > 0:
        loss = loss + alpha * _soft_loss(student_logits, teacher_logits.detach(), temperature)
    if alpha < 1:
        loss = loss + (1 - alpha) * _label_loss(student_logits, labels)
    return loss


def _soft_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    if student_logits.shape[-1] == 1:
        return F.mse_loss(student_logits, teacher_logits)
    student = F.log_softmax(student_logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
    # the gradient of the softened KL shrinks with 1/T²; the factor keeps its weight against the label loss
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def _label_loss(student_logits: Tensor, labels: Tensor) -> Tensor:
    if labels.shape != student_logits.shape[:1]:
        raise ValueError(f"labels has shape {tuple(labels.shape)}, expected ({len(student_logits)},)")
    if student_logits.shape[-1] == 1:
        return F.mse_loss(student_logits.squeeze(-1), labels.to(student_logits.dtype))
    return F.cross_entropy(student_logits, labels)


def layer_loss(
    student_states: Sequence[Tensor], teacher_states: Sequence[Tensor], attention_mask: Tensor
) -> Tensor:
    r"""Pull the hidden states of a student of m layers to those of a teacher of n, layer by layer.

    .. math:: L = \frac{1}{m} \sum_{i=1}^m
              \frac{\operatorname{mean} (s_i - t_j)^2}{\operatorname{var} t_j}, \quad j = \lfloor i n / m \rfloor

    for each example, then the mean over the batch. s and t are the states after each layer, those after the
    embeddings left out, ``(B, T, dim)``; mean and variance are over an example's real tokens and their dimensions
    (TinyBERT's uniform layer map, Jiao et al. 2020, section 3; the variance brings all layers to one scale). No
    gradient reaches the teacher's. Raises ValueError if shapes differ, or if m > n.
    """
    if len(student_states) > len(teacher_states):
        raise ValueError(f"the student has {len(student_states)} layers, the teacher only {len(teacher_states)}")
    # the weight of each number in its example's mean, 0 at padding
    weight = attention_mask / attention_mask.sum(1, keepdim=True) / teacher_states[0].shape[-1]
    weight = weight.unsqueeze(-1)  # (B, T, 1)
    losses = []
    for layer, states in enumerate(student_states, start=1):
        theirs = teacher_states[layer * len(teacher_states) // len(student_states) - 1].detach().float()
        _same_shape(states, theirs)
        variance = (theirs.square() * weight).sum((1, 2)) - (theirs * weight).sum((1, 2)).square()  # (B,)
        error = ((states.float() - theirs).square() * weight).sum((1, 2))
        losses.append((error / variance).mean())
    return torch.stack(losses).mean()


def alignment_loss(
    bottleneck: DiscreteKeyValueBottleneck,
    student_states: Tensor,
    teacher_states: Tensor,
    key_weight: float = 0.0,
    key_temperature: float = 1.0,
) -> Tensor:
    r"""Pull hidden states to where they fire the teacher's keys.

    .. math:: L = \frac{1}{d} \lVert s - t \rVert^2
              + w \, \mathrm{CE}\bigl(\mathrm{softmax}_k(-\lVert s - k \rVert^2 / \tau), j\bigr)

    with s and t the student's and the teacher's vectors as the teacher's `bottleneck` sees them (standardised,
    then cut or projected), k its keys, which are frozen, j the teacher's key index, w `key_weight` and
    :math:`\tau` `key_temperature`, in squared units of s (standard deviations, if the bottleneck standardises).
    Both terms are means over tokens and codebooks, and both reach the encoder, which nothing behind the argmin
    does. The second takes ``(C, N, K)`` numbers of memory.

    Both states are last hidden states of the same real tokens, ``(N, dim)``; the teacher's are taken without
    gradient. Raises ValueError if their shapes differ.
    """
    _same_shape(student_states, teacher_states)
    student, teacher = bottleneck.split(student_states), bottleneck.split(teacher_states.detach())  # (N, C, d)
    loss = F.mse_loss(student, teacher)
    if key_weight:
        with full_precision(student.device):
            # |s|² is the same for all keys and falls out of the softmax
            scores = 2 * student.transpose(0, 1) @ bottleneck.keys.mT - bottleneck.keys.square().sum(-1)[:, None]
        fired = bottleneck.quantize(teacher_states)  # (N, C)
        loss = loss + key_weight * F.cross_entropy((scores / key_temperature).flatten(0, 1), fired.T.flatten())
    return loss


def _same_shape(student_states: Tensor, teacher_states: Tensor) -> None:
    if student_states.shape != teacher_states.shape:
        raise ValueError(
            f"student_states {tuple(student_states.shape)} and teacher_states {tuple(teacher_states.shape)} must "
            "have the same shape: hidden states of the same tokens, equally wide"
        )
