import torch

from wrong_answers import wrong

CARRIED = ("keys", "counts", "mean", "std", "projections", "frozen")


def right_state(teacher_state, dim_value):
    state = {name: tensor.clone() for name, tensor in teacher_state.items()}
    state["values"] = torch.zeros(*teacher_state["keys"].shape[:2], dim_value)
    return state


@wrong("7.1", "leaves the values out", "gives a state of the student's names", "load_state_dict wants a tensor")
def without_values(teacher_state, dim_value):
    return {name: tensor.clone() for name, tensor in teacher_state.items() if name != "values"}


@wrong("7.1", "names of the whole model", "gives a state of the student's names", "the teacher's names")
def prefixed(teacher_state, dim_value):
    return {f"bottleneck.{name}": tensor for name, tensor in right_state(teacher_state, dim_value).items()}


@wrong("7.1", "brings keys into the raw space", "carries the keys bit for bit", "neither scaled nor fitted again")
def scaled_back(teacher_state, dim_value):
    state = right_state(teacher_state, dim_value)
    mean, std = (teacher_state[name].unflatten(0, (state["keys"].shape[0], -1)) for name in ("mean", "std"))
    state["keys"] = state["keys"] * std.unsqueeze(1) + mean.unsqueeze(1)
    return state


@wrong("7.1", "keeps mean 0 and std 1", "carries the standardisation", "they belong to the keys")
def own_standardisation(teacher_state, dim_value):
    zeros, ones = torch.zeros_like(teacher_state["mean"]), torch.ones_like(teacher_state["std"])
    return right_state(teacher_state, dim_value) | {"mean": zeros, "std": ones}


@wrong("7.1", "starts counting again", "carries the counts", "passes for one without keys")
def zero_counts(teacher_state, dim_value):
    return right_state(teacher_state, dim_value) | {"counts": torch.zeros_like(teacher_state["counts"])}


@wrong("7.1", "copies everything", "starts with values of its own", "stays behind")
def with_values(teacher_state, dim_value):
    return {name: tensor.clone() for name, tensor in teacher_state.items()}


@wrong("7.1", "cuts the teacher's values", "starts with values of its own", "zeros of shape (C, K, dim_value)")
def cut_values(teacher_state, dim_value):
    state = right_state(teacher_state, dim_value)
    return state | {"values": teacher_state["values"][..., :dim_value].clone()}


@wrong("7.1", "forgets to freeze", "marks the keys as frozen", "init_keys could move the keys")
def not_frozen(teacher_state, dim_value):
    return right_state(teacher_state, dim_value) | {"frozen": torch.tensor(False)}


@wrong("7.1", "lists the names of chunks", "carries a random projection, too", "instead of listing them")
def listed(teacher_state, dim_value):
    state = right_state(teacher_state, dim_value)
    return {name: state[name] for name in ("values", "keys", "counts", "mean", "std", "frozen")}


@wrong("7.1", "a dictionary of the same tensors", "shares no memory with the teacher", "clone() every tensor")
def same_tensors(teacher_state, dim_value):
    return dict(teacher_state) | {"values": right_state(teacher_state, dim_value)["values"]}


@wrong("7.1", "detaches instead of copying", "shares no memory with the teacher", "look into the same memory")
def detached(teacher_state, dim_value):
    state = {name: teacher_state[name].detach() for name in CARRIED if name in teacher_state}
    return state | {"values": right_state(teacher_state, dim_value)["values"]}


def flat(indices):
    rows = indices.flatten(0, -2)
    return rows[rows[:, 0] >= 0]


def shares(indices, codebook_size):
    """Count key indices ``(N, C)``: shares ``(C, K)``."""
    return torch.nn.functional.one_hot(indices, codebook_size).double().mean(0)


def kappa(agreement, chance):
    return torch.where(chance < 1, (agreement - chance) / (1 - chance), 0.0)


def parts(teacher_indices, student_indices, codebook_size):
    teacher, student = flat(teacher_indices), flat(student_indices)
    agreement = (teacher == student).double().mean(0)
    return agreement, shares(teacher, codebook_size), shares(student, codebook_size)


@wrong("7.2", "one number for all", "gives one number for each codebook", "keep the last dimension")
def one_for_all(teacher_indices, student_indices, codebook_size):
    agreement, one, other = parts(teacher_indices, student_indices, codebook_size)
    return kappa(agreement, (one * other).sum(1)).mean()


@wrong("7.2", "does not divide", "is 1 where both always fire the same key", "what there was to gain")
def difference(teacher_indices, student_indices, codebook_size):
    agreement, one, other = parts(teacher_indices, student_indices, codebook_size)
    return agreement - (one * other).sum(1)


@wrong("7.2", "times better than chance", "is 1 where both always fire the same key", "over chance by")
def ratio(teacher_indices, student_indices, codebook_size):
    agreement, one, other = parts(teacher_indices, student_indices, codebook_size)
    return agreement / (one * other).sum(1)


@wrong("7.2", "agreement alone", "is 0 at chance", "subtract that before you divide")
def agreement_alone(teacher_indices, student_indices, codebook_size):
    return parts(teacher_indices, student_indices, codebook_size)[0]


@wrong("7.2", "chance is 1 / K", "takes chance from how often each key is fired", "fired alike")
def uniform_chance(teacher_indices, student_indices, codebook_size):
    agreement, *_ = parts(teacher_indices, student_indices, codebook_size)
    return kappa(agreement, torch.full_like(agreement, 1 / codebook_size))


