"""What one rank does in every twin over torch.distributed: tensors on its device, and messages to and from other ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist


def device() -> torch.device:
    """Return where this rank's tensors live: its GPU where the group speaks nccl, else the CPU."""
    on_gpu = "nccl" in dist.get_backend_config()
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def tensor(array: np.ndarray) -> torch.Tensor:
    """Copy an array to this rank's device."""
    return torch.from_numpy(np.array(array)).to(device())


def exchange(out: Sequence[tuple[torch.Tensor, int]] = (), into: Sequence[tuple[torch.Tensor, int]] = ()) -> None:
    """Send each of `out` and fill each of `into`, all at once; empty tensors are no messages.

    Both sides know the sizes, so both leave the same messages out.
    """
    operations = [dist.P2POp(dist.isend, one.contiguous(), peer) for one, peer in out if one.numel()]
    operations += [dist.P2POp(dist.irecv, one, peer) for one, peer in into if one.numel()]
    for work in dist.batch_isend_irecv(operations) if operations else []:
        work.wait()
