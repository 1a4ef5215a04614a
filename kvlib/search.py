"""Exact nearest-key search in bounded memory.

Shape comments: N vectors, C codebooks, K keys a codebook, d = dim_key; at one time P codebooks are prepared and G
searched, for n vectors, with keys in W blocks.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

# scores held at once: 2^21 float32 are 8 MiB, which a processor's cache can hold
SCORES = 2**21
# vectors of a codebook searched at once: with more, the matrix product takes twice as long on CPUs
_ROWS = 512
# keys whose smallest score is taken at once
_BLOCK = 32


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
    """Find the nearest key of every codebook by squared Euclidean distance, exactly.

    A matrix product gives scores that are right up to rounding; the smallest score of each block of keys, and a
    bound on the rounding error, leave few keys that could be the nearest, nearly always one. Where there are
    more, their distances are computed again in float64, as sums of squared differences, and the smallest
    decides; among equal distances the lowest index wins. Memory beyond inputs, result and a copy of one
    codebook's vectors does not grow with N, C or K.

    Parameters
    ----------
    vectors : torch.Tensor
        Shape ``(N, C, d)``, float32 or float64.
    keys : torch.Tensor
        Shape ``(C, K, d)``, same dtype.

    Returns
    -------
    torch.Tensor
        Key indices, shape ``(N, C)``, int64.

    Raises
    ------
    ValueError
        If a number is NaN or infinite.
    """
    require_finite(vectors, "vectors")
    require_finite(keys, "keys")
    (N, C, d), K = vectors.shape, keys.shape[1]
    width = -(-K // _BLOCK) * _BLOCK
    rows = max(1, min(N, _ROWS, SCORES // width))
    # few vectors could have many codebooks searched at once, but then the copies of their keys would be large
    books = max(1, SCORES // (width * max(rows, 4 * (d + 1))))
    prepared = books * max(1, SCORES // (4 * books * (width + N) * (d + 1)))
    found = torch.empty(N, C, dtype=torch.int64, device=vectors.device)
    scores = vectors.new_empty(min(books, C) * width * rows)
    with full_precision(vectors.device):
        for first in range(0, C, prepared):
            some_vectors = vectors[:, first : first + prepared].transpose(0, 1)  # (P, N, d)
            some_keys = keys[first : first + prepared]
            factors = _factors(some_vectors, some_keys, width)
            for book, row in itertools.product(range(0, len(some_keys), books), range(0, N, rows)):
                group, part = slice(book, book + books), slice(row, row + rows)
                table, queries, slack = factors[0][group], factors[1][group, :, part], factors[2][group, part]
                chosen = _search(table, queries, slack, scores, some_vectors[group, part], some_keys[group])
                found[part, first + book : first + book + len(chosen)] = chosen.T
    return found


def _factors(vectors: Tensor, keys: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bring vectors ``(P, N, d)`` and keys ``(P, K, d)`` into the factors of one matrix product.

    ``|x - k|²/2 = |x|²/2 - x·k + |k|²/2``: the first term is the same for all keys and left out, the others are
    the product of ``[-k, |k|²/2]`` and ``[x, 1]``. All is centred on the keys first: far from the origin the
    squares are large and their small differences are lost.

    Returns
    -------
    table : torch.Tensor
        ``(P, width, d + 1)``; keys that fill the last block score infinity.
    queries : torch.Tensor
        ``(P, d + 1, N)``.
    slack : torch.Tensor
        ``(P, N)``: how far the score of the nearest key may lie above the smallest one.
    """
    d = vectors.shape[-1]
    centre = keys.mean(1, keepdim=True)  # (P, 1, d)
    vectors, keys = vectors - centre, keys - centre
    squares = keys.square().sum(-1, keepdim=True)  # (P, K, 1)
    padding = (0, 0, 0, width - keys.shape[1])
    table = torch.cat([F.pad(-keys, padding), F.pad(squares / 2, padding, value=torch.inf)], dim=-1)
    queries = F.pad(vectors, (0, 1), value=1.0).transpose(1, 2)
    norms = vectors.norm(dim=-1)  # (P, N)
    # neither the nearest key nor the one of the smallest score is farther out than this: the key nearest to the
    # centre would beat it. So one outlier among the keys does not blur all scores
    reach = torch.minimum(squares.amax(1).sqrt(), 4 * norms + 2 * squares.amin(1).sqrt())
    # twice the rounding error of a score: that of centring and of d + 1 terms (Higham 2002, section 3.1)
    limits = torch.finfo(vectors.dtype)
    slack = (d + 5) * (limits.eps * reach * (norms + reach) + limits.tiny)
    return table, queries, slack


