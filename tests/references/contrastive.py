"""Float64 loops, one for each equation of a loss of the logits, slow and plain: what the fast code is held against."""

import torch
from torch import Tensor

from tests.references.case import Case
from troth.draws import PairDraws, SampleDraws


def softmax_loss(row: Tensor, target: Tensor, kept: Tensor) -> Tensor:
    """-sum_j target_j log softmax(row)_j over the kept entries."""
    partition = sum(torch.exp(row[j]) for j in range(len(row)) if kept[j])
    return -sum(target[j] * (row[j] - torch.log(partition)) for j in range(len(row)) if kept[j])


def targets(case: Case, matches: Tensor, i: int) -> tuple[Tensor, Tensor]:
    """Targets and what is kept for anchor i, given its row of known matches."""
    one_hot = torch.eye(case.size, dtype=torch.float64)[i]
    kept = torch.ones(case.size, dtype=torch.bool)
    degree = one_hot
    if case.objective.known_matches == "positive":
        degree = matches
    elif case.objective.known_matches == "ignore":
        kept = (matches == 0) | (one_hot > 0)
    smoothing = case.objective.label_smoothing
    return (1 - smoothing) * degree / degree.sum() + smoothing / float(kept.sum()), kept


def infonce(case: Case) -> Tensor:
    logits, losses = case.logits(), []
    matches = torch.eye(case.size, dtype=torch.float64) if case.matches is None else case.matches
    for i in range(case.size):
        image = softmax_loss(logits[i], *targets(case, matches[i], i))
        text = softmax_loss(logits[:, i], *targets(case, matches[:, i], i))
        losses.append(0.5 * (image + text) * (1 if case.weight is None else case.weight[i]))
    return torch.stack(losses)


def sigmoid(case: Case) -> Tensor:
    logits, losses = case.logits(), []
    objective, smoothing = case.objective, case.objective.label_smoothing
    for i in range(case.size):
        total = torch.zeros((), dtype=torch.float64)
        for j in range(case.size):
            for logit, row, column in ((logits[i][j], i, j), (logits[:, i][j], j, i)):
                match = 1.0 if i == j else 0.0
                if case.matches is not None and objective.known_matches == "positive":
                    match = float(case.matches[row, column].clamp(max=1))
                ignoring = case.matches is not None and objective.known_matches == "ignore" and i != j
                if ignoring and case.matches[row, column] > 0:
                    continue
                answer = (1 - smoothing) * match + smoothing / 2
                probability = torch.sigmoid(logit)
                total = total - 0.5 * (answer * torch.log(probability) + (1 - answer) * torch.log(1 - probability))
        losses.append(total * (1 if case.weight is None else case.weight[i]))
    return torch.stack(losses)


def match_probabilities(case: Case) -> list[tuple[Tensor, Tensor]]:
    logits = case.logits()
    return [(torch.softmax(logits[i], 0)[i], torch.softmax(logits[:, i], 0)[i]) for i in range(case.size)]


def generalized_ce(case: Case) -> Tensor:
    q, losses = case.objective.q, []
    for p, r in match_probabilities(case):
        losses.append(0.5 * (1 - p**q) / q + 0.5 * (1 - r**q) / q)
    return torch.stack(losses)


def noise_mixture(case: Case) -> Tensor:
    seen = case.memory.setdefault("wrong", {})
    e = case.objective.noise
    fitted = case.memory.setdefault("rate", {})
    if case.objective.learn and seen and case.clock.step % case.clock.steps_per_epoch == 0:
        fitted[0] = min(max(float(sum(seen.values()) / len(seen)), 1e-4), case.objective.most)
    e = fitted.get(0, e)
    losses = []
    for i, probabilities in enumerate(match_probabilities(case)):
        likelihoods = [(1 - e) * p + e / case.size for p in probabilities]
        losses.append(-0.5 * sum(torch.log(each) for each in likelihoods))
        wrong = sum(e / case.size / each.detach() for each in likelihoods) / 2
        seen[case.id(i)] = wrong.float().double()
    return torch.stack(losses)


def averaged(memory: dict[int, Tensor], sample: int, new: Tensor, keep: float) -> Tensor:
    """keep * old + (1 - keep) * new, the logarithm remembered in single precision."""
    moved = new if sample not in memory else keep * memory[sample].exp() + (1 - keep) * new
    memory[sample] = torch.log(moved).float().double()
    return moved


