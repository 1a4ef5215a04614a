"""The discrete key-value bottleneck: find the nearest key of each codebook, hand out its value.

Träuble et al., "Discrete Key-Value Bottleneck", ICML 2023 (arXiv 2207.11240).
Shape comments: N vectors, C codebooks, K keys a codebook, d = dim_key.
"""

import warnings
from collections.abc import Iterable
from typing import Literal

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# scores held at once while searching: 2^24 float32 are 64 MiB, whatever N, C and K are
_SEARCH_BUDGET = 2**24
# a key with fewer than this share of the average number of hits is dead and gets replaced
_DEAD_SHARE = 0.03


def nearest_keys(vectors: Tensor, keys: Tensor) -> Tensor:
    """Find the nearest key of every codebook by squared Euclidean distance.

    Parameters
    ----------
    vectors : torch.Tensor
        Shape ``(N, C, d)``.
    keys : torch.Tensor
        Shape ``(C, K, d)``, same dtype.

    Returns
    -------
    torch.Tensor
        Key indices, shape ``(N, C)``, int64.
    """
    # centred first: far from the origin the squares are large and their small differences are lost
    centre = keys.mean(1, keepdim=True)  # (C, 1, d)
    keys, vectors = keys - centre, vectors - centre.squeeze(1)
    # |x - k|²/2 = |x|²/2 - x·k + |k|²/2: the first term is the same for all keys and left out, the others
    # are one matrix product of [x, 1] and [-k, |k|²/2]
    queries = F.pad(vectors, (0, 1), value=1.0)  # (N, C, d + 1)
    keys = torch.cat([-keys, keys.square().sum(-1, keepdim=True) / 2], dim=-1)  # (C, K, d + 1)
    chunk = max(1, _SEARCH_BUDGET // (keys.shape[0] * keys.shape[1]))
    found = [
        torch.bmm(part.transpose(0, 1), keys.transpose(1, 2)).argmin(-1).T  # scores are (C, chunk, K)
        for part in queries.split(chunk)
    ]
    return torch.cat(found) if found else vectors.new_empty((0, keys.shape[0]), dtype=torch.int64)


class DiscreteKeyValueBottleneck(nn.Module):
    """C codebooks of K key-value pairs between an encoder and a decoder.

    A hidden state is standardised, cut (or projected) into one vector a codebook, each vector is replaced by
    the index of its nearest key, and the value stored under that index is handed on. Keys are fitted on
    unlabelled hidden states by `init_keys` and never move after `freeze_keys`; values are trained, and a
    gradient reaches only the values that were handed out. None reaches the encoder: the derivative of an
    argmin is zero.

    Parameters
    ----------
    dim : int
        Size of a hidden state.
    num_codebooks : int
        C.
    codebook_size : int
        K, keys a codebook.
    dim_value : int, optional
        Size of a value; by default that of a key.
    projection : {"chunk", "random"}
        ``"chunk"`` gives codebook c the c-th of C equal parts of the hidden state (dim_key = dim / C; Diera et
        al., arXiv 2412.08528); ``"random"`` gives it its own fixed Gaussian projection (the ICML paper's).
    dim_key : int, optional
        Size of a key, for ``"random"`` only; by default dim / C, rounded down.
    standardize : bool
        Subtract the mean and divide by the standard deviation of every hidden dimension, both measured by
        `init_keys`; otherwise BERT's few large dimensions decide every distance of their codebook.

    Attributes
    ----------
    keys : torch.Tensor
        Buffer, ``(C, K, dim_key)``, float32.
    values : torch.nn.Parameter
        ``(C, K, dim_value)``, zero at the start (section 3 of the ICML paper). Train them without weight
        decay: it would shrink the values that no input selected.
    counts : torch.Tensor
        Buffer, ``(C, K)``: running mean of the hits a step of each key.
    mean, std : torch.Tensor
        Buffers, ``(dim,)``.

    Raises
    ------
    ValueError
        If a size is not positive, or C does not divide `dim` with ``"chunk"``.
    """

    def __init__(
        self,
        dim: int,
        num_codebooks: int = 64,
        codebook_size: int = 4096,
        dim_value: int | None = None,
        projection: Literal["chunk", "random"] = "chunk",
        dim_key: int | None = None,
        standardize: bool = True,
    ) -> None:
        super().__init__()
        if min(dim, num_codebooks, codebook_size) < 1:
            raise ValueError(f"sizes must be positive, got {dim=}, {num_codebooks=}, {codebook_size=}")
        if projection not in ("chunk", "random"):
            raise ValueError(f"projection is {projection!r}, expected 'chunk' or 'random'")
        if projection == "chunk" and (dim % num_codebooks or dim_key not in (None, dim // num_codebooks)):
            raise ValueError(
                f"projection='chunk' cuts {dim} dimensions into {num_codebooks} equal parts: choose a divisor "
                f"of {dim} and leave dim_key alone, or use projection='random'"
            )
        self.projection = projection
        self.standardize = standardize
        dim_key = dim_key or max(1, dim // num_codebooks)
        self.register_buffer("keys", torch.zeros(num_codebooks, codebook_size, dim_key))
        self.register_buffer("counts", torch.zeros(num_codebooks, codebook_size))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.register_buffer("frozen", torch.tensor(False))
        if projection == "random":
            self.register_buffer("projections", torch.empty(dim, num_codebooks * dim_key))
        self.values = nn.Parameter(torch.zeros(num_codebooks, codebook_size, dim_value or dim_key))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set every parameter and buffer to its start; `from_pretrained` would leave memory as it found it."""
        for zero in (self.keys, self.counts, self.mean, self.values, self.frozen):
            nn.init.zeros_(zero)
        nn.init.ones_(self.std)
        if self.projection == "random":
            # scaled so that a projected coordinate has the variance of a hidden dimension
            nn.init.normal_(self.projections, std=self.mean.numel() ** -0.5)

    @property
    def num_codebooks(self) -> int:
        """C."""
        return self.keys.shape[0]

    @property
    def codebook_size(self) -> int:
        """K."""
        return self.keys.shape[1]

    def split(self, hidden_states: Tensor) -> Tensor:
        """Standardise hidden states ``(N, dim)`` and turn them into one vector a codebook, ``(N, C, dim_key)``."""
        vectors = hidden_states.float()
        if self.standardize:
            vectors = (vectors - self.mean) / self.std
        if self.projection == "random":
            vectors = vectors @ self.projections
        return vectors.unflatten(-1, (self.num_codebooks, -1))

    @torch.no_grad()
    def quantize(self, hidden_states: Tensor) -> Tensor:
        """Find the key indices of hidden states.

        The search runs in float32 whatever the model's dtype or autocast: in half precision near keys tie.

        Parameters
        ----------
        hidden_states : torch.Tensor
            Shape ``(..., dim)``: real tokens or pooled states, no padding.

        Returns
        -------
        torch.Tensor
            Shape ``(..., C)``, int64.

        Raises
        ------
        ValueError
            If the last dimension is not `dim`, or a number is NaN or infinite.
        RuntimeError
            If `init_keys` has not been called.
        """
        flat = self._check(hidden_states)
        if not self.counts.any():
            raise RuntimeError("the bottleneck has no keys yet: call init_keys(batches of hidden states) first")
        with torch.autocast(hidden_states.device.type, enabled=False):
            indices = nearest_keys(self.split(flat), self.keys)
        return indices.view(*hidden_states.shape[:-1], self.num_codebooks)

    def _check(self, hidden_states: Tensor) -> Tensor:
        if hidden_states.shape[-1:] != self.mean.shape:
            raise ValueError(
                f"hidden_states has shape {tuple(hidden_states.shape)}, expected (..., {len(self.mean)})"
            )
        flat = hidden_states.reshape(-1, len(self.mean))
        finite = torch.isfinite(flat).all(-1)
        if not finite.all():
            raise ValueError(f"hidden_states holds NaN or infinity, first in vector {int((~finite).nonzero()[0])}")
        return flat

    def lookup(self, key_indices: Tensor) -> Tensor:
        """Hand out values: key indices ``(..., C)`` to values ``(..., C, dim_value)``."""
        codebooks = torch.arange(self.num_codebooks, device=key_indices.device)
        return F.embedding(key_indices + codebooks * self.codebook_size, self.values.flatten(0, 1))

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Hand out the values of the nearest keys.

        Parameters
        ----------
        hidden_states : torch.Tensor
            Shape ``(..., dim)``.

        Returns
        -------
        values : torch.Tensor
            Shape ``(..., C, dim_value)``.
        key_indices : torch.Tensor
            Shape ``(..., C)``, int64.

        Raises
        ------
        RuntimeError
            In training mode before `freeze_keys`: values under keys that still move mean nothing.
        """
        self.require_frozen()
        key_indices = self.quantize(hidden_states)
        return self.lookup(key_indices), key_indices

    def require_frozen(self) -> None:
        """Raise RuntimeError in training mode while the keys can still move."""
        if self.training and not self.frozen:
            raise RuntimeError("the keys are not frozen: call init_keys(batches), then freeze_keys(), then train")

    def freeze_keys(self) -> None:
        """Fix keys, counts, standardisation and projection for ever."""
        if not self.counts.any():
            raise RuntimeError("there are no keys to freeze: call init_keys(batches of hidden states) first")
        self.frozen.fill_(True)

    @torch.no_grad()
    def init_keys(
        self,
        batches: Iterable[Tensor],
        passes: int = 5,
        batch_size: int = 2048,
        decay: float = 0.95,
        max_vectors: int = 65536,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Fit standardisation and keys on unlabelled hidden states.

        One pass over `batches` measures mean and standard deviation and draws a uniform sample of
        `max_vectors` vectors, so memory does not grow with the data. The keys start as distinct vectors of
        the sample and then follow the running mean of the vectors nearest to them.

        Parameters
        ----------
        batches : iterable of torch.Tensor
            Hidden states ``(N, dim)``, real tokens or pooled states only. A generator will do.
        passes : int
            Passes of `update_keys` over the sample.
        batch_size : int
            Vectors a step of `update_keys`, at most.
        decay : float
            Of the running means, 0 to 1.
        max_vectors : int
            Size of the sample.
        seed : int
            Of the sample, its order and the replacement of dead keys.

        Returns
        -------
        pandas.DataFrame
            One row a step: ``step``, ``used_fraction`` (share of keys hit by this step's vectors),
            ``perplexity`` (mean over codebooks) and ``quantization_error`` (mean squared distance over the
            variance of the vectors).

        Raises
        ------
        RuntimeError
            If the keys are frozen.
        ValueError
            If there are no vectors, or one is not finite.

        Warns
        -----
        UserWarning
            If `codebook_size` exceeds a quarter of the distinct vectors.
        """
        if self.frozen:
            raise RuntimeError("the keys are frozen: build a new bottleneck to fit new ones")
        generator = torch.Generator().manual_seed(seed)
        sample, mean, std = _sample_and_moments(map(self._check, batches), max_vectors, generator)
        self.mean.copy_(mean)
        self.std.copy_(std)
        vectors = self.split(sample.to(self.keys.device))
        self._start_keys(sample, vectors, generator)
        rows = []
        for _ in range(passes):
            order = torch.randperm(len(vectors), generator=generator)
            # equal parts: a short last one would show fewer keys in use
            for part in order.tensor_split(-(-len(order) // batch_size)):
                rows.append({"step": len(rows), **self.update_keys(vectors[part], decay, generator)})
        return pd.DataFrame(rows)

    def _start_keys(self, sample: Tensor, vectors: Tensor, generator: torch.Generator) -> None:
        first_rows = _first_occurrences(sample)
        if self.codebook_size > len(first_rows) / 4:
            warnings.warn(
                f"{self.codebook_size} keys a codebook are many for {len(first_rows)} distinct vectors: most keys "
                "will hold one vector or none; use a smaller codebook_size or more data",
                stacklevel=3,
            )
        order = first_rows[torch.randperm(len(first_rows), generator=generator)]
        chosen = order[torch.arange(self.codebook_size) % len(order)]
        self.keys.copy_(vectors[chosen].transpose(0, 1))
        self.counts.fill_(1.0)

    @torch.no_grad()
    def update_keys(self, vectors: Tensor, decay: float, generator: torch.Generator) -> dict[str, float]:
        """Move every key towards the running mean of the vectors nearest to it.

        With n the hits of a key in this step and s the sum of those vectors, its count becomes
        ``decay * count + (1 - decay) * n``, its sum ``decay * count * key + (1 - decay) * s``, and the key
        their quotient (van den Oord et al., arXiv 1711.00937, appendix A.1). A dead key is replaced by a
        random vector of this step and gets an average count with it, or it would pass for dead, and be
        replaced again, in the next step.

        Parameters
        ----------
        vectors : torch.Tensor
            Standardised vectors, one a codebook, ``(N, C, dim_key)``, as `split` gives them.
        decay : float
            Of the running means.
        generator : torch.Generator
            Chooses the replacements.

        Returns
        -------
        dict of str to float
            The columns of `init_keys`' frame, measured before the move.
        """
        C, K, d = self.keys.shape
        indices = nearest_keys(vectors, self.keys)
        flat = (indices + torch.arange(C, device=indices.device) * K).flatten()
        hits = torch.bincount(flat, minlength=C * K).view(C, K).float()
        sums = vectors.new_zeros(C * K, d).index_add_(0, flat, vectors.reshape(-1, d)).view(C, K, d)
        error = (vectors - self.keys.view(C * K, d)[flat].view_as(vectors)).square().mean()

        running_sums = decay * self.counts.unsqueeze(-1) * self.keys + (1 - decay) * sums
        self.counts.mul_(decay).add_(hits, alpha=1 - decay)
        self.keys.copy_(running_sums / self.counts.unsqueeze(-1))

        average = len(vectors) / K
        codebook, key = (self.counts < _DEAD_SHARE * min(1.0, average)).nonzero(as_tuple=True)
        row = torch.randint(len(vectors), (len(key),), generator=generator).to(key.device)
        self.keys[codebook, key] = vectors[row, codebook]
        self.counts[codebook, key] = average

        share = hits / len(vectors)
        return {
            "used_fraction": float((hits > 0).float().mean()),
            "perplexity": float(torch.exp(torch.special.entr(share).sum(-1)).mean()),
            "quantization_error": float(error / vectors.var(0, correction=0).mean().clamp_min(1e-12)),
        }

    def usage(self, key_indices: Tensor) -> pd.DataFrame:
        """Say how a split uses each codebook.

        Parameters
        ----------
        key_indices : torch.Tensor
            Shape ``(..., C)``; rows of -1 (padding) are left out.

        Returns
        -------
        pandas.DataFrame
            One row a codebook: ``codebook``; ``used_fraction``, the share of keys hit at least once;
            ``dead_keys``, the number never hit; ``perplexity``, exp of the entropy of the hits (K if all keys
            are hit alike, 1 if one takes all); ``top1_share``, the share of hits of the most used key.
        """
        hits = self.hits(key_indices)
        share = hits / hits.sum(-1, keepdim=True)
        return pd.DataFrame(
            {
                "codebook": range(self.num_codebooks),
                "used_fraction": (hits > 0).double().mean(-1).numpy(),
                "dead_keys": (hits == 0).sum(-1).numpy(),
                "perplexity": torch.exp(torch.special.entr(share).sum(-1)).numpy(),
                "top1_share": share.max(-1).values.numpy(),
            }
        )

    def hits(self, key_indices: Tensor) -> Tensor:
        """Count how often each key is hit: key indices ``(..., C)``, -1 at padding, to ``(C, K)``, float64."""
        flat = key_indices.reshape(-1, self.num_codebooks).cpu()
        flat = flat[flat[:, 0] >= 0]
        if not len(flat):
            raise ValueError("key_indices is empty: there is no usage to count")
        flat = (flat + torch.arange(self.num_codebooks) * self.codebook_size).flatten()
        hits = torch.bincount(flat, minlength=self.num_codebooks * self.codebook_size)
        return hits.view(self.num_codebooks, self.codebook_size).double()


def _sample_and_moments(
    batches: Iterable[Tensor], max_vectors: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a uniform sample and measure mean and standard deviation in one pass.

    Every vector draws a random number and the `max_vectors` smallest stay: a uniform sample of a stream of
    unknown length. Moments are merged batch by batch (Chan, Golub & LeVeque 1983) in float64.
    """
    sample, tickets, count = None, torch.empty(0, dtype=torch.float64), 0
    for batch in batches:
        batch = batch.detach().float().cpu()
        if not len(batch):
            continue
        wide = batch.double()
        if count == 0:
            sample, mean, squares = batch[:0], torch.zeros_like(wide[0]), torch.zeros_like(wide[0])
        shift = wide.mean(0) - mean
        total = count + len(batch)
        squares += (wide - wide.mean(0)).square().sum(0) + shift.square() * count * len(batch) / total
        mean, count = mean + shift * len(batch) / total, total
        tickets = torch.cat([tickets, torch.rand(len(batch), generator=generator, dtype=torch.float64)])
        sample = torch.cat([sample, batch])
        if len(sample) > max_vectors:
            kept = tickets.topk(max_vectors, largest=False).indices.sort().values
            sample, tickets = sample[kept], tickets[kept]
    if count == 0:
        raise ValueError("batches held no vectors: the keys need at least one hidden state")
    std = (squares / count).sqrt()
    # a dimension that never varies must not be divided by zero
    std = torch.where(std > 1e-6 * mean.abs().clamp_min(1e-6), std, torch.ones_like(std))
    return sample, mean.float(), std.float()


def _first_occurrences(vectors: Tensor) -> Tensor:
    """Row numbers of the first occurrence of every distinct row."""
    _, group = torch.unique(vectors, dim=0, return_inverse=True)
    rows = torch.arange(len(vectors))
    return torch.full((int(group.max()) + 1,), len(vectors)).scatter_reduce(0, group, rows, "amin")
