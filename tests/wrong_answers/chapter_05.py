import torch
import torch.nn.functional as F

from kvlib import distillation_loss
from wrong_answers import wrong

# 5.1


def grouped(parameters, decayed, weight_decay):
    parameters = [(name, p) for name, p in parameters if p.requires_grad]
    return [
        {"params": [p for name, p in parameters if decayed(name, p)], "weight_decay": weight_decay},
        {"params": [p for name, p in parameters if not decayed(name, p)], "weight_decay": 0.0},
    ]


def matrix(_name, parameter):
    return parameter.dim() == 2


@wrong("5.1", "one list for all", "gives two groups that AdamW takes", "a list of two dictionaries")
def one_list(model, weight_decay):
    return [p for p in model.parameters() if p.requires_grad]


@wrong("5.1", "leaves the second decay out", "gives two groups that AdamW takes", "AdamW decays by its own 0.01")
def without_second(model, weight_decay):
    first, second = grouped(model.named_parameters(), matrix, weight_decay)
    return [first, {"params": second["params"]}]


@wrong("5.1", "walks through state_dict", "holds the model's own parameters", "detached tensors")
def of_state_dict(model, weight_decay):
    tensors = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    return [
        {"params": [t for t in tensors if t.dim() == 2], "weight_decay": weight_decay},
        {"params": [t for t in tensors if t.dim() != 2], "weight_decay": 0.0},
    ]


@wrong("5.1", "collects part by part", "holds no parameter twice", "a shared matrix once")
def part_by_part(model, weight_decay):
    parameters = [named for part in model.modules() for named in part.named_parameters(recurse=False)]
    return grouped(parameters, matrix, weight_decay)


@wrong("5.1", "collects parts within parts", "holds no parameter twice", "visits all parts")
def parts_within_parts(model, weight_decay):
    return grouped([named for part in model.modules() for named in part.named_parameters()], matrix, weight_decay)


@wrong("5.1", "takes frozen parameters too", "leaves frozen parameters out", "requires_grad = False")
def with_frozen(model, weight_decay):
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


