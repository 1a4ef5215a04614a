import torch
import torch.nn.functional as F

from wrong_answers import wrong


def scores_of(vectors, keys):
    return keys.square().sum(-1) / 2 - torch.einsum("ncd,ckd->nck", vectors, keys)


def centred(vectors, keys):
    centre = keys.mean(1, keepdim=True)
    return vectors - centre.transpose(0, 1), keys - centre


def best_of(parts):
    """Keep the best of (first key, scores) of several blocks."""
    smallest, found = torch.tensor(torch.inf), torch.tensor(0)
    for first, scores in parts:
        least, inside = scores.min(-1)
        smallest, found = torch.minimum(least, smallest), torch.where(least < smallest, first + inside, found)
    return found


def blocks_of(keys, block):
    return [(first, keys[:, first : first + block]) for first in range(0, keys.shape[1], block)]


@wrong("3.1", "codebooks before vectors", "gives one index for each vector and codebook", "the result is (N, C)")
def codebooks_first(vectors, keys, block):
    return best_of((first, scores_of(vectors, part).transpose(0, 1)) for first, part in blocks_of(keys, block))


@wrong("3.1", "indices as int32", "gives one index for each vector and codebook", "int64")
def narrow_integers(vectors, keys, block):
    return best_of((first, scores_of(vectors, part)) for first, part in blocks_of(keys, block)).int()


@wrong("3.1", "forgets |k|²/2", "finds the nearest key where one block holds all", "favours long keys")
def product_alone(vectors, keys, block):
    return best_of((first, -torch.einsum("ncd,ckd->nck", vectors, part)) for first, part in blocks_of(keys, block))


@wrong(
    "3.1", "forgets where the block begins", "numbers the keys across blocks", "the place where the block begins"
)
def without_offset(vectors, keys, block):
    return best_of((0, scores_of(vectors, part)) for _, part in blocks_of(keys, block))


@wrong("3.1", "the last block wins", "keeps the best of all blocks", "only where a block has a smaller one")
def last_block(vectors, keys, block):
    for first, part in blocks_of(keys, block):
        found = first + scores_of(vectors, part).argmin(-1)
    return found


@wrong("3.1", "centres every block on its own mean", "keeps the best of all blocks", "leave out the same term")
def own_centres(vectors, keys, block):
    return best_of((first, scores_of(*centred(vectors, part))) for first, part in blocks_of(keys, block))


