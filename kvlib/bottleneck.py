"""The discrete key-value bottleneck: find the nearest key of each codebook, hand out its value.

Träuble et al., "Discrete Key-Value Bottleneck", ICML 2023 (arXiv 2207.11240).
Shape comments: N vectors, C codebooks, K keys a codebook, d = dim_key.
"""

import warnings
from collections.abc import Callable, Iterable
from typing import Literal

import pandas as pd
import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.cluster import kmeans_plusplus
from torch import Tensor, nn

from kvlib.reservoir import processes, read_stream
from kvlib.search import SCORES, full_precision, nearest_keys, require_finite

# a key with fewer than this share of the average number of hits is dead and gets replaced
_DEAD_SHARE = 0.03


class DiscreteKeyValueBottleneck(nn.Module):
    """C codebooks of K key-value pairs between an encoder and a decoder.

    A hidden state is standardised, cut (or projected) into one vector a codebook, each vector is replaced by
    the index of its nearest key, and the value stored under that index is handed on. Keys are fitted on
    unlabelled hidden states by `init_keys` and never move after `freeze_keys`; values are trained, and a
    gradient reaches only the values that were handed out. None reaches the encoder: the derivative of an
    argmin is zero. Casting a model to half precision leaves the bottleneck in float32.

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
        Buffer, ``(C, K, dim_key)``.
    values : torch.nn.Parameter
        ``(C, K, dim_value)``, zero at the start (section 3 of the ICML paper). Train them without weight
        decay, which shrinks the values that no input selected: with AdamW and ``weight_decay=0`` a value never
        selected stays as it is, bit for bit; one selected earlier still drifts with Adam's momentum. Where that
        matters (continual learning), use SGD without momentum: it moves only what this step selected.
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
        if min(dim, num_codebooks, codebook_size, dim_value or 1, dim_key or 1) < 1:
            raise ValueError(
                f"sizes must be positive, got {dim=}, {num_codebooks=}, {codebook_size=}, {dim_value=}, {dim_key=}"
            )
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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        # .to(), .half(), .bfloat16() and .cuda() all come here: follow to the device, not to half precision
        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in (torch.float16, torch.bfloat16) else moved

        return super()._apply(keep_precision, recurse)

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
        vectors = hidden_states.to(self.keys.dtype)
        if self.standardize:
            vectors = (vectors - self.mean).div_(self.std)
        if self.projection == "random":
            with full_precision(vectors.device):
                vectors = vectors @ self.projections
        return vectors.unflatten(-1, (self.num_codebooks, -1))

    @torch.no_grad()
    def quantize(self, hidden_states: Tensor) -> Tensor:
        """Find the key indices of hidden states, in full precision whatever their dtype or autocast.

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
        dim = len(self.mean)
        if hidden_states.shape[-1:] != (dim,):
            raise ValueError(f"hidden_states has shape {tuple(hidden_states.shape)}, expected (..., {dim})")
        require_finite(hidden_states, "hidden_states")
        self._require_keys()
        flat = hidden_states.reshape(-1, dim)
        found = torch.empty(len(flat), self.num_codebooks, dtype=torch.int64, device=flat.device)
        # in parts: their standardised copies stay small
        for states, indices in zip(
            *(all_rows.split(max(1, SCORES // dim)) for all_rows in (flat, found)), strict=True
        ):
            indices.copy_(nearest_keys(self.split(states), self.keys))
        return found.view(*hidden_states.shape[:-1], self.num_codebooks)

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

    def _require_keys(self) -> None:
        if not self.counts.any():
            raise RuntimeError("the bottleneck has no keys yet: call init_keys(batches of hidden states) first")

    def _require_moving(self) -> None:
        if self.frozen:
            raise RuntimeError("the keys are frozen: build a new bottleneck to fit new ones")

    def freeze_keys(self) -> None:
        """Fix keys, counts, standardisation and projection for ever."""
        self._require_keys()
        self.frozen.fill_(True)

    @torch.no_grad()
    def init_keys(
        self,
        batches: Iterable[Tensor | tuple[Tensor, Tensor]],
        passes: int = 5,
        batch_size: int = 2048,
        decay: float = 0.95,
        max_vectors: int = 65536,
        start: Literal["sample", "k-means++"] = "sample",
        seed: int = 0,
    ) -> pd.DataFrame:
        """Fit standardisation and keys on unlabelled hidden states.

        One pass over `batches` measures mean and standard deviation and draws a uniform sample of at most
        `max_vectors`, so memory does not grow with the data; the keys then follow the running means of the
        sample's vectors. The result depends on the set of vectors and the seed, not on the order of the vectors
        or how they are batched. Under `torch.distributed` every process brings its own batches, all end with the
        keys of one process that has them all (up to rounding), and the search is shared among them.

        Parameters
        ----------
        batches : iterable
            Of hidden states ``(..., dim)``, or of pairs of them and weights ``(...)``, for example an attention
            mask: vectors of weight 0 are left out. A generator will do.
        passes : int
            Passes of `update_keys` over the sample.
        batch_size : int
            Vectors a step of `update_keys`, at most.
        decay : float
            Of the running means, 0 to 1.
        max_vectors : int
            Size of the sample. A key is a mean of `max_vectors` / K vectors: raise it with K.
        start : {"sample", "k-means++"}
            Keys start as distinct vectors of the sample, drawn uniformly or far from one another (Arthur &
            Vassilvitskii 2007; slow for thousands of keys).
        seed : int
            Of the sample, the start, the order of steps and the replacement of dead keys.

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
            If there are no vectors, one is not finite, a weight is negative, or `start` is unknown.

        Warns
        -----
        UserWarning
            If `codebook_size` exceeds a quarter of the distinct vectors.
        """
        self._require_moving()
        if start not in ("sample", "k-means++"):
            raise ValueError(f"start is {start!r}, expected 'sample' or 'k-means++'")
        device = self.keys.device
        sample = read_stream(batches, len(self.mean), max_vectors, seed, device)
        distinct = sample.first.nonzero().squeeze(1)
        if self.codebook_size > len(distinct) / 4:
            warnings.warn(
                f"{self.codebook_size} keys a codebook are many for {len(distinct)} distinct vectors: most keys "
                "will hold one vector or none; use a smaller codebook_size or more data",
                stacklevel=3,
            )
        self.mean.copy_(sample.mean)
        self.std.copy_(sample.std)
        vectors, weights = self.split(sample.vectors.to(device)), sample.weights.to(device)
        if start == "sample":
            self.keys.copy_(vectors[distinct[torch.arange(self.codebook_size) % len(distinct)]].transpose(0, 1))
        else:
            self.keys.copy_(_spread_keys(vectors, weights, self.codebook_size, seed))
        self.counts.fill_(1.0)
        generator = torch.Generator().manual_seed(seed)
        rows = []
        for _ in range(passes):
            order = torch.randperm(len(vectors), generator=generator)
            # equal parts: a short last one would show fewer keys in use
            for part in order.tensor_split(-(-len(order) // batch_size)):
                rows.append(
                    {"step": len(rows), **self.update_keys(vectors[part], decay, generator, weights[part])}
                )
        return pd.DataFrame(rows)

    @torch.no_grad()
    def update_keys(
        self, vectors: Tensor, decay: float, generator: torch.Generator, weights: Tensor | None = None
    ) -> dict[str, float]:
        """Move every key towards the running mean of the vectors nearest to it.

        With n the hits of a key in this step and s the sum of those vectors, its count becomes
        ``decay * count + (1 - decay) * n``, its sum ``decay * count * key + (1 - decay) * s``, and the key
        their quotient (van den Oord et al., arXiv 1711.00937, appendix A.1). A dead key is replaced by a
        random vector of this step and gets an average count with it, or it would pass for dead, and be
        replaced again, in the next step.

        Parameters
        ----------
        vectors : torch.Tensor
            Standardised vectors, one a codebook, ``(N, C, dim_key)``, as `split` gives them. Under
            `torch.distributed` the same in every process; each searches its share of them.
        decay : float
            Of the running means.
        generator : torch.Generator
            Chooses the replacements.
        weights : torch.Tensor, optional
            ``(N,)``: a vector of weight 2 counts like two equal ones; 1 by default.

        Returns
        -------
        dict of str to float
            The columns of `init_keys`' frame, measured before the move.

        Raises
        ------
        RuntimeError
            If the keys are frozen.
        """
        self._require_moving()
        weights = vectors.new_ones(len(vectors)) if weights is None else weights.to(vectors)
        spread = (vectors - (vectors * weights.view(-1, 1, 1)).sum(0) / weights.sum()).square().sum((1, 2))
        hits, sums, error = self._statistics(vectors, weights)

        running_sums = decay * self.counts.unsqueeze(-1) * self.keys + (1 - decay) * sums
        self.counts.mul_(decay).add_(hits, alpha=1 - decay)
        self.keys.copy_(running_sums / self.counts.unsqueeze(-1))

        average = float(weights.sum()) / self.codebook_size
        codebook, key = (self.counts < _DEAD_SHARE * min(1.0, average)).nonzero(as_tuple=True)
        if len(key):
            row = torch.multinomial(weights.cpu(), len(key), replacement=True, generator=generator).to(key.device)
            self.keys[codebook, key] = vectors[row, codebook]
            self.counts[codebook, key] = average

        share = hits / weights.sum()
        return {
            "used_fraction": float((hits > 0).float().mean()),
            "perplexity": float(torch.exp(torch.special.entr(share).sum(-1)).mean()),
            "quantization_error": float(error / (weights @ spread).clamp_min(torch.finfo(spread.dtype).tiny)),
        }

    def _statistics(self, vectors: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sum up weights ``(C, K)`` and vectors ``(C, K, d)`` by nearest key, and all squared distances."""
        C, K, d = self.keys.shape
        if processes() > 1:
            vectors, weights = (part[dist.get_rank() :: processes()] for part in (vectors, weights))
        flat = (nearest_keys(vectors, self.keys) + torch.arange(C, device=vectors.device) * K).flatten()
        shares = weights.repeat_interleave(C)
        hits = vectors.new_zeros(C * K).index_add_(0, flat, shares)
        weighted = vectors.reshape(-1, d) * shares.unsqueeze(-1)
        sums = vectors.new_zeros(C * K, d).index_add_(0, flat, weighted)
        error = shares @ (vectors.reshape(-1, d) - self.keys.view(-1, d)[flat]).square().sum(-1)
        if processes() > 1:
            for statistic in (hits, sums, error):
                dist.all_reduce(statistic)
        return hits.view(C, K), sums.view(C, K, d), error

    def usage(
        self, key_indices: Tensor, hidden_states: Tensor | None = None, training: Tensor | None = None
    ) -> pd.DataFrame:
        """Say how a split uses each codebook.

        Parameters
        ----------
        key_indices : torch.Tensor
            Shape ``(..., C)``; rows of -1 (padding) are left out.
        hidden_states : torch.Tensor, optional
            Shape ``(N, dim)``: what the N rows that are no padding were found for, in their order.
        training : torch.Tensor, optional
            Key indices of the split that the values were trained on, ``(..., C)``.

        Returns
        -------
        pandas.DataFrame
            One row a codebook: ``codebook``; ``used_fraction``, the share of keys hit at least once;
            ``dead_keys``, the number never hit; ``perplexity``, exp of the entropy of the hits (K if all keys
            are hit alike, 1 if one takes all); ``top1_share``, the share of hits of the most used key;
            ``quantization_error``, the mean squared distance to the key over the variance of the vectors (NaN
            without `hidden_states`); ``unseen_share``, the share of hits on keys that `training` never hits,
            whose values are still zero (NaN without it).
        """
        hits = self.hits(key_indices)
        share = hits / hits.sum(-1, keepdim=True)
        unseen = torch.full_like(share[:, 0], torch.nan)
        if training is not None:
            unseen = (share * (self.hits(training) == 0)).sum(-1)
        error = torch.full_like(unseen, torch.nan)
        if hidden_states is not None:
            error = self._quantization_error(key_indices, hidden_states).cpu()
        return pd.DataFrame(
            {
                "codebook": range(self.num_codebooks),
                "used_fraction": (hits > 0).double().mean(-1).numpy(),
                "dead_keys": (hits == 0).sum(-1).numpy(),
                "perplexity": torch.exp(torch.special.entr(share).sum(-1)).numpy(),
                "top1_share": share.max(-1).values.numpy(),
                "quantization_error": error.numpy(),
                "unseen_share": unseen.numpy(),
            }
        )

    def hits(self, key_indices: Tensor) -> Tensor:
        """Count how often each key is hit: key indices ``(..., C)``, -1 at padding, to ``(C, K)``, float64."""
        flat = key_indices.reshape(-1, self.num_codebooks).cpu().long()
        flat = flat[flat[:, 0] >= 0]
        if not len(flat):
            raise ValueError("key_indices is empty: there is no usage to count")
        flat = (flat + torch.arange(self.num_codebooks) * self.codebook_size).flatten()
        hits = torch.bincount(flat, minlength=self.num_codebooks * self.codebook_size)
        return hits.view(self.num_codebooks, self.codebook_size).double()

    def _quantization_error(self, key_indices: Tensor, hidden_states: Tensor) -> Tensor:
        """Divide the mean squared distance to the given keys by the variance, for each codebook: ``(C,)``."""
        flat = key_indices.reshape(-1, self.num_codebooks).to(self.keys.device).long()
        flat = flat[flat[:, 0] >= 0]
        if len(flat) != len(hidden_states):
            raise ValueError(
                f"{len(flat)} rows of key_indices are no padding, but hidden_states has {len(hidden_states)}"
            )
        vectors = self.split(hidden_states.to(self.keys.device))
        keys = self.keys[torch.arange(self.num_codebooks, device=flat.device), flat]  # (N, C, d)
        spread = vectors.var(0, correction=0).sum(-1).clamp_min(torch.finfo(vectors.dtype).tiny)
        return ((vectors - keys).square().sum(-1).mean(0) / spread).double()


def _spread_keys(vectors: Tensor, weights: Tensor, codebook_size: int, seed: int) -> Tensor:
    """Draw the keys of each codebook from ``(N, C, d)`` by k-means++: ``(C, K, d)``."""
    size = min(codebook_size, len(vectors))
    found = [
        kmeans_plusplus(book, size, sample_weight=weights.cpu().numpy(), random_state=seed)[0]
        for book in vectors.transpose(0, 1).cpu().numpy()
    ]
    return torch.stack([torch.from_numpy(book) for book in found])[:, torch.arange(codebook_size) % size]