def decl(case: Case) -> Tensor:
    method, logits, clock = case.objective, case.logits(), case.clock
    ids = torch.tensor([case.id(i) for i in range(case.size)])
    draws = SampleDraws.from_ids(clock.seed, clock.step, "decl", ids).log_gamma(method.a_u)
    losses = []
    for i in range(case.size):
        total = torch.zeros((), dtype=torch.float64)
        for name, row, draw in (("image", logits[i], draws[0][i]), ("text", logits[:, i], draws[1][i])):
            partition = torch.exp(row).sum().detach()
            shape = torch.exp(draw.double()) if method.draw == "sample" else method.a_u
            memory = case.memory.setdefault(name, {})
            u = averaged(memory, case.id(i), shape / (method.b_u + partition), method.keep)
            u = torch.minimum(u, method.clip / partition)
            total = total + 0.5 * (-row[i] + sum(u * torch.exp(row[j]) for j in range(case.size)))
        losses.append(total)
    return torch.stack(losses)


def global_infonce(case: Case) -> Tensor:
    """Values log u; gradients of g / u with u fixed."""
    logits, losses = case.logits(), []
    for i in range(case.size):
        total = torch.zeros((), dtype=torch.float64)
        for name, row in (("image", logits[i]), ("text", logits[:, i])):
            g = sum(torch.exp(row[j] - row[i]) for j in range(case.size) if j != i) / (case.size - 1)
            u = averaged(case.memory.setdefault(name, {}), case.id(i), g.detach(), case.objective.keep)
            total = total + 0.5 * (torch.log(u) + g / u - (g / u).detach())
        losses.append(total)
    return torch.stack(losses)


def mmcl(case: Case) -> Tensor:
    method, logits, losses = case.objective, case.logits(), []
    phi = {"log": torch.log, "identity": lambda v: v}[method.phi]
    psi = {
        "exp": torch.exp,
        "identity": lambda v: v,
        "softplus": torch.nn.functional.softplus,
        "hinge": lambda v: torch.relu(1 + v),
    }[method.psi]
    count = case.size - 1 + method.eps if method.average else 1.0
    for i in range(case.size):
        total = torch.zeros((), dtype=torch.float64)
        for row in (logits[i], logits[:, i]):
            eps = [method.eps if i == j else 1.0 for j in range(case.size)]
            inner = sum(eps[j] * psi(row[j] - method.nu * row[i]) for j in range(case.size) if eps[j] > 0)
            total = total + 0.5 * phi(inner / count)
        losses.append(total)
    return torch.stack(losses)


def soft_targets(case: Case) -> Tensor:
    method, logits, losses = case.objective, case.logits(), []
    eye, kept = torch.eye(case.size, dtype=torch.float64), torch.ones(case.size, dtype=torch.bool)
    for i in range(case.size):
        total = torch.zeros((), dtype=torch.float64)
        for row, points in ((logits[i], case.image.detach()), (logits[:, i], case.text.detach())):
            points = [point / torch.sqrt((point * point).sum()) for point in points]
            cosines = torch.stack([(points[i] * points[j]).sum() for j in range(case.size)])
            soft = torch.softmax(method.affinity_scale * cosines, 0)
            total = total + 0.5 * softmax_loss(row, (1 - method.share) * eye[i] + method.share * soft, kept)
        losses.append(total)
    return torch.stack(losses)


def self_distillation(case: Case) -> Tensor:
    method, logits, losses = case.objective, case.logits(), []
    eye, kept = torch.eye(case.size, dtype=torch.float64), torch.ones(case.size, dtype=torch.bool)
    share = method.share * (case.clock.step / case.clock.total_steps if method.schedule == "progressive" else 1)
    for i in range(case.size):
        total = torch.zeros((), dtype=torch.float64)
        for row, other in ((logits[i], logits[:, i]), (logits[:, i], logits[i])):
            belief = torch.softmax(method.sharpness * (other if method.targets == "swapped" else row).detach(), 0)
            total = total + 0.5 * softmax_loss(row, (1 - share) * eye[i] + share * belief, kept)
        losses.append(total)
    return torch.stack(losses)