@wrong("5.1", "uses a generator up", "forgets no trained parameter", "empty after one pass")
def used_up(model, weight_decay):
    trained = (p for p in model.parameters() if p.requires_grad)
    matrices = [p for p in trained if p.dim() == 2]
    others = [p for p in trained if p.dim() != 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


@wrong("5.1", "knows biases and layer norms by name, no values", "forgets no trained parameter", "does not")
def without_values(model, weight_decay):
    first, second = grouped(model.named_parameters(), matrix, weight_decay)
    return [first, {"params": [p for p in second["params"] if p.dim() == 1], "weight_decay": 0.0}]


@wrong("5.1", "writes its own weight decay", "decays matrices by the given weight decay", "the first group")
def own_decay(model, weight_decay):
    return grouped(model.named_parameters(), matrix, 0.01)


@wrong("5.1", "spares embeddings", "decays matrices by the given weight decay", "or of embeddings")
def without_embeddings(model, weight_decay):
    return grouped(model.named_parameters(), lambda name, p: matrix(name, p) and "embed" not in name, weight_decay)


@wrong("5.1", "decays all but the layer norms", "spares biases", "a bias has one dimension")
def with_biases(model, weight_decay):
    return grouped(model.named_parameters(), lambda name, p: "norm" not in name.lower(), weight_decay)


@wrong("5.1", "goes by the names of BERT", "spares layer norms", "go by dimensions")
def by_name(model, weight_decay):
    spared = ("bias", "LayerNorm.weight", "values")
    return grouped(model.named_parameters(), lambda name, _: not name.endswith(spared), weight_decay)


@wrong("5.1", "decays all that is no vector", "spares values", "three dimensions")
def no_vector(model, weight_decay):
    return grouped(model.named_parameters(), lambda _, p: p.dim() > 1, weight_decay)


# 5.2


def rows_of(values, key_indices):
    return key_indices.clamp(min=0) + values.shape[1] * torch.arange(values.shape[0])


def handed_out(values, key_indices):
    real = (key_indices >= 0).unsqueeze(-1)
    return values.flatten(0, 1)[rows_of(values, key_indices)] * real


def count(key_indices):
    return (key_indices >= 0).sum((1, 2)).unsqueeze(-1)


@wrong("5.2", "keeps codebooks apart", "gives logits of shape (B, num_labels)", "dimensions 1 and 2")
def per_codebook(values, key_indices):
    return handed_out(values, key_indices).sum(1) / (key_indices >= 0).sum(1).unsqueeze(-1)


@wrong("5.2", "takes the sum", "takes a mean, not a sum", "C · T")
def total_of_values(values, key_indices):
    return handed_out(values, key_indices).sum((1, 2))


@wrong("5.2", "sums over codebooks", "takes a mean, not a sum", "C · T")
def sum_over_codebooks(values, key_indices):
    return handed_out(values, key_indices).sum((1, 2)) / (key_indices[..., 0] >= 0).sum(1, keepdim=True)


@wrong("5.2", "all from codebook 0", "hands out each key's value from its own codebook", "row c · K + k")
def first_codebook(values, key_indices):
    real = (key_indices >= 0).unsqueeze(-1)
    return (values.flatten(0, 1)[key_indices.clamp(min=0)] * real).sum((1, 2)) / count(key_indices)


@wrong("5.2", "key 0 for padding", "hands out each key's value from its own codebook", "a key like any other")
def zero_is_padding(values, key_indices):
    rows = torch.where(key_indices < 0, 0, rows_of(values, key_indices))
    return F.embedding_bag(rows.flatten(1), values.flatten(0, 1), mode="mean", padding_idx=0)


def padded_length(values, key_indices):
    return handed_out(values, key_indices).mean((1, 2))


wrong("5.2", "divides by the padded length", "counts each sentence's own real tokens", "divide by C times that")(
    padded_length
)


@wrong("5.2", "divides by the batch's mean length", "counts each sentence's own real tokens", "of a sentence")
def mean_length(values, key_indices):
    return handed_out(values, key_indices).sum((1, 2)) / count(key_indices).double().mean()


def last_row(values, key_indices):
    return values[torch.arange(values.shape[0]), key_indices].mean((1, 2))


wrong("5.2", "looks -1 up", "leaves padding out", "-1 is a valid index")(last_row)


def padding_as_key_0(values, key_indices):
    return values.flatten(0, 1)[rows_of(values, key_indices)].mean((1, 2))


wrong("5.2", "takes -1 for key 0", "leaves padding out", "set what it fetched to 0")(padding_as_key_0)


@wrong("5.2", "detaches the values", "gives each value that fired its share of the gradient", "do not detach")
def detached(values, key_indices):
    return handed_out(values.detach(), key_indices).sum((1, 2)) / count(key_indices)


@wrong("5.2", "padding_idx=0", "gives each value that fired its share of the gradient", "without padding_idx")
def no_gradient_for_key_0(values, key_indices):
    fetched = F.embedding(rows_of(values, key_indices), values.flatten(0, 1), padding_idx=0)
    return (fetched * (key_indices >= 0).unsqueeze(-1)).sum((1, 2)) / count(key_indices)


@wrong("5.2", "loops over sentences", "needs no loop over sentences or tokens", "one look-up")
def sentence_by_sentence(values, key_indices):
    codebooks = torch.arange(values.shape[0])
    return torch.stack([values[codebooks, keys[keys[:, 0] >= 0]].mean((0, 1)) for keys in key_indices])


# 5.3


def trained(
    key_indices,
    teacher_logits,
    codebook_size,
    epochs,
    learning_rate,
    seed,
    *,
    start=0.0,
    logits_of=None,
    last=True,
    optimizer_of=torch.optim.AdamW,
    weight_decay=0.0,
    shuffle=True,
    own_generator=True,
    clear=True,
    fresh=False,
    sign=1.0,
    temperature=2.0,
):
    """Train values with one thing done otherwise."""
    generator = torch.Generator().manual_seed(seed)
    shape = key_indices.shape[2], codebook_size, teacher_logits.shape[1]
    values = (start * torch.randn(shape, generator=generator)).requires_grad_()
    make = lambda: optimizer_of([values], lr=learning_rate, weight_decay=weight_decay)  # noqa: E731
    optimizer = make()
    for _ in range(epochs):
        order = torch.randperm(len(key_indices), generator=generator if own_generator else None)
        order = order if shuffle else torch.arange(len(key_indices))
        for rows in order.split(16):
            if len(rows) < 16 and not last:
                continue
            optimizer = make() if fresh else optimizer
            keys = key_indices[rows]
            logits = logits_of(values, keys) if logits_of else handed_out(values, keys).sum((1, 2)) / count(keys)
            if clear:
                optimizer.zero_grad()
            (sign * distillation_loss(logits, teacher_logits[rows], temperature=temperature)).backward()
            optimizer.step()
    return values.detach()


def otherwise(mistake, rejected_by, hint, **options):
    wrong("5.3", mistake, rejected_by, hint)(lambda *lesson: trained(*lesson, **options))


@wrong("5.3", "codebooks last", "returns values of shape (C, K, num_labels)", "C is key_indices.shape[2]")
def codebooks_last(*lesson):
    return trained(*lesson).transpose(0, 1)


otherwise("draws the start", "starts with values at zero", "torch.zeros", start=0.02)
otherwise("looks -1 up", "moves only values whose keys fired", "not the last key", logits_of=last_row)
otherwise(
    "takes -1 for key 0", "moves only values whose keys fired", "hand out nothing", logits_of=padding_as_key_0
)
otherwise("mean over padding", "takes the mean over real tokens", "exercise 5.2", logits_of=padded_length)
otherwise("drops the last batch", "learns from every sentence", "fewer than 16", last=False)
otherwise("climbs", "comes near the teacher", "the loss must fall", sign=-1.0)
otherwise("plain gradient descent", "comes near the teacher", "1 / (C · T)", optimizer_of=torch.optim.SGD)
otherwise(
    "global generator", "gives the same values for the same seed", "not from torch's global", own_generator=False
)
otherwise("keeps the order", "shuffles by the seed", "torch.randperm", shuffle=False)
otherwise("default weight decay", "trains without weight decay", "weight_decay=0.0", weight_decay=0.01)
otherwise("never clears", "clears the gradient before each step", "optimizer.zero_grad()", clear=False)
otherwise("a new optimiser a batch", "keeps one optimiser", "before the loop", fresh=True)
otherwise("T = 1", "does AdamW's steps on the KL softened by T = 2", "temperature=2.0", temperature=1.0)


# 5.4


def chosen_size(sizes, budget, rows, *, errors=1.0, fits=None, bar_of_all=False, nothing=None, ascending=False):
    """Choose a size with one thing done otherwise."""
    affordable = sizes[fits(sizes["megabytes"], budget) if fits else sizes["megabytes"] <= budget]
    if affordable.empty:
        return nothing
    best = (sizes if bar_of_all else affordable)["accuracy"].max()
    close = affordable[affordable["accuracy"] >= best - errors * (best * (1 - best) / rows) ** 0.5]
    if close.empty:
        return None
    first = close.sort_values(["megabytes", "accuracy"], ascending=[True, ascending]).iloc[0]
    return int(first["num_codebooks"]), int(first["codebook_size"])


def chooses(mistake, rejected_by, hint, **options):
    wrong("5.4", mistake, rejected_by, hint)(lambda *given: chosen_size(*given, **options))


chooses("no budget", "keeps within the budget", "leave out what is too large", fits=lambda size, _: size > 0)
chooses(
    "below the budget",
    "lets a size fit that needs all of the budget",
    "<=, not <",
    fits=lambda size, budget: size < budget,
)
chooses("something all the same", "returns None where nothing fits", "return None if so", nothing=(8, 16))
chooses("measures by all sizes", "measures by the best size that fits", "sets no bar", bar_of_all=True)
chooses("takes the best", "gives up one standard error of accuracy", "is as good", errors=0.0)
chooses("gives up two", "gives up no more than one standard error", "one, not two", errors=2.0)
chooses("the less accurate of two", "takes the more accurate of equally small sizes", "first row", ascending=True)


@wrong("5.4", "the spread of one answer", "gives up one standard error of accuracy", "as `rows` rows can tell")
def spread_of_one(sizes, budget, _rows):
    return chosen_size(sizes, budget, 1)


@wrong("5.4", "always 130 rows", "gives up no more than one standard error", "more rows, a higher bar")
def always_130(sizes, budget, _rows):
    return chosen_size(sizes, budget, 130)
