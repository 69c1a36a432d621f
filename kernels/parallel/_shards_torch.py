"""A flat tensor cut into equal shares, the last ones padded with zeros, and the two collectives that go between them."""

from __future__ import annotations

import torch
import torch.distributed as dist


def share_size(size: int) -> int:
    """Return the elements of each rank's share; at least one, so that no collective is empty."""
    return max(1, -(-size // dist.get_world_size()))


def padded(flat: torch.Tensor) -> torch.Tensor:
    """Return the tensor with zeros behind it, a whole number of shares."""
    return torch.nn.functional.pad(flat, (0, share_size(flat.numel()) * dist.get_world_size() - flat.numel()))


def my_share(flat: torch.Tensor) -> torch.Tensor:
    """Return a copy of this rank's share."""
    size = share_size(flat.numel())
    return padded(flat)[dist.get_rank() * size :][:size].clone()


def gathered(share: torch.Tensor, size: int) -> torch.Tensor:
    """Return the whole tensor of `size` elements."""
    shares = [torch.empty_like(share) for _ in range(dist.get_world_size())]
    dist.all_gather(shares, share)
    return torch.cat(shares)[:size]


def reduced_share(flat: torch.Tensor) -> torch.Tensor:
    """Return this rank's share of the mean over the ranks."""
    shares = list(padded(flat).chunk(dist.get_world_size()))
    share = torch.empty_like(shares[0])
    dist.reduce_scatter(share, shares)
    return share / dist.get_world_size()
