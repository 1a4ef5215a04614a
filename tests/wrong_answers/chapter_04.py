import torch
import torch.nn.functional as F

from wrong_answers import wrong

KL = ("4.1", "forgets T²", "keeps the size of its gradient as T grows", "multiply the KL by T**2")


def kl_rows(student_logits, teacher_logits, temperature):
    student = F.log_softmax(student_logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
    return (teacher.exp() * (teacher - student)).sum(-1)


@wrong(*KL)
def without_square(student_logits, teacher_logits, temperature):
    return kl_rows(student_logits, teacher_logits, temperature).mean()


@wrong("4.1", "leaves the rows apart", "gives one number", "take the mean over the rows")
def row_by_row(student_logits, teacher_logits, temperature):
    return kl_rows(student_logits, teacher_logits, temperature) * temperature**2


@wrong("4.1", "takes the cross-entropy", "is zero where student and teacher agree", "difference of two logarithms")
def soft_cross_entropy(student_logits, teacher_logits, temperature):
    soft = F.softmax(teacher_logits / temperature, dim=-1)
    return F.cross_entropy(student_logits / temperature, soft) * temperature**2


@wrong("4.1", "softmax over the rows", "does not change when a row's logits all rise by 1", "dim=-1")
def over_rows(student_logits, teacher_logits, temperature):
    student, teacher = (logits.T for logits in (student_logits, teacher_logits))
    return kl_rows(student, teacher, temperature).mean() * temperature**2


@wrong(
    "4.1",
    "swaps teacher and student",
    "is the teacher's divergence from the student",
    "student's logarithms first",
)
def swapped(student_logits, teacher_logits, temperature):
    return kl_rows(teacher_logits, student_logits, temperature).mean() * temperature**2


@wrong("4.1", 'reduction="mean"', "is a mean over rows, not over rows and classes", "batchmean")
def torch_mean(student_logits, teacher_logits, temperature):
    student = F.log_softmax(student_logits / temperature, dim=-1)
    teacher = F.softmax(teacher_logits / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="mean") * temperature**2


@wrong("4.1", "log of softmax", "stays finite for sure teachers", "take log_softmax")
def log_of_softmax(student_logits, teacher_logits, temperature):
    student = F.softmax(student_logits / temperature, dim=-1)
    teacher = F.softmax(teacher_logits / temperature, dim=-1)
    return (teacher * (teacher.log() - student.log())).sum(-1).mean() * temperature**2


@wrong("4.1", "softens the student only", "softens both sides by T", "the teacher's logits by T")
def one_side(student_logits, teacher_logits, temperature):
    return kl_rows(student_logits, teacher_logits * temperature, temperature).mean() * temperature**2


# 4.2


def softened_difference(student_logits, teacher_logits, temperature):
    return F.softmax(student_logits / temperature, dim=-1) - F.softmax(teacher_logits / temperature, dim=-1)


@wrong("4.2", "returns the length of the gradient", "gives a number for each logit", "the student's logits")
def length(student_logits, teacher_logits, temperature):
    return (temperature * softened_difference(student_logits, teacher_logits, temperature)).norm()


@wrong(
    "4.2",
    "takes the teacher's class for the label",
    "is zero where student and teacher agree",
    "not its most likely class",
)
def hard_target(student_logits, teacher_logits, temperature):
    target = F.one_hot(teacher_logits.argmax(-1), teacher_logits.shape[-1])
    return temperature * (F.softmax(student_logits / temperature, dim=-1) - target) / len(student_logits)


@wrong("4.2", "softmax over the rows", "sums to zero over the classes of a row", "dim=-1")
def gradient_over_rows(student_logits, teacher_logits, temperature):
    difference = softened_difference(student_logits.T, teacher_logits.T, temperature).T
    return temperature * difference / len(student_logits)


@wrong(
    "4.2",
    "forgets the denominator",
    "sums to zero over the classes of a row",
    "its denominator has a derivative too",
)
def without_denominator(student_logits, teacher_logits, temperature):
    return -temperature * F.softmax(teacher_logits / temperature, dim=-1) / len(student_logits)


@wrong("4.2", "teacher minus student", "points uphill", "student minus teacher")
def downhill(student_logits, teacher_logits, temperature):
    return -temperature * softened_difference(student_logits, teacher_logits, temperature) / len(student_logits)


@wrong("4.2", "probabilities at T = 1", "compares the softened distributions", "softmax(logits / T)")
def not_softened(student_logits, teacher_logits, temperature):
    return temperature * softened_difference(student_logits, teacher_logits, 1.0) / len(student_logits)


@wrong("4.2", "forgets 1 / B", "is that of a mean over the rows", "each row gets 1 / B")
def of_a_sum(student_logits, teacher_logits, temperature):
    return temperature * softened_difference(student_logits, teacher_logits, temperature)


@wrong("4.2", "divides by rows times classes", "divides by B alone", "a sum over the classes")
def over_elements(student_logits, teacher_logits, temperature):
    difference = softened_difference(student_logits, teacher_logits, temperature)
    return temperature * difference / student_logits.numel()


@wrong("4.2", "forgets the factor T", "has the right power of T", "takes one factor away")
def without_t(student_logits, teacher_logits, temperature):
    return softened_difference(student_logits, teacher_logits, temperature) / len(student_logits)


@wrong("4.2", "forgets the chain rule", "has the right power of T", "takes one factor away")
def t_squared(student_logits, teacher_logits, temperature):
    return temperature**2 * softened_difference(student_logits, teacher_logits, temperature) / len(student_logits)


@wrong("4.2", "asks autograd", "needs no autograd", "no backward()")
def by_autograd(student_logits, teacher_logits, temperature):
    student = student_logits.clone().requires_grad_()
    (kl_rows(student, teacher_logits, temperature).mean() * temperature**2).backward()
    return student.grad


# 4.3


def mixed(soft, hard, alpha):
    return alpha * soft + (1 - alpha) * hard


def soft_term(student_logits, teacher_logits, temperature):
    return kl_rows(student_logits, teacher_logits, temperature).mean() * temperature**2


def label_mean(student_logits, labels):
    return F.cross_entropy(student_logits, labels, reduction="sum") / (labels >= 0).sum().clamp(min=1)


@wrong("4.3", "leaves the rows apart", "gives one number", "both terms are means")
def losses_of_rows(student_logits, teacher_logits, labels, temperature, alpha):
    soft = kl_rows(student_logits, teacher_logits, temperature) * temperature**2
    return mixed(soft, F.cross_entropy(student_logits, labels, reduction="none"), alpha)


@wrong("4.3", "alpha weighs the labels", "gives alpha to the teacher", "alpha weighs the soft term")
def alpha_to_labels(student_logits, teacher_logits, labels, temperature, alpha):
    soft = soft_term(student_logits, teacher_logits, temperature)
    return mixed(soft, label_mean(student_logits, labels), 1 - alpha)


@wrong("4.3", "drops unlabelled rows first", "hears the teacher in every row", "from the label term only")
def labelled_only(student_logits, teacher_logits, labels, temperature, alpha):
    kept = labels >= 0
    soft = soft_term(student_logits[kept], teacher_logits[kept], temperature)
    return mixed(soft, F.cross_entropy(student_logits[kept], labels[kept]), alpha)


@wrong("4.3", "forgets T²", "takes T² times the KL, a mean over all rows", "its factor T**2 included")
def mixed_without_square(student_logits, teacher_logits, labels, temperature, alpha):
    soft = kl_rows(student_logits, teacher_logits, temperature).mean()
    return mixed(soft, label_mean(student_logits, labels), alpha)


@wrong("4.3", "reads −100 as class 0", "does not read −100 as a class", "ignore_index")
def clamped(student_logits, teacher_logits, labels, temperature, alpha):
    soft = soft_term(student_logits, teacher_logits, temperature)
    return mixed(soft, F.cross_entropy(student_logits, labels.clamp(min=0)), alpha)


@wrong("4.3", "softens the label term", "reads the labels at T = 1", "raw logits")
def softened_labels(student_logits, teacher_logits, labels, temperature, alpha):
    soft = soft_term(student_logits, teacher_logits, temperature)
    return mixed(soft, label_mean(student_logits / temperature, labels), alpha)


@wrong("4.3", "divides the labels' sum by B", "takes the label mean over labelled rows", "number of labels")
def over_all_rows(student_logits, teacher_logits, labels, temperature, alpha):
    hard = F.cross_entropy(student_logits, labels, reduction="none").mean()
    return mixed(soft_term(student_logits, teacher_logits, temperature), hard, alpha)


@wrong("4.3", "mean of no label", "is a number where no row is labelled", "divide by at least 1")
def mean_of_nothing(student_logits, teacher_logits, labels, temperature, alpha):
    soft = soft_term(student_logits, teacher_logits, temperature)
    return mixed(soft, F.cross_entropy(student_logits, labels), alpha)


@wrong(
    "4.3", "soft term at full weight", "keeps alpha where no row is labelled", "alpha still weighs the teacher's"
)
def without_alpha(student_logits, teacher_logits, labels, temperature, alpha):
    soft = soft_term(student_logits, teacher_logits, temperature)
    return mixed(soft, label_mean(student_logits, labels), alpha) if (labels >= 0).any() else soft


@wrong("4.3", "replaces the NaN", "has a gradient free of NaN where no row is labelled", "do not let it arise")
def nan_to_zero(student_logits, teacher_logits, labels, temperature, alpha):
    labelled = labels >= 0
    rows = F.cross_entropy(student_logits, labels.clamp(min=0), reduction="none")
    hard = torch.where(labelled.any(), (rows * labelled).sum() / labelled.sum(), 0.0)
    return mixed(soft_term(student_logits, teacher_logits, temperature), hard, alpha)


# 4.4: the broken loss of the exercise, and what half a repair leaves


@wrong("4.4", "hands in the broken one", "is zero for a perfect copy at alpha = 1", "*logarithm*")
def broken(student_logits, teacher_logits, labels, temperature, alpha):
    student = F.softmax(student_logits / temperature, dim=-1)
    teacher = F.softmax(teacher_logits / temperature, dim=-1)
    soft = F.kl_div(student, teacher, reduction="batchmean") * temperature**2
    return mixed(soft, F.cross_entropy(student_logits / temperature, labels), alpha)


@wrong("4.4", "leaves the rows apart", "gives one number", "batchmean")
def rows_apart(student_logits, teacher_logits, labels, temperature, alpha):
    soft = kl_rows(student_logits, teacher_logits.detach(), temperature) * temperature**2
    return mixed(soft, F.cross_entropy(student_logits, labels), alpha)


@wrong("4.4", "turns alpha round", "gives alpha to the teacher", "alpha was right")
def alpha_turned(student_logits, teacher_logits, labels, temperature, alpha):
    soft = soft_term(student_logits, teacher_logits.detach(), temperature)
    return mixed(soft, F.cross_entropy(student_logits, labels), 1 - alpha)


@wrong("4.4", "takes the teacher's logarithm", "is the teacher's divergence from the student", "the student first")
def other_direction(student_logits, teacher_logits, labels, temperature, alpha):
    soft = soft_term(teacher_logits.detach(), student_logits, temperature)
    return mixed(soft, F.cross_entropy(student_logits, labels), alpha)


@wrong("4.4", "takes T² out", "keeps what was right in the soft term", "these were right")
def square_removed(student_logits, teacher_logits, labels, temperature, alpha):
    soft = kl_rows(student_logits, teacher_logits.detach(), temperature).mean()
    return mixed(soft, F.cross_entropy(student_logits, labels), alpha)


@wrong("4.4", "leaves T in the label term", "reads the labels at T = 1", "T belongs to the soft term")
def labels_still_soft(student_logits, teacher_logits, labels, temperature, alpha):
    soft = soft_term(student_logits, teacher_logits.detach(), temperature)
    return mixed(soft, F.cross_entropy(student_logits / temperature, labels), alpha)


@wrong("4.4", "lets the teacher learn", "sends no gradient to the teacher", "fixed target")
def not_detached(student_logits, teacher_logits, labels, temperature, alpha):
    soft = soft_term(student_logits, teacher_logits, temperature)
    return mixed(soft, F.cross_entropy(student_logits, labels), alpha)


@wrong("4.4", "detaches both sides", "trains the student", "the teacher's side only")
def both_detached(student_logits, teacher_logits, labels, temperature, alpha):
    soft = soft_term(student_logits.detach(), teacher_logits.detach(), temperature)
    return mixed(soft, F.cross_entropy(student_logits, labels), alpha)


@wrong("4.4", "log of softmax", "stays finite for a sure student", "take log_softmax")
def repaired_with_log(student_logits, teacher_logits, labels, temperature, alpha):
    student = F.softmax(student_logits / temperature, dim=-1).log()
    teacher = F.softmax(teacher_logits.detach() / temperature, dim=-1)
    soft = F.kl_div(student, teacher, reduction="batchmean") * temperature**2
    return mixed(soft, F.cross_entropy(student_logits, labels), alpha)