def _search(
    table: Tensor, queries: Tensor, slack: Tensor, scores: Tensor, vectors: Tensor, keys: Tensor
) -> Tensor:
    """Find the nearest keys of n vectors in G codebooks, ``(G, n)``; `scores` is memory to work in."""
    candidates = _candidates(table, queries, slack, scores)
    if candidates is None:
        halves = (slice(slack.shape[1] // 2), slice(slack.shape[1] // 2, None))
        return torch.cat(
            [_search(table, queries[..., h], slack[:, h], scores, vectors[:, h], keys) for h in halves], dim=1
        )
    pair, key = candidates
    if len(pair) > slack.numel():
        pair, key = _settle(pair, key, vectors, keys)
    chosen = pair.new_empty(slack.numel())
    chosen[pair] = key
    return chosen.view(slack.shape)


def _candidates(table: Tensor, queries: Tensor, slack: Tensor, scores: Tensor) -> tuple[Tensor, Tensor] | None:
    """Find all keys that could be the nearest to n vectors of each codebook.

    Returns
    -------
    pair : torch.Tensor
        ``(M,)``: codebook · n + vector, each at least once.
    key : torch.Tensor
        ``(M,)``: a candidate of that pair.

    None if there are so many that fewer vectors should be searched at once.
    """
    (G, width, _), n = table.shape, queries.shape[-1]
    # keys in rows, vectors in columns: this product and the minimum over rows are the fast ones on CPUs
    scores = torch.bmm(table, queries, out=scores[: G * width * n].view(G, width, n))
    least = scores.view(G, -1, _BLOCK, n).amin(2)  # (G, W, n)
    highest = least.amin(1).add_(slack)  # (G, n)
    # not "<=": where numbers are so large that scores overflow to NaN, every key is a candidate
    block = torch.gt(least, highest.unsqueeze(1)).logical_not_().view(-1).nonzero()  # (B, 1), counting (G, W, n)
    row = block % n
    pair = row if G == 1 else (block // (least.shape[1] * n) * n).add_(row)
    inside = torch.arange(0, _BLOCK * n, n, device=block.device)
    near = scores.view(-1).take((block - row).mul_(_BLOCK).add_(row) + inside)  # (B, _BLOCK)
    hit = torch.gt(near, highest.view(-1)[pair]).logical_not_().view(-1).nonzero().squeeze(1)  # (M,)
    if n > 1 and len(hit) > max(2 * G * n, SCORES // 16):
        return None
    place = hit // _BLOCK
    key = (block.squeeze(1)[place] // n % least.shape[1] * _BLOCK).add_(hit % _BLOCK)
    return pair.squeeze(1)[place], key


def _settle(pair: Tensor, key: Tensor, vectors: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Choose among the candidates of each pair by float64 distances; all of them get the winner's index."""
    (_, n, d), K = vectors.shape, keys.shape[1]
    real = key < K
    pair, key = pair[real], key[real]
    tied = (pair.bincount(minlength=vectors[..., 0].numel()) > 1)[pair]
    pairs, candidates = pair[tied], key[tied]
    distance = torch.empty(len(pairs), dtype=torch.float64, device=pair.device)
    for part in torch.arange(len(pairs), device=pair.device).split(max(1, SCORES // (2 * d))):
        book = pairs[part] // n
        differences = vectors[book, pairs[part] % n].double() - keys[book, candidates[part]].double()
        distance[part] = differences.square_().sum(-1)
    best = distance.new_full(vectors[..., 0].shape, torch.inf).view(-1)
    best.scatter_reduce_(0, pairs, distance, "amin")
    wins = distance == best[pairs]
    lowest = torch.full_like(best, K, dtype=torch.int64)
    lowest.scatter_reduce_(0, pairs[wins], candidates[wins], "amin")
    key[tied] = lowest[pairs]
    return pair, key