@wrong("7.2", "Scott's pi", "takes chance from how often each key is fired", "a mean of the two shares")
def pooled_shares(teacher_indices, student_indices, codebook_size):
    agreement, one, other = parts(teacher_indices, student_indices, codebook_size)
    return kappa(agreement, ((one + other) / 2).square().sum(1))


@wrong("7.2", "one chance for all codebooks", "takes each codebook's own chance", "codebook by codebook")
def mean_chance(teacher_indices, student_indices, codebook_size):
    agreement, one, other = parts(teacher_indices, student_indices, codebook_size)
    return kappa(agreement, (one * other).sum(1).mean().expand(agreement.shape))


@wrong("7.2", "padding agrees", "leaves padding out", "-1 equals -1, but no key fired")
def padding_agrees(teacher_indices, student_indices, codebook_size):
    _, one, other = parts(teacher_indices, student_indices, codebook_size)
    return kappa((teacher_indices == student_indices).double().mean((0, 1)), (one * other).sum(1))


@wrong("7.2", "counts the padding", "leaves padding out", "before you count anything")
def padding_counted(teacher_indices, student_indices, codebook_size):
    one, other = (shares(indices.flatten(0, -2), codebook_size) for indices in (teacher_indices, student_indices))
    return kappa((teacher_indices == student_indices).double().mean((0, 1)), (one * other).sum(1))


@wrong("7.2", "divides zero by zero", "is 0 where one key takes all", "nothing could be gained")
def zero_by_zero(teacher_indices, student_indices, codebook_size):
    agreement, one, other = parts(teacher_indices, student_indices, codebook_size)
    chance = (one * other).sum(1)
    return (agreement - chance) / (1 - chance)


def cut(states, keys):
    return states.unflatten(-1, (keys.shape[0], -1))


def gaps(vectors, keys):
    return (vectors.unsqueeze(2) - keys).square().sum(-1).amin(-1)  # (N, C)


def spread(vectors):
    return vectors.var(0, correction=0).sum(-1)


def vectors_of(states, mean, std, keys):
    return cut((states - mean) / std, keys)


@wrong("7.3", "a mean over the codebooks", "gives one number for each codebook", "keep the codebooks")
def mean_error(states, mean, std, keys):
    vectors = vectors_of(states, mean, std, keys)
    return (gaps(vectors, keys).mean(0) / spread(vectors)).mean()


@wrong("7.3", "deals the dimensions out in turn", "is 0 where every vector is a key", "neighbouring chunks")
def interleaved(states, mean, std, keys):
    vectors = ((states - mean) / std).unflatten(-1, (-1, keys.shape[0])).transpose(1, 2)
    return gaps(vectors, keys).mean(0) / spread(vectors)


@wrong("7.3", "all keys for every codebook", "is 0 where every vector is a key", "and its own keys")
def first_keys(states, mean, std, keys):
    vectors = vectors_of(states, mean, std, keys)
    return gaps(vectors, keys[:1].expand(keys.shape)).mean(0) / spread(vectors)


@wrong("7.3", "does not standardise", "standardises by the mean and std given", "subtract and divide by those")
def raw(states, mean, std, keys):
    vectors = cut(states, keys)
    return gaps(vectors, keys).mean(0) / spread(vectors)


@wrong(
    "7.3", "the student's own mean and std", "standardises by the mean and std given", "not by the student's own"
)
def own_statistics(states, mean, std, keys):
    vectors = vectors_of(states, states.mean(0), states.std(0), keys)
    return gaps(vectors, keys).mean(0) / spread(vectors)


@wrong("7.3", "does not divide", "does not change when all is three times as large", "by a variance")
def undivided(states, mean, std, keys):
    return gaps(vectors_of(states, mean, std, keys), keys).mean(0)


@wrong("7.3", "distances, not squares", "does not change when all is three times as large", "a distance by three")
def unsquared(states, mean, std, keys):
    vectors = vectors_of(states, mean, std, keys)
    return gaps(vectors, keys).sqrt().mean(0) / spread(vectors)


@wrong(
    "7.3", "the variance of one dimension", "is 1 where the only key is the mean", "summed over the d dimensions"
)
def variance_per_dimension(states, mean, std, keys):
    vectors = vectors_of(states, mean, std, keys)
    return gaps(vectors, keys).mean(0) / vectors.var(0, correction=0).mean(-1)


@wrong("7.3", "torch's own var", "is 1 where the only key is the mean", "correction=0")
def unbiased(states, mean, std, keys):
    vectors = vectors_of(states, mean, std, keys)
    return gaps(vectors, keys).mean(0) / vectors.var(0).sum(-1)


@wrong("7.3", "squares for a variance", "measures the variance about the vectors' own mean", "around zero")
def about_zero(states, mean, std, keys):
    vectors = vectors_of(states, mean, std, keys)
    return gaps(vectors, keys).mean(0) / vectors.square().sum(-1).mean(0)


@wrong("7.3", "one variance for all", "divides by each codebook's own variance", "not over codebooks")
def one_variance(states, mean, std, keys):
    vectors = vectors_of(states, mean, std, keys)
    return gaps(vectors, keys).mean(0) / spread(vectors).mean()


@wrong("7.3", "the largest product", "measures to the nearest key", "favours long keys")
def largest_product(states, mean, std, keys):
    vectors = vectors_of(states, mean, std, keys)
    best = torch.einsum("ncd,ckd->nck", vectors, keys).argmax(-1)
    chosen = keys[torch.arange(len(keys)), best]
    return (vectors - chosen).square().sum(-1).mean(0) / spread(vectors)
