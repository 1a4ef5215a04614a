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