def distillation(case: Case) -> Tensor:
    method, logits, losses = case.objective, case.logits(), []
    assert case.teacher_points is not None
    image, text = case.teacher_points
    everyone, kept = range(case.size), torch.ones(case.size, dtype=torch.bool)
    for i in everyone:
        of_image = torch.stack([(image[i] * text[j]).sum() for j in everyone])
        of_text = torch.stack([(image[j] * text[i]).sum() for j in everyone])
        total = torch.zeros((), dtype=torch.float64)
        for row, cosines in ((logits[i], of_image), (logits[:, i], of_text)):
            total = total + 0.5 * softmax_loss(row, torch.softmax(method.sharpness * cosines, 0), kept)
        losses.append(total)
    return torch.stack(losses)


def feature_distillation(case: Case) -> Tensor:
    assert case.teacher_points is not None
    losses = []
    for i in range(case.size):
        total = torch.ones((), dtype=torch.float64)
        for embedded, points in zip((case.image, case.text), case.teacher_points, strict=True):
            dims = min(embedded.shape[1], points.shape[1])
            point, embedding = points[i, :dims], embedded[i]  # of unit length
            total = total - 0.5 * sum(embedding[k] * point[k] for k in range(dims)) / point.norm()
        losses.append(total)
    return torch.stack(losses)


def gamma_weights(case: Case) -> Tensor:
    """Algorithm 1 of the Gamma-weights paper, in linear space; scales must be small."""
    method, clock, size = case.objective, case.clock, case.size
    logits = case.logits()
    ids = torch.tensor([case.id(i) for i in range(size)])
    log_s = case.similarities() if method.similarity == "cosine" else logits
    s = [torch.exp(log_s.image).detach(), torch.exp(log_s.text).detach()]
    own = torch.eye(size, dtype=torch.bool)
    a = torch.where(own, (2 if method.shared else 1) + method.a_plus, torch.tensor(method.a_minus, dtype=torch.float64))
    b = torch.where(own, method.b_plus, torch.tensor(method.b_minus, dtype=torch.float64))
    w = [torch.ones(size, size, dtype=torch.float64)] * 2  # image rows; caption columns
    for sweep in range(1, method.sweeps + 1):
        draws = SampleDraws.from_ids(clock.seed, clock.step, f"gamma-u/{sweep}", ids).log_gamma(method.a_u)
        pair = PairDraws.from_ids(clock.seed, clock.step, f"gamma-weights/{sweep}", ids, ids)
        everywhere = torch.arange(size).repeat_interleave(size), torch.arange(size).repeat(size)
        positive = pair.log_gamma_at(*everywhere, (2 if method.shared else 1) + method.a_plus)
        negative = pair.log_gamma(method.a_minus)
        u, g = [], []
        for k, (name, axis) in enumerate((("image", 1), ("text", 0))):
            shape = torch.exp(draws[k].double()) if method.draw == "sample" else method.a_u
            u.append(shape / (method.b_u + (w[k] * s[k]).sum(axis)))
            if method.keep > 0:
                memory = case.memory.setdefault(name, {})
                last = sweep == method.sweeps
                kept = memory if last else dict(memory)
                u[k] = torch.stack([averaged(kept, case.id(i), u[k][i], method.keep) for i in range(size)])
            sampled = torch.where(own, positive[k].reshape(size, size), negative[k]).double().exp()
            g.append(sampled if method.draw == "sample" else a)
        us = (u[0][:, None] + u[1][None, :]) if method.shared else None
        each = [us, us] if us is not None else [u[0][:, None], u[1][None, :]]
        rates = [each[k] * s[k] + b for k in range(2)]
        w = [(g[0] if method.shared else g[k]) / rates[k] for k in range(2)]
    losses = []
    for i in range(size):
        image = w[0][i] * torch.exp(logits[i])
        text = w[1][:, i] * torch.exp(logits[:, i])
        losses.append(-0.5 * torch.log(image[i] / image.sum()) - 0.5 * torch.log(text[i] / text.sum()))
    return torch.stack(losses)


#: One reference for each ``kind`` of this module's objectives.
CONTRASTIVE = {
    function.__name__: function
    for function in (
        infonce,
        sigmoid,
        generalized_ce,
        noise_mixture,
        decl,
        global_infonce,
        mmcl,
        soft_targets,
        self_distillation,
        distillation,
        feature_distillation,
        gamma_weights,
    )
}
