"""Launch shapes shared by the Triton kernels that hold one row per program."""

import triton


def row_block(width: int, largest: int = 65536) -> tuple[int, int]:
    """Return (BLOCK, num_warps): a power of two that covers the row, about 16 elements per thread, at most 16 warps."""
    block = min(triton.next_power_of_2(max(width, 1)), largest)
    return block, min(max(block // 512, 1), 16)
