"""Linear classifiers, many at once: every problem has the same labels, and tokens of its own.

`logistic` minimises what scikit-learn's LogisticRegression does, `ridge` what its RidgeClassifier does. A problem stops
by itself, so its result depends on the problems beside it by no more than rounding (how they lie in memory).
"""

from __future__ import annotations

import torch
from torch import Tensor

# Largest component of the gradient of the mean loss at which a problem is solved. A last step costs little and gains
# much, so the first steps aim lower; where float32 can't get there, the tolerance itself is what counts.
TOLERANCE = 1e-6
_AIM, _AIMING = 1e-7, 30
_STEPS = 200
# After so many steps the second derivative is taken anew. Newton's method (1) needs fewer steps and more time.
_REFRESH = 4
_BLOCK = 64  # rows of the second derivative that are made at a time


def standardise(support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Both (..., tokens, dim) in the units of the support tokens: mean 0 and variance 1 a channel.

    A channel that does not vary by more than rounding is only centred, as in scikit-learn's StandardScaler.
    """
    mean = support.mean(-2, keepdim=True)
    support = support - mean
    variance = support.square().mean(-2, keepdim=True)
    constant = variance <= (8 * torch.finfo(support.dtype).eps * mean).square()
    scale = torch.where(constant, 1.0, variance).rsqrt()
    return support.mul_(scale), (query - mean).mul_(scale)


def ridge(x: Tensor, y: Tensor, c: float) -> Tensor:
    """Least squares on labels of -1 and 1 with the penalty |w|^2 / c; `x`, `y` and the result as in `logistic`.

    In float64: with channels that say the same, float32 may not see that the normal equations can be solved.
    """
    x = x.double()
    mean = x.mean(1, keepdim=True)
    x = x - mean
    signs = (2 * y - 1).double().expand(x.shape[0], 1, -1)
    gram = torch.bmm(x.transpose(1, 2), x)
    gram.diagonal(dim1=1, dim2=2).add_(1 / c)
    right = torch.bmm(signs, x).transpose(1, 2)
    w = torch.cholesky_solve(right, torch.linalg.cholesky(gram))[:, :, 0]
    b = signs.mean(-1) - (w[:, None] @ mean.transpose(1, 2))[:, 0]
    return torch.cat([w, b], 1).float()


def logistic(x: Tensor, y: Tensor, c: float) -> Tensor:
    """Logistic regression with the penalty |w|^2 / 2 against c times the summed loss; the intercept is free.

    `x` is (problems, tokens, dim) and `y` (tokens,) of 0 and 1, both float32; the result is (problems, dim + 1), the
    intercept last. L-BFGS around a second derivative that is taken anew every few steps, with an exact line search: the
    logits of a step are known along its whole line, so searching costs no product.
    """
    problem = _Problem(x, y, 1 / c)
    n = x.shape[1]
    v = x.new_zeros(x.shape[0], x.shape[2] + 1)
    z = x.new_zeros(x.shape[:2])
    factor = problem.factor(x.new_full(x.shape[:2], 0.25))
    gradient = problem.gradient(v, z)
    memory: list[tuple[Tensor, Tensor, Tensor]] = []
    for step in range(1, _STEPS + 1):
        left = gradient.abs().amax(1, keepdim=True) > (_AIM if step <= _AIMING else TOLERANCE) * n
        if not bool(left.any()):
            return v
        direction = -_quasi_newton(gradient, factor, memory)
        along = problem.logits(direction)
        length = problem.line_search(v, z, direction, along) * left
        v = v + length * direction
        z = z + length * along
        before, gradient = gradient, problem.gradient(v, z)
        if step % _REFRESH:
            moved, changed = length * direction, gradient - before
            curvature = _dot(moved, changed)
            memory.append((moved, changed, torch.where(curvature > 0, 1 / curvature, torch.zeros_like(curvature))))
        else:
            p = torch.sigmoid(z)
            factor = problem.factor(p * (1 - p))
            memory.clear()
    raise ArithmeticError(f"logistic regression did not converge in {_STEPS} steps on {tuple(x.shape)}")


class _Problem:
    """The objective, its derivatives and its value along a line.

    Vectors are (problems, dim + 1), logits and weights of tokens (problems, tokens).
    """

    def __init__(self, x: Tensor, y: Tensor, penalty: float) -> None:
        # Both layouts are kept: a row times a matrix is twice as fast as a matrix times a column.
        self.x, self.xt = x.contiguous(), x.transpose(1, 2).contiguous()
        self.weighted = torch.empty_like(self.xt)
        self.y = y
        self.penalty = x.new_full((x.shape[2] + 1,), penalty)
        self.penalty[-1] = 0

    def logits(self, v: Tensor) -> Tensor:
        return torch.bmm(v[:, None, :-1], self.xt)[:, 0] + v[:, -1:]

    def gradient(self, v: Tensor, z: Tensor) -> Tensor:
        return self._adjoint(torch.sigmoid(z) - self.y) + self.penalty * v

    def _adjoint(self, r: Tensor) -> Tensor:
        return torch.cat([torch.bmm(r[:, None], self.x)[:, 0], r.sum(1, keepdim=True)], 1)

    def factor(self, weights: Tensor) -> Tensor:
        """Cholesky factor of the second derivative where tokens weigh so much (problems, tokens)."""
        d = self.x.shape[2]
        second = self.x.new_zeros(self.x.shape[0], d + 1, d + 1)
        torch.mul(self.xt, weights[:, None], out=self.weighted)
        # Only the lower triangle is read.
        for start in range(0, d, _BLOCK):
            stop = min(start + _BLOCK, d)
            second[:, start:stop, :stop] = torch.bmm(self.weighted[:, start:stop], self.x[:, :, :stop])
        border = self._adjoint(weights)
        second[:, d] = border
        diagonal = second.diagonal(dim1=1, dim2=2)
        # A hair of damping keeps the factor real where rounding would not; it shapes the step, not where it ends.
        diagonal += self.penalty + 1e-6 * diagonal.amax(1, keepdim=True)
        lower: Tensor = torch.linalg.cholesky(second)
        return lower

    def line_search(self, v: Tensor, z: Tensor, direction: Tensor, along: Tensor) -> Tensor:
        """Length (problems, 1) of the step that minimises the objective, by Newton's method inside a bracket."""
        slope = _dot(self.penalty * v, direction)
        bend = _dot(self.penalty * direction, direction)
        t = torch.ones_like(slope)
        low, high = torch.zeros_like(t), torch.full_like(t, float("inf"))
        for _ in range(5):
            p = torch.sigmoid(z + t * along)
            first = _dot(along, p - self.y) + slope + t * bend
            second = _dot(along * along, p * (1 - p)) + bend
            low, high = torch.where(first < 0, t, low), torch.where(first < 0, high, t)
            wanted = t - first / second
            beyond = torch.where(high.isinf(), 4 * t, (low + high) / 2)
            t = torch.where((wanted > low) & (wanted < torch.minimum(high, 4 * t)), wanted, beyond)
        return t


def _quasi_newton(gradient: Tensor, factor: Tensor, memory: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The two-loop recursion of L-BFGS."""
    q = gradient
    shares = []
    for moved, changed, inverse in reversed(memory):
        share = inverse * _dot(moved, q)
        q = q - share * changed
        shares.append(share)
    q = torch.cholesky_solve(q[:, :, None], factor)[:, :, 0]
    for (moved, changed, inverse), share in zip(memory, reversed(shares), strict=True):
        q = q + moved * (share - inverse * _dot(changed, q))
    return q


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1, keepdim=True)
