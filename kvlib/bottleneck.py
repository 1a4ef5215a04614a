"""The discrete key-value bottleneck: find the nearest key of each codebook, hand out its value.

Träuble et al., "Discrete Key-Value Bottleneck", ICML 2023 (arXiv 2207.11240).
Shape comments: N vectors, C codebooks, K keys a codebook, d = dim_key.
"""

import warnings
from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kvlib.search import SCORES, first_of_equal, full_precision, nearest_keys, require_finite

# a key with fewer than this share of the average number of hits is dead and gets replaced
_DEAD_SHARE = 0.03


class DiscreteKeyValueBottleneck(nn.Module):
    """C codebooks of K key-value pairs between an encoder and a decoder.

    A hidden state is standardised, cut (or projected) into one vector a codebook, each vector is replaced by
    the index of its nearest key (its *code*), and the value stored under that index is handed on. Keys are fitted
    on unlabelled hidden states by `init_keys` and never move after `freeze_keys`; values are trained, and a
    gradient reaches only the values that were handed out. None reaches the encoder: the derivative of an argmin is
    zero. Casting a model to half precision leaves the bottleneck in float32. Raises ValueError if a size is not
    positive, or C does not divide `dim` with ``"chunk"``.

    Parameters
    ----------
    dim, num_codebooks, codebook_size : int
        Size of a hidden state, C, and K.
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
    keys, counts, mean, std : torch.Tensor
        Buffers: ``(C, K, dim_key)``; the moving average of the hits a step of each key, ``(C, K)``; ``(dim,)``.
    values : torch.nn.Parameter
        ``(C, K, dim_value)``, zero at the start (section 3 of the ICML paper). Train them without weight
        decay, which shrinks the values that no input selected.
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
        self.num_codebooks, self.codebook_size = num_codebooks, codebook_size
        self.projection, self.standardize = projection, standardize
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
        """Find the key indices ``(..., C)``, int64, of hidden states ``(..., dim)``: real tokens, no padding.

        The search is in full precision, whatever their dtype or autocast. Raises ValueError if the last dimension
        is not `dim` or a number is not finite, RuntimeError if there are no keys yet. Warns if half precision has
        rounded most dimensions to less than four steps a standard deviation.
        """
        dim = len(self.mean)
        if hidden_states.shape[-1:] != (dim,):
            raise ValueError(f"hidden_states has shape {tuple(hidden_states.shape)}, expected (..., {dim})")
        require_finite(hidden_states, "hidden_states")
        self._require_keys()
        if hidden_states.dtype in (torch.float16, torch.bfloat16):
            step = torch.finfo(hidden_states.dtype).eps * self.mean.abs()
            if (step > self.std / 4).double().mean() > 0.5:
                warnings.warn(
                    f"hidden_states are {hidden_states.dtype} and so far from zero that rounding has merged them: "
                    "compute them in float32, or subtract their mean before",
                    stacklevel=2,
                )
        flat = hidden_states.reshape(-1, dim)
        found = torch.empty(len(flat), self.num_codebooks, dtype=torch.int64, device=flat.device)
        # in parts: their standardised copies stay small
        rows = max(1, 2 * SCORES // dim)
        for states, indices in zip(flat.split(rows), found.split(rows), strict=True):
            indices.copy_(nearest_keys(self.split(states), self.keys))
        return found.view(*hidden_states.shape[:-1], self.num_codebooks)

    def lookup(self, key_indices: Tensor) -> Tensor:
        """Hand out values: key indices ``(..., C)`` to values ``(..., C, dim_value)``."""
        codebooks = torch.arange(self.num_codebooks, device=key_indices.device)
        return F.embedding(key_indices + codebooks * self.codebook_size, self.values.flatten(0, 1))

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Return values ``(..., C, dim_value)`` and key indices ``(..., C)`` of hidden states ``(..., dim)``.

        Raises RuntimeError in training mode before `freeze_keys`: values under keys that still move mean nothing.
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

    def _require_not_frozen(self) -> None:
        if self.frozen:
            raise RuntimeError("the keys are frozen: build a new bottleneck to fit new ones")

    def freeze_keys(self) -> None:
        """Fix keys, counts, standardisation and projection for ever."""
        self._require_keys()
        self.frozen.fill_(True)

    @torch.no_grad()
    def init_keys(
        self,
        batches: Tensor | Iterable[Tensor | tuple[Tensor, Tensor]],
        passes: int = 5,
        batch_size: int = 2048,
        decay: float = 0.95,
        max_vectors: int = 65536,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Fit standardisation and keys on unlabelled hidden states, in one pass over them.

        `batches` is a tensor of hidden states ``(..., dim)`` or yields such tensors, or pairs of them and an
        attention mask ``(...)``, 0 at padding. The pass draws a uniform sample of at most `max_vectors`, so memory
        does not grow with the data; which ones depends on their positions in the stream and the seed alone. A key
        is a mean of `max_vectors` / K vectors: raise it with K. The keys then follow moving averages
        (`update_keys`), `passes` times over the sample in steps of at most `batch_size` vectors.

        Returns what `update_keys` measured, one row a ``step``. Raises RuntimeError if the keys are frozen,
        ValueError if there are no vectors, one is not finite, or a setting is out of range (`decay` is from 0 to
        below 1); warns if K exceeds a quarter of the distinct ones.
        """
        self._require_not_frozen()
        for name, number in (("batch_size", batch_size), ("max_vectors", max_vectors)):
            if number < 1:
                raise ValueError(f"{name} is {number}, expected a positive number")
        batches = [batches] if isinstance(batches, Tensor) else batches
        sample = _sample_stream(batches, len(self.mean), max_vectors, seed).to(self.keys.device)
        distinct = first_of_equal(sample).unique()
        if self.codebook_size > len(distinct) / 4:
            warnings.warn(
                f"{self.codebook_size} keys a codebook are many for {len(distinct)} distinct vectors: most keys "
                "will hold one vector or none; use a smaller codebook_size or more data",
                stacklevel=3,
            )
        self.mean.copy_(sample.mean(0))
        self.std.copy_(_standard_deviation(sample))
        vectors = self.split(sample)
        self.keys.copy_(vectors[distinct[torch.arange(self.codebook_size) % len(distinct)]].transpose(0, 1))
        self.counts.fill_(1.0)
        generator = torch.Generator().manual_seed(seed)
        rows = []
        for _ in range(passes):
            order = torch.randperm(len(vectors), generator=generator)
            # equal parts: a short last one would show fewer keys in use
            for part in order.tensor_split(-(-len(order) // batch_size)):
                rows.append({"step": len(rows), **self.update_keys(vectors[part], decay, generator)})
        return pd.DataFrame(rows)

    @torch.no_grad()
    def update_keys(self, vectors: Tensor, decay: float, generator: torch.Generator) -> dict[str, float]:
        """Move every key towards the moving average of the vectors nearest to it (EMA codebook update).

        With n the hits of a key in this step and s the sum of those vectors, its count becomes
        ``decay * count + (1 - decay) * n``, its sum ``decay * count * key + (1 - decay) * s``, and the key their
        quotient (van den Oord et al., arXiv 1711.00937, appendix A.1). A dead key is replaced by a random one of
        `vectors` ``(N, C, dim_key)``, as `split` gives them, and gets an average count with it, or it would be
        replaced again in the next step.

        Returns, before the move, ``used_fraction`` (share of keys hit), ``perplexity`` (mean over codebooks) and
        ``quantization_error`` (mean squared distance over the variance of the vectors).
        """
        self._require_not_frozen()
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}, expected a number from 0 to below 1")
        (C, K, d), N = self.keys.shape, len(vectors)
        flat = (nearest_keys(vectors, self.keys) + torch.arange(C, device=vectors.device) * K).flatten()
        rows = vectors.reshape(-1, d)  # (N · C, d)
        hits = vectors.new_zeros(C * K).index_add_(0, flat, torch.ones_like(rows[:, 0])).view(C, K)
        sums = vectors.new_zeros(C * K, d).index_add_(0, flat, rows).view(C, K, d)
        error = (rows - self.keys.view(-1, d)[flat]).square().sum()
        spread = (vectors - vectors.mean(0)).square().sum()

        running_sums = decay * self.counts.unsqueeze(-1) * self.keys + (1 - decay) * sums
        self.counts.mul_(decay).add_(hits, alpha=1 - decay)
        self.keys.copy_(running_sums / self.counts.unsqueeze(-1))
        self._replace_dead_keys(vectors, generator)

        return {
            "used_fraction": float((hits > 0).float().mean()),
            "perplexity": float(torch.exp(torch.special.entr(hits / N).sum(-1)).mean()),
            "quantization_error": float(error / spread.clamp_min(torch.finfo(spread.dtype).tiny)),
        }

    def _replace_dead_keys(self, vectors: Tensor, generator: torch.Generator) -> None:
        average = len(vectors) / self.codebook_size
        codebook, key = (self.counts < _DEAD_SHARE * min(1.0, average)).nonzero(as_tuple=True)
        # one draw for each key, dead or not: one more dead key does not change what replaces the others
        chosen = torch.randint(len(vectors), self.counts.shape, generator=generator).to(key.device)
        self.keys[codebook, key] = vectors[chosen[codebook, key], codebook]
        self.counts[codebook, key] = average

    def usage(
        self, key_indices: Tensor, hidden_states: Tensor | None = None, training: Tensor | None = None
    ) -> pd.DataFrame:
        """Measure how a split uses each codebook (code usage, codebook utilisation), one row a ``codebook``.

        Key indices are ``(..., C)``; rows of -1 (padding) are left out. `hidden_states` ``(N, dim)`` are what the
        N others were found for, in order; `training` are those of the split that the values were trained on.

        ``used_fraction`` and ``dead_keys`` are the share and number of keys hit and never hit, ``perplexity`` exp
        of the entropy of the hits (from 1 to K), ``top1_share`` the share of hits of the most used key,
        ``quantization_error`` the mean squared distance to the key over the variance of the vectors (NaN without
        `hidden_states`), ``unseen_share`` the share of hits on keys that `training` never hits, whose values are
        still zero (NaN without it).
        """
        hits = self.hits(key_indices)
        share = hits / hits.sum(-1, keepdim=True)
        usage = {
            "codebook": range(self.num_codebooks),
            "used_fraction": (hits > 0).double().mean(-1).numpy(),
            "dead_keys": (hits == 0).sum(-1).numpy(),
            "perplexity": torch.exp(torch.special.entr(share).sum(-1)).numpy(),
            "top1_share": share.max(-1).values.numpy(),
            "quantization_error": np.nan if hidden_states is None else self._error(key_indices, hidden_states),
            "unseen_share": np.nan if training is None else (share * (self.hits(training) == 0)).sum(-1).numpy(),
        }
        return pd.DataFrame(usage)

    def hits(self, key_indices: Tensor) -> Tensor:
        """Count how often each key is hit: key indices ``(..., C)``, -1 at padding, to ``(C, K)``, float64."""
        flat = self._without_padding(key_indices).cpu()
        if not len(flat):
            raise ValueError("key_indices is empty: there is no usage to count")
        flat = (flat + torch.arange(self.num_codebooks) * self.codebook_size).flatten()
        return torch.bincount(flat, minlength=self.counts.numel()).view(self.counts.shape).double()

    def _without_padding(self, key_indices: Tensor) -> Tensor:
        flat = key_indices.reshape(-1, self.num_codebooks).long()
        return flat[flat[:, 0] >= 0]

    def _error(self, key_indices: Tensor, hidden_states: Tensor) -> np.ndarray:
        """Divide the mean squared distance to the given keys by the variance, for each codebook: ``(C,)``."""
        flat = self._without_padding(key_indices).to(self.keys.device)  # (N, C)
        if len(flat) != len(hidden_states):
            raise ValueError(
                f"{len(flat)} rows of key_indices are no padding, but hidden_states has {len(hidden_states)}"
            )
        vectors = self.split(hidden_states.to(flat.device))
        keys = self.keys[torch.arange(self.num_codebooks, device=flat.device), flat]  # (N, C, d)
        spread = vectors.var(0, correction=0).sum(-1).clamp_min(torch.finfo(vectors.dtype).tiny)
        return ((vectors - keys).square().sum(-1).mean(0) / spread).double().cpu().numpy()


def draw_positions(total: int, max_vectors: int, seed: int) -> np.ndarray:
    """Draw at most `max_vectors` of `total` positions in a stream, uniformly: int64, in the order drawn."""
    return np.random.default_rng(seed).random(total).argsort(kind="stable")[:max_vectors]


def _sample_stream(
    batches: Iterable[Tensor | tuple[Tensor, Tensor]], dim: int, max_vectors: int, seed: int
) -> Tensor:
    """Return the vectors at `draw_positions` of a stream of unknown length: ``(M, dim)`` float32."""
    tickets = np.random.default_rng(seed)
    kept, drawn = torch.empty(0, dim), np.empty(0)
    for number, batch in enumerate(batches):
        states, mask = batch if isinstance(batch, tuple) else (batch, torch.ones(batch.shape[:-1]))
        if states.shape[-1:] != (dim,) or mask.shape != states.shape[:-1]:
            raise ValueError(
                f"batch {number} has shape {tuple(states.shape)} and a mask {tuple(mask.shape)}, "
                f"expected (..., {dim}) and (...)"
            )
        vectors = states.detach()[mask.bool().to(states.device)].float().cpu()
        require_finite(vectors, f"batch {number}")
        # one ticket a position, however the stream is batched; the smallest stay
        drawn = np.concatenate([drawn, tickets.random(len(vectors))])
        kept = torch.cat([kept, vectors])
        if len(kept) > 2 * max_vectors:
            smallest = np.sort(drawn.argpartition(max_vectors)[:max_vectors])
            kept, drawn = kept[smallest], drawn[smallest]
    if not len(kept):
        raise ValueError("batches held no vectors: the keys need at least one hidden state")
    return kept[drawn.argsort(kind="stable")[:max_vectors]]


def _standard_deviation(sample: Tensor) -> Tensor:
    """Measure the standard deviation of each dimension; 1 for those that an encoder has switched off."""
    std = sample.std(0, correction=0)
    # MiniLM's last layer norm switches a dimension off but for 6e-9, by which a student's, which has it on, must
    # not be divided
    varies = (std > 1e-6 * sample.mean(0).abs().clamp_min(1e-6)) & (std > 1e-2 * std.median())
    return torch.where(varies, std, torch.ones_like(std))