@wrong("3.1", "drops the last keys", "searches a last block that is shorter", "are three blocks")
def whole_blocks(vectors, keys, block):
    whole = keys[:, : keys.shape[1] // block * block]
    return best_of((first, scores_of(vectors, part)) for first, part in blocks_of(whole, block))


@wrong(
    "3.1", "takes the later of two equals", "gives ties to the lowest index", "smaller (<), not where it is equal"
)
def later_tie(vectors, keys, block):
    smallest, found = torch.tensor(torch.inf), torch.tensor(0)
    for first, part in blocks_of(keys, block):
        least, inside = scores_of(vectors, part).min(-1)
        closer = least <= smallest
        smallest, found = torch.where(closer, least, smallest), torch.where(closer, first + inside, found)
    return found


@wrong("3.1", "all scores at once", "holds the scores of one block at a time", "drop them before the next")
def all_scores(vectors, keys, block):
    return scores_of(*centred(vectors, keys)).argmin(-1)


@wrong("3.1", "slices the vectors instead", "holds the scores of one block at a time", "one block of keys")
def slices_of_vectors(vectors, keys, block):
    return torch.cat([scores_of(*centred(part, keys)).argmin(-1) for part in vectors.split(block)])


@wrong("3.1", "a tensor of differences", "holds the scores of one block at a time", "no tensor of differences")
def differences(vectors, keys, block):
    blocks = blocks_of(keys, block)
    return best_of((first, (vectors.unsqueeze(2) - part).square().sum(-1)) for first, part in blocks)


@wrong("3.1", "does not centre", "is right far from the origin", "subtract each codebook's mean key")
def not_centred(vectors, keys, block):
    return best_of((first, scores_of(vectors, part)) for first, part in blocks_of(keys, block))


def chosen_of(keys, key_indices):
    return keys[torch.arange(len(keys)), key_indices]


def copied(vectors, chosen):
    return chosen + (vectors - vectors.detach())


def mean_square(vectors, chosen):
    return (vectors - chosen).square().mean()


@wrong("3.2", "forgets the commitment", "gives quantised vectors and one number", "return the pair")
def quantised_alone(vectors, keys, key_indices):
    return copied(vectors, chosen_of(keys, key_indices).detach())


@wrong("3.2", "commitment row by row", "gives quantised vectors and one number", "a mean over everything")
def commitment_of_rows(vectors, keys, key_indices):
    chosen = chosen_of(keys, key_indices).detach()
    return copied(vectors, chosen), (vectors - chosen).square().mean(-1)


@wrong("3.2", "reads all from codebook 0", "hands out the chosen keys", "torch.arange(C) beside key_indices")
def first_codebook(vectors, keys, key_indices):
    chosen = keys[0][key_indices].detach()
    return copied(vectors, chosen), mean_square(vectors, chosen)


@wrong("3.2", "bracket with both signs wrong", "hands out the chosen keys", "gets key key_indices[n, c]")
def vectors_come_out(vectors, keys, key_indices):
    chosen = chosen_of(keys, key_indices).detach()
    return vectors + (chosen - chosen.detach()), mean_square(vectors, chosen)


@wrong(
    "3.2", "hands out keys and no more", "passes its gradient to the vectors unchanged", "no path through an index"
)
def plain_lookup(vectors, keys, key_indices):
    chosen = chosen_of(keys, key_indices)
    return chosen, mean_square(vectors, chosen.detach())


@wrong(
    "3.2",
    "detaches the vectors",
    "passes its gradient to the vectors unchanged",
    "has gradient one in the vectors",
)
def detached_vectors(vectors, keys, key_indices):
    chosen = chosen_of(keys, key_indices)
    return vectors.detach() + (chosen - vectors.detach()), mean_square(vectors, chosen.detach())


@wrong("3.2", "scales instead of adding", "passes its gradient to the vectors unchanged", "add to the chosen keys")
def scaled(vectors, keys, key_indices):
    chosen = chosen_of(keys, key_indices).detach()
    return chosen * (vectors / vectors.detach()), mean_square(vectors, chosen)


@wrong("3.2", "keys learn through the output", "gives the keys no gradient", "detach the chosen keys")
def keys_learn(vectors, keys, key_indices):
    chosen = chosen_of(keys, key_indices)
    return copied(vectors, chosen), mean_square(vectors, chosen.detach())


@wrong("3.2", "sums over d", "measures the mean squared difference", "one mean over all")
def summed_commitment(vectors, keys, key_indices):
    chosen = chosen_of(keys, key_indices).detach()
    return copied(vectors, chosen), (vectors - chosen).square().sum(-1).mean()


@wrong("3.2", "does not square", "measures the mean squared difference", "square the N × C × d differences")
def not_squared(vectors, keys, key_indices):
    chosen = chosen_of(keys, key_indices).detach()
    return copied(vectors, chosen), (vectors - chosen).norm(dim=-1).mean()


@wrong(
    "3.2", "compares with what it returns", "pulls the vectors towards their keys", "moves along with the vectors"
)
def follows(vectors, keys, key_indices):
    quantised = copied(vectors, chosen_of(keys, key_indices).detach())
    return quantised, mean_square(vectors, quantised)


@wrong(
    "3.2", "detaches the wrong side", "pulls the vectors towards their keys", "detach the keys, not the vectors"
)
def keys_commit(vectors, keys, key_indices):
    chosen = chosen_of(keys, key_indices)
    return copied(vectors, chosen.detach()), mean_square(vectors.detach(), chosen)


@wrong(
    "3.2", "keys learn through the loss", "leaves the keys out of the commitment's gradient", "only the vectors"
)
def both_commit(vectors, keys, key_indices):
    chosen = chosen_of(keys, key_indices)
    return copied(vectors, chosen.detach()), mean_square(vectors, chosen)


def statistics(keys, vectors, key_indices):
    (C, K, d), N = keys.shape, len(vectors)
    flat = (key_indices + K * torch.arange(C)).flatten()
    hits = torch.bincount(flat, minlength=C * K).view(C, K)
    return hits, keys.new_zeros(C * K, d).index_add(0, flat, vectors.reshape(N * C, d)).view(C, K, d)


def moved(keys, counts, hits, sums, decay):
    new_counts = decay * counts + (1 - decay) * hits
    new_sums = decay * counts.unsqueeze(-1) * keys + (1 - decay) * sums
    return torch.where(new_counts.unsqueeze(-1) > 0, new_sums / new_counts.unsqueeze(-1), keys), new_counts


def revived(keys, counts, vectors, dead):
    codebook, key = dead.nonzero(as_tuple=True)
    keys, counts = keys.clone(), counts.clone()
    keys[codebook, key] = vectors[torch.randint(len(vectors), (len(key),)), codebook]
    counts[codebook, key] = len(vectors) / keys.shape[1]
    return keys, counts


def revival(exercise_step):
    """Turn a step, right or wrong, into a whole answer."""

    def answer(keys, counts, vectors, key_indices, decay, dead_below):
        new_keys, new_counts = exercise_step(keys, counts, *statistics(keys, vectors, key_indices), decay)
        return revived(new_keys, new_counts, vectors, new_counts < dead_below)

    return answer


@wrong("3.3", "forgets the counts", "gives new keys and new counts", "return the pair")
def keys_alone(keys, counts, vectors, key_indices, decay, dead_below):
    return revival(moved)(keys, counts, vectors, key_indices, decay, dead_below)[0]


@wrong("3.3", "counts over all codebooks", "counts each codebook's hits apart", "place c · K + k")
def one_table(keys, counts, vectors, key_indices, decay, dead_below):
    (C, K, d), flat = keys.shape, key_indices.flatten()
    hits = torch.bincount(flat, minlength=K).expand(C, K)
    sums = keys.new_zeros(K, d).index_add(0, flat, vectors.reshape(-1, d)).expand(C, K, d)
    new_keys, new_counts = moved(keys, counts, hits, sums, decay)
    return revived(new_keys, new_counts, vectors, new_counts < dead_below)


@wrong("3.3", "counts from now on only", "lets the counts decay", "both factors")
@revival
def undecayed_hits(keys, counts, hits, sums, decay):
    return moved(keys, counts, hits, sums, decay)[0], decay * counts + hits


@wrong("3.3", "a sum for a mean", "moves a key to the mean of its vectors at decay 0", "neither the bare sum")
@revival
def sum_of_vectors(keys, counts, hits, sums, decay):
    return decay * keys + (1 - decay) * sums, moved(keys, counts, hits, sums, decay)[1]


@wrong("3.3", "divides by the batch", "moves a key to the mean of its vectors at decay 0", "a mean over the batch")
@revival
def mean_over_batch(keys, counts, hits, sums, decay):
    return decay * keys + (1 - decay) * sums / hits[0].sum(), moved(keys, counts, hits, sums, decay)[1]


@wrong("3.3", "averages keys, not sums", "weighs the old key by its old count", "decay · old count · key")
@revival
def average_of_keys(keys, counts, hits, sums, decay):
    return decay * keys + (1 - decay) * sums / hits.unsqueeze(-1), moved(keys, counts, hits, sums, decay)[1]


@wrong("3.3", "the sum with the new count", "weighs the old key by its old count", "decay · old count · key")
@revival
def new_count_in_sum(keys, counts, hits, sums, decay):
    new_counts = decay * counts + (1 - decay) * hits
    new_sums = decay * new_counts.unsqueeze(-1) * keys + (1 - decay) * sums
    return new_sums / new_counts.unsqueeze(-1), new_counts


@wrong("3.3", "divides zero by zero", "stays finite where a count is zero", "keep the old key")
@revival
def zero_by_zero(keys, counts, hits, sums, decay):
    new_counts = decay * counts + (1 - decay) * hits
    new_sums = decay * counts.unsqueeze(-1) * keys + (1 - decay) * sums
    return new_sums / new_counts.unsqueeze(-1), new_counts


@wrong("3.3", "moves empty keys to the origin", "stays finite where a count is zero", "keep the old key")
@revival
def clamped(keys, counts, hits, sums, decay):
    new_counts = decay * counts + (1 - decay) * hits
    new_sums = decay * counts.unsqueeze(-1) * keys + (1 - decay) * sums
    return new_sums / new_counts.unsqueeze(-1).clamp(min=1e-9), new_counts


@wrong("3.3", "revives nobody", "replaces a dead key by a vector of its own codebook", "a random row of the batch")
def never_revives(keys, counts, vectors, key_indices, decay, dead_below):
    return moved(keys, counts, *statistics(keys, vectors, key_indices), decay)


@wrong(
    "3.3",
    "takes other codebooks' vectors",
    "replaces a dead key by a vector of its own codebook",
    "[row, codebook]",
)
def foreign_vectors(keys, counts, vectors, key_indices, decay, dead_below):
    keys, counts = moved(keys, counts, *statistics(keys, vectors, key_indices), decay)
    dead = counts < dead_below
    everything = vectors.flatten(0, 1)
    keys[dead] = everything[torch.randint(len(everything), (int(dead.sum()),))]
    counts[dead] = len(vectors) / keys.shape[1]
    return keys, counts


@wrong("3.3", "judges by the old counts", "judges a key by its new count", "compare the new ones")
def by_old_counts(keys, counts, vectors, key_indices, decay, dead_below):
    new_keys, new_counts = moved(keys, counts, *statistics(keys, vectors, key_indices), decay)
    return revived(new_keys, new_counts, vectors, counts < dead_below)


@wrong("3.3", "dies in all codebooks", "revives no living key", "a key number in all of them")
def in_all_codebooks(keys, counts, vectors, key_indices, decay, dead_below):
    new_keys, new_counts = moved(keys, counts, *statistics(keys, vectors, key_indices), decay)
    return revived(new_keys, new_counts, vectors, (new_counts < dead_below).any(0).expand(counts.shape))


@wrong("3.3", "one vector for all dead keys", "spreads the dead keys over the batch", "one row for each dead key")
def one_vector(keys, counts, vectors, key_indices, decay, dead_below):
    new_keys, new_counts = moved(keys, counts, *statistics(keys, vectors, key_indices), decay)
    dead = new_counts < dead_below
    row = int(torch.randint(len(vectors), ()))
    new_keys = torch.where(dead.unsqueeze(-1), vectors[row].unsqueeze(1), new_keys)
    return new_keys, torch.where(dead, len(vectors) / keys.shape[1], new_counts)


@wrong("3.3", "keeps the old count", "gives a revived key an average count", "pass for dead again")
def key_without_count(keys, counts, vectors, key_indices, decay, dead_below):
    new_keys, new_counts = moved(keys, counts, *statistics(keys, vectors, key_indices), decay)
    return revived(new_keys, new_counts, vectors, new_counts < dead_below)[0], new_counts


@wrong("3.3", "one-hot statistics", "needs no one-hot tensor", "bincount counts hits")
def one_hot(keys, counts, vectors, key_indices, decay, dead_below):
    chosen = F.one_hot(key_indices, keys.shape[1]).to(keys.dtype)
    sums = torch.einsum("nck,ncd->ckd", chosen, vectors)
    new_keys, new_counts = moved(keys, counts, chosen.sum(0), sums, decay)
    return revived(new_keys, new_counts, vectors, new_counts < dead_below)


def remedies(top, silent):
    """Decide by the largest share and the share of silent keys."""
    return [
        "refit" if one > 0.5 else "revive" if other > 0.1 else "freeze"
        for one, other in zip(top.tolist(), silent.tolist(), strict=True)
    ]


def shares(hits):
    return hits / hits.sum(-1, keepdim=True)


def silent_share(hits):
    return (hits == 0).double().mean(-1)


def perplexities(hits):
    return torch.exp(torch.special.entr(shares(hits)).sum(-1))


@wrong("3.4", "one remedy for all", "gives one remedy for each codebook", "a list of C texts")
def worst_of_all(hits):
    return remedies(shares(hits).max(-1).values, silent_share(hits))[0]


@wrong("3.4", "names the illness", "gives one remedy for each codebook", '"freeze", "revive" or "refit"')
def illnesses(hits):
    names = {"freeze": "healthy", "revive": "dead keys", "refit": "collapsed"}
    return [names[remedy] for remedy in remedies(shares(hits).max(-1).values, silent_share(hits))]


@wrong("3.4", "wants all keys alike", "leaves a healthy codebook alone, however uneven", "words do, too")
def wants_uniform(hits):
    return ["freeze" if one > 0.95 * hits.shape[1] else "refit" for one in perplexities(hits).tolist()]


@wrong("3.4", "calls rare keys dead", "leaves a healthy codebook alone, however uneven", "words do, too")
def rare_is_dead(hits):
    rare = (shares(hits) < 0.5 / hits.shape[1]).double().mean(-1)
    return remedies(shares(hits).max(-1).values, rare)


@wrong("3.4", "revives for a single key", "forgives one silent key in a hundred", "a single key without hits")
def any_silent_key(hits):
    return remedies(shares(hits).max(-1).values, (hits == 0).any(-1).double())


@wrong("3.4", "perplexity alone", "revives dead keys where the others share the work", "it alone cannot tell")
def by_perplexity(hits):
    part = (perplexities(hits) / hits.shape[1]).tolist()
    return ["refit" if one < 0.5 else "revive" if one < 0.7 else "freeze" for one in part]


@wrong("3.4", "one threshold for every K", "revives dead keys where the others share the work", "depends on K")
def fixed_perplexity(hits):
    return remedies((perplexities(hits) < 5).double(), silent_share(hits))


@wrong("3.4", "used fraction alone", "sees a collapse in which every key is hit", "says nothing here")
def by_used_fraction(hits):
    part = silent_share(hits).tolist()
    return ["refit" if one > 0.8 else "revive" if one > 0.1 else "freeze" for one in part]


@wrong("3.4", "dead keys first", "does not take a collapse for dead keys", "ask for a collapse first")
def dead_keys_first(hits):
    top, silent = shares(hits).max(-1).values, silent_share(hits)
    return [
        "revive" if other > 0.1 else "refit" if one > 0.5 else "freeze"
        for one, other in zip(top.tolist(), silent.tolist(), strict=True)
    ]


@wrong("3.4", "a threshold in hits", "does not depend on the number of tokens", "divide the hits by their sum")
def absolute(hits):
    return remedies((hits.max(-1).values > 90).double(), silent_share(hits))


@wrong("3.4", "divides by all hits", "judges each codebook by itself", "go over the keys alone")
def over_all(hits):
    return remedies((hits / hits.sum()).max(-1).values, silent_share(hits))
