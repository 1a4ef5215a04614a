"""The nearest key of each codebook, in bounded memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

# scores held at once: 2^20 float32 are 4 MiB, which stay in the cache of most processors
SCORES = 2**20
# keys whose smallest score is taken at once
_BLOCK = 32
# vectors of one product, at least: with 65,536 keys, 16 took three times as long a score as 64 (a core of an EPYC)
ROWS = 64


def require_finite(tensor: Tensor, name: str) -> None:
    """Raise ValueError that names the first place of a NaN or an infinity in `tensor`."""
    # min and max show either without a copy
    if not tensor.numel() or torch.isfinite(torch.stack(tensor.aminmax())).all():
        return
    place = (~torch.isfinite(tensor)).nonzero()[0].tolist()
    raise ValueError(f"{name} holds {tensor[tuple(place)].item()} at position {place}, expected finite numbers")


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switch off autocast, TF32 and bfloat16 products: in low precision near keys tie."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            # "none" inherits again from the parent's setting; what that does not give back was the backend's own
            backend.fp32_precision = "none"
            if backend.fp32_precision != precision:
                backend.fp32_precision = precision


@torch.no_grad()
def nearest_keys(vectors: Tensor, keys: Tensor) -> Tensor:
    """Find the nearest key of every codebook: ``(N, C, d)`` and ``(C, K, d)`` to indices ``(N, C)``, int64.

    Near is a small squared Euclidean distance; vectors and keys are both float32 or both float64. Of equal keys
    the lowest index wins. Otherwise the squared distance to the key that is found exceeds the smallest one by no
    more than a relative 1e-4 and the rounding of a product of centred vectors: 8 machine epsilons of the squared
    lengths of vector and key, centred on the keys. Memory beyond inputs and result does not grow with N or C, nor
    with K below 16,384; above, it is 64 scores a key. Raises ValueError if a number is NaN or infinite.
    """
    require_finite(vectors, "vectors")
    require_finite(keys, "keys")
    (N, C, _), K = vectors.shape, keys.shape[1]
    found = torch.empty(N, C, dtype=torch.int64, device=vectors.device)
    width = K + -K % _BLOCK
    rows = min(N, max(ROWS, SCORES // width))
    memory = vectors.new_empty(width * rows)
    with full_precision(vectors.device):
        for book in range(C):
            # far from the origin squares are large and their small differences are lost: centre on the keys
            centre = keys[book].mean(0)
            centred = keys[book] - centre
            half = centred.square().sum(1, keepdim=True) / 2
            table = F.pad(torch.cat([-centred, half], dim=1), (0, 0, 0, width - K))  # (width, d + 1)
            table[K:, -1] = torch.inf
            first = None
            for part, result in zip(vectors[:, book].split(rows), found[:, book].split(rows), strict=True):
                # |x - k|²/2 without |x|²/2, which is the same for all keys, as one product
                queries = F.pad(part - centre, (0, 1), value=1.0).T  # (d + 1, n)
                scores = torch.mm(table, queries, out=memory[: width * len(part)].view(width, -1))
                blocks = scores.view(width // _BLOCK, _BLOCK, len(part))
                least = blocks.amin(1)  # (width / _BLOCK, n)
                smallest, block = least.min(0)
                near = blocks[block, :, torch.arange(len(part), device=block.device)]  # (n, _BLOCK)
                result.copy_(block * _BLOCK + near.min(1).indices)
                # a product may add up one part of a matrix in another order than the next, so that scores of equal
                # keys differ by their rounding: where a second score is that near, compare keys
                lengths = queries.square().sum(0) + 2 * half[result, 0]
                limit = smallest + 2 * len(queries) * torch.finfo(keys.dtype).eps * lengths  # (n,)
                # each vector's own score is counted once in either
                ties = torch.count_nonzero(least <= limit) + torch.count_nonzero(near <= limit.unsqueeze(1))
                if ties > 2 * len(part):
                    first = first_of_equal(keys[book]) if first is None else first
                    result.copy_(first[result])
    return found


def first_of_equal(rows: Tensor) -> Tensor:
    """Return for each row of ``(K, d)`` the index of the first that equals it: ``(K,)``, int64."""
    weights = torch.rand(rows.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # equal rows have equal sums, others as good as never
    parts = (part.contiguous().double() * weights.to(part.device) for part in rows.split(8192))
    _, group = torch.cat([part.sum(1) for part in parts]).unique(return_inverse=True)
    indices = torch.arange(len(rows), device=rows.device)
    return torch.full_like(indices, len(rows)).scatter_reduce(0, group, indices, "amin")[group]
