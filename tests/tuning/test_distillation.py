import torch

from autoprune.tuning.distillation import distillation_loss


def test_is_the_divergence_of_softened_answers():
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 3, 7), torch.randn(4, 3, 7)
    total = 0.0
    for row, aim in zip(student.reshape(-1, 7), teacher.reshape(-1, 7), strict=True):
        q, p = (torch.exp(each / 3) / torch.exp(each / 3).sum() for each in (row, aim))
        total += float((p * torch.log(p / q)).sum())
    expected = 9 * total / 12

    for shift in (0.0, 5.0):  # logits or log-probabilities: a constant changes nothing
        found = distillation_loss(student + shift, teacher.log_softmax(-1), 3.0)
        assert abs(float(found) - expected) < 1e-5


def test_gradient_hardly_depends_on_the_temperature():
    student = torch.tensor([[0.1, -0.2, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.2, 0.1, -0.3]])
    norms = [
        float(torch.autograd.grad(distillation_loss(student, teacher, t), student)[0].norm())
        for t in (4.0, 8.0)
    ]
    assert 0.95 < norms[0] / norms[1] < 1.05
