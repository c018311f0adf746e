"""The Muon optimizer, for training from scratch in few steps."""

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor

VECTOR_RATE = 0.1
"""Learning rate of biases, norms and the like, which Adam updates, relative to that of matrices."""


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal, so that rare directions count as much as frequent ones.

    Matrices and convolutions, as (out, in x height x width), are updated so; all else by Adam. The demo's autoencoder
    came as far with it as with AdamW in 2.5 times fewer steps.

    It is here because `torch.optim.Muon` (2.13) takes two-dimensional parameters only, neither convolutions nor biases,
    one after the other, and computes in bf16 on CPUs, too, that take 15 times as long for it.

    Processes that train together must have the same gradients; each makes its share of the matrices orthogonal.

    Args:
        parameters: to train.
        lr: of matrices, 0.02 or so; that of all else is `VECTOR_RATE` of it.
        momentum: of matrices.
        betas: of Adam.
        eps: of Adam.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        lr: float = 0.02,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ):
        parameters = list(parameters)
        matrices = [parameter for parameter in parameters if parameter.ndim > 1]
        vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
        groups = [{"params": matrices}, {"params": vectors, "lr": lr * VECTOR_RATE}]
        super().__init__(
            [group for group in groups if group["params"]], {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps}
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Updates all parameters that have a gradient."""
        for group in self.param_groups:
            matrices: dict[tuple, list[torch.nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.ndim > 1:
                    matrices[parameter.flatten(1).shape, parameter.device, parameter.dtype].append(parameter)
                else:
                    self._update_vector(parameter, self.state[parameter], group)
            for alike in matrices.values():
                self._update_matrices(alike, group)

    def _update_matrices(self, parameters: list[torch.nn.Parameter], group: dict) -> None:
        """Updates matrices of one shape, which are made orthogonal together: one product in place of hundreds."""
        directions = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["average"] = torch.zeros_like(parameter)
            average = state["average"].lerp_(parameter.grad, 1 - group["momentum"])
            directions.append(parameter.grad.lerp(average, group["momentum"]).flatten(1))
        updates = _share(orthogonal, torch.stack(directions))
        scale = max(1.0, updates.shape[1] / updates.shape[2]) ** 0.5
        for parameter, update in zip(parameters, updates):
            parameter.add_(update.reshape(parameter.shape), alpha=-group["lr"] * scale)

    @staticmethod
    def _update_vector(parameter: Tensor, state: dict[str, Tensor], group: dict) -> None:
        if not state:
            state.update(step=torch.zeros(()), mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
        state["step"] += 1
        beta, beta_square = group["betas"]
        state["mean"].lerp_(parameter.grad, 1 - beta)
        state["square"].lerp_(parameter.grad.square(), 1 - beta_square)
        step = state["step"].item()
        deviation = (state["square"] / (1 - beta_square**step)).sqrt() + group["eps"]
        parameter.addcdiv_(state["mean"], deviation, value=-group["lr"] / (1 - beta**step))


def _share(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """The function of all rows, each computed in one of the processes; rows and results have one shape."""
    num_processes = dist.get_world_size() if dist.is_initialized() else 1
    if num_processes == 1:
        return function(rows)
    share = -(-len(rows) // num_processes)
    own = rows[dist.get_rank() * share :][:share]
    padding = rows.new_zeros(share - len(own), *rows.shape[1:])
    results = rows.new_empty(share * num_processes, *rows.shape[1:])
    dist.all_gather(list(results.chunk(num_processes)), torch.cat([function(own) if len(own) else own, padding]))
    return results[: len(rows)]


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices (b m n) with the same singular vectors and singular values of about 1, by five Newton-Schulz steps."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    result = (matrices.mT if is_tall else matrices).float()
    result = result / (torch.linalg.matrix_norm(result, keepdim=True) + 1e-7)
    # Singular values end between 0.7 and 1.2 at any rate, so that bf16 loses nothing; most CPUs are slow at it.
    if not matrices.is_cpu or torch.cpu.get_capabilities().get("amx_bf16"):
        result = result.bfloat16()
    for _ in range(5):
        square = result @ result.mT
        factor = torch.baddbmm(square, square, square, beta=-4.7750, alpha=2.0315)
        result = torch.baddbmm(result, factor, result, beta=3.4445)
    return (result.mT if is_tall else result).to(matrices.dtype)
