"""A transformer block as torch modules, cut by `parallelize_module` over processes that talk through gloo."""

from __future__ import annotations

from typing import Any

import numpy as np


def block_on_rank(arrays: dict[str, np.ndarray], num_ranks: int, sequence: bool, eps: float = 1e-5) -> dict[str, np.ndarray]:
    """Build the whole block on every rank, let DTensor cut it, run it forwards and backwards, gather what came out."""
    import torch
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

    given = {name.rpartition("_")[0]: torch.tensor(array) for name, array in arrays.items()}
    D = given["x"].shape[-1]
    _, _, N, H = given["qkv"].shape
    F = given["up"].shape[1]

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(D, N * H, bias=False) for _ in range(3))
            self.proj, self.up, self.down = nn.Linear(N * H, D, bias=False), nn.Linear(D, F), nn.Linear(F, D)
            self.norm_1, self.norm_2 = (nn.LayerNorm(D, eps=eps) if sequence else nn.Identity() for _ in range(2))

        def keep(self, name: str, y: Any) -> Any:
            if not sequence:
                return y
            mask = given[f"keep_{name}"].to(y.dtype) * given["scale"]
            return y * distribute_tensor(mask, y.device_mesh, y.placements)

        def forward(self, x: Any) -> Any:
            normed = self.norm_1(x)
            heads = [part(normed).unflatten(-1, (-1, H)).transpose(1, 2) for part in (self.q, self.k, self.v)]
            mixed = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
            middle = x + self.keep("attention", self.proj(mixed.transpose(1, 2).flatten(2)))
            return middle + self.keep("mlp", self.down(nn.functional.gelu(self.up(self.norm_2(middle)))))

    block = Block().double()
    with torch.no_grad():
        for part, weight in zip((block.q, block.k, block.v), given["qkv"]):
            part.weight.copy_(weight.flatten(1).T)
        block.proj.weight.copy_(given["proj"].flatten(0, 1).T)
        block.up.weight.copy_(given["up"].T)
        block.up.bias.copy_(given["up_bias"])
        block.down.weight.copy_(given["down"].T)
        block.down.bias.copy_(given["down_bias"])
        if sequence:
            for norm, number in ((block.norm_1, 1), (block.norm_2, 2)):
                norm.weight.copy_(given[f"norm_weight_{number}"])
                norm.bias.copy_(given[f"norm_bias_{number}"])

    mesh = init_device_mesh("cpu", (num_ranks,))
    outer = Shard(1) if sequence else Replicate()
    column = {"input_layouts": outer}
    row = {"output_layouts": outer, "use_local_output": not sequence}
    plan = {name: ColwiseParallel(**column) for name in ("q", "k", "v", "up")}
    plan |= {name: RowwiseParallel(**row) for name in ("proj", "down")}
    if sequence:
        plan |= {name: SequenceParallel() for name in ("norm_1", "norm_2")}
    parallelize_module(block, mesh, plan)
    x = distribute_tensor(given["x"], mesh, [outer]) if sequence else given["x"]
    x = x.detach().requires_grad_(True)
    out = block(x)
    dout = distribute_tensor(given["dout"], mesh, [outer]) if sequence else given["dout"]
    out.backward(dout)

    def whole(value: Any) -> Any:
        return value.full_tensor() if isinstance(value, DTensor) else value

    def grad(parameter: Any) -> Any:
        return whole(parameter.grad)

    result = {
        "out": whole(out).detach(),
        "dx": whole(x.grad),
        "dqkv": torch.stack([grad(part.weight).T.unflatten(1, (N, H)) for part in (block.q, block.k, block.v)]),
        "dproj": grad(block.proj.weight).T.unflatten(0, (N, H)),
        "dup": grad(block.up.weight).T,
        "dup_bias": grad(block.up.bias),
        "ddown": grad(block.down.weight).T,
        "ddown_bias": grad(block.down.bias),
    }
    if sequence:
        for norm, number in ((block.norm_1, 1), (block.norm_2, 2)):
            result |= {f"dnorm_weight_{number}": grad(norm.weight), f"dnorm_bias_{number}": grad(norm.bias)}
    return {name: value.numpy() for name, value in result.items()}
