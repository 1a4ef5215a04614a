"""One pass over a stream of hidden states: mean, standard deviation and a uniform sample, in bounded memory."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from kvlib.search import require_finite

# rows hashed at once: their 64-bit copies stay small
_HASHED_ROWS = 8192


class Sample(NamedTuple):
    """What `read_stream` keeps of a stream.

    Parameters
    ----------
    vectors : torch.Tensor
        ``(M, dim)``, float32, in random order; equal vectors stand side by side.
    weights : torch.Tensor
        ``(M,)``, float32, positive.
    first : torch.Tensor
        ``(M,)`` bool: True for the first of each run of equal vectors.
    mean, std : torch.Tensor
        ``(dim,)``, float32, of the whole stream, weighted; std is 1 where a dimension varies by less
        than a hundredth of what the median one does: an encoder has switched it off.
    """

    vectors: Tensor
    weights: Tensor
    first: Tensor
    mean: Tensor
    std: Tensor


def processes() -> int:
    """Count the processes of `torch.distributed`; 1 where it is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number among those of `torch.distributed`; 0 where it is not in use."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def read_stream(
    batches: Iterable[Tensor | tuple[Tensor, Tensor]], dim: int, max_vectors: int, seed: int, device: torch.device
) -> Sample:
    """Read a stream once; under `torch.distributed` every process reads its own and gets the sample of all.

    Every vector draws a ticket and the `max_vectors` smallest stay (bottom-k sampling, Cohen & Kaplan 2007). The
    ticket is a seeded hash of the vector's bits, so the sample and its order depend on what the vectors are, not
    on how they were ordered, batched or shared among processes. Moments are merged batch by batch in float64
    (Chan, Golub & LeVeque 1983).

    Parameters
    ----------
    batches : iterable
        Of ``(..., dim)`` tensors, or of pairs of one and its weights ``(...)``, which may be a mask. Vectors of
        weight 0 are left out.
    dim : int
        Size of a vector.
    max_vectors : int
        Size of the sample, at most. Memory is at most twice that, and one batch.
    seed : int
        Of the hash.
    device : torch.device
        Where processes exchange tensors; the sample itself is on the CPU.

    Raises
    ------
    ValueError
        If a shape is wrong, a number is not finite, a weight is negative, or there are no vectors.
    """
    generator = torch.Generator().manual_seed(seed)
    multipliers = torch.randint(-(2**63), 2**63 - 1, (dim + 1,), generator=generator)
    kept = [(torch.empty(0, dtype=torch.int64), torch.empty(0, dim), torch.empty(0))]
    size, cut = 0, 2**63 - 1
    moments = torch.zeros(1 + 2 * dim, dtype=torch.float64)  # weight, mean, sum of squares
    for number, batch in enumerate(batches):
        vectors, weights = _checked(batch, dim, number)
        for rows, shares in zip(vectors.split(_HASHED_ROWS), weights.split(_HASHED_ROWS), strict=True):
            moments = _merged(moments, _moments(rows, shares))
            tickets = _hash(rows, multipliers)
            low = tickets <= cut
            kept.append((tickets[low], rows[low], shares[low]))
            size += len(kept[-1][0])
            if size > 2 * max_vectors:
                kept = [_smallest(kept, max_vectors)]
                size, cut = max_vectors, int(kept[0][0][-1])
    tickets, vectors, weights = _smallest(kept, max_vectors)
    if processes() > 1:
        parts = zip(*(_gathered(part, device) for part in (tickets, vectors, weights)), strict=True)
        tickets, vectors, weights = _smallest(list(parts), max_vectors)
        total = torch.zeros_like(moments)
        for other in _gathered(moments, device):
            total = _merged(total, other)
        moments = total
    if not len(vectors):
        raise ValueError("batches held no vectors: the keys need at least one hidden state")
    mean, squares = moments[1:].chunk(2)
    std = (squares / moments[0]).sqrt()
    # a dimension that never varies must not be divided by zero; MiniLM's last layer norm switches one off but for
    # 6e-9, by which a student's, which has it on, must not be divided either
    varies = (std > 1e-6 * mean.abs().clamp_min(1e-6)) & (std > 1e-2 * std.median())
    std = torch.where(varies, std, torch.ones_like(std))
    first = torch.cat([torch.ones(1, dtype=torch.bool), tickets[1:] != tickets[:-1]])
    return Sample(vectors, weights, first, mean.float(), std.float())


def _checked(batch: Tensor | tuple[Tensor, Tensor], dim: int, number: int) -> tuple[Tensor, Tensor]:
    vectors, weights = batch if isinstance(batch, tuple) else (batch, torch.ones(batch.shape[:-1]))
    if vectors.shape[-1:] != (dim,) or weights.shape != vectors.shape[:-1]:
        raise ValueError(
            f"batch {number} has shape {tuple(vectors.shape)} and weights {tuple(weights.shape)}, "
            f"expected (..., {dim}) and (...)"
        )
    weights = weights.detach().float().cpu().flatten()
    if not (torch.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(f"batch {number} has a weight that is negative or not finite")
    present = weights > 0
    vectors = vectors.detach().float().cpu().flatten(0, -2)[present]
    require_finite(vectors, f"batch {number}")
    return vectors, weights[present]


def _moments(vectors: Tensor, weights: Tensor) -> Tensor:
    wide, shares = vectors.double(), weights.double()
    total = shares.sum()
    mean = (shares @ wide) / total.clamp_min(torch.finfo(torch.float64).tiny)
    return torch.cat([total.view(1), mean, shares @ wide.sub_(mean).square_()])


def _merged(one: Tensor, other: Tensor) -> Tensor:
    total = one[0] + other[0]
    if not total:
        return one
    (mean_one, squares_one), (mean_other, squares_other) = one[1:].chunk(2), other[1:].chunk(2)
    shift = mean_other - mean_one
    mean = mean_one + shift * (other[0] / total)
    squares = squares_one + squares_other + shift.square() * (one[0] * other[0] / total)
    return torch.cat([total.view(1), mean, squares])


def _hash(vectors: Tensor, multipliers: Tensor) -> Tensor:
    """Hash the bits of every row to 64: a random linear function, then xor-shifts that spread it over all bits."""
    bits = (vectors + 0.0).view(torch.int32).long()  # + 0.0 makes -0.0 equal to 0.0
    tickets = bits.mul_(multipliers[1:]).sum(1) + multipliers[0]  # wraps around
    for shift in (32, 29):
        tickets = (tickets ^ (tickets >> shift)) * -7046029254386353131
    return tickets


def _smallest(parts: list[tuple[Tensor, ...]], size: int) -> tuple[Tensor, ...]:
    """Join parts and keep the rows of the `size` smallest tickets, sorted by ticket."""
    tickets, vectors, weights = map(torch.cat, zip(*parts, strict=True))
    order = tickets.argsort(stable=True)[:size]
    return tickets[order], vectors[order], weights[order]


def _gathered(tensor: Tensor, device: torch.device) -> list[Tensor]:
    """Collect a tensor, whose length may differ, from every process."""
    lengths = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(processes())]
    dist.all_gather(lengths, torch.tensor([len(tensor)], device=device))
    longest = max(int(length) for length in lengths)
    padded = torch.zeros(longest, *tensor.shape[1:], dtype=tensor.dtype, device=device)
    padded[: len(tensor)] = tensor
    found = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(found, padded)
    return [part[: int(length)].cpu() for part, length in zip(found, lengths, strict=True)]
