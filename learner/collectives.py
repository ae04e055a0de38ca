"""What the learner's ranks tell each other, without any engine.

Every rank must call each of these in the same order with the same shapes. In a process alone, or
before the ranks have joined, each answers at once from what it is given.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def rank_mean(values: Tensor) -> Tensor:
    """Averaged over the ranks, element by element; every rank must call it with one shape."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    total = values.detach().to(_exchange_device(), copy=True)
    dist.all_reduce(total)
    return (total / dist.get_world_size()).to(values.device)


def all_rows(rows: Tensor) -> Tensor:
    """The rows of all ranks, rank by rank, without gradient; ranks have equally many."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows.detach()
    mine = rows.detach().to(_exchange_device()).contiguous()
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    return torch.cat(parts).to(rows.device)


def mean_over_ranks(values: dict[str, float]) -> dict[str, float]:
    """Each value averaged over the ranks; every rank must call it with the same keys."""
    row = rank_mean(torch.tensor(list(values.values()), dtype=torch.float64))
    return dict(zip(values, row.tolist(), strict=True))


def of_first(number: int) -> int:
    """Rank 0's, on every rank."""
    if not dist.is_initialized():
        return number
    told = torch.tensor(number, device=_exchange_device())
    dist.broadcast(told, src=0)
    return int(told)


def any_rank(flag: bool) -> bool:
    """True on every rank as soon as one says so."""
    return mean_over_ranks({"flag": float(flag)})["flag"] > 0


def barrier() -> None:
    """Returns once every rank has come to it."""
    if dist.is_initialized():
        dist.barrier()


def _exchange_device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
