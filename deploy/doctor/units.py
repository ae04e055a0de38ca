"""Sizes and operations in words, in the unit that suits them."""


def in_bytes(size: float) -> str:
    """In GiB, or in MiB below one."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def in_flops(count: float) -> str:
    """In TFLOP, or in GFLOP below one."""
    return f"{count / 1e12:,.3f} TFLOP" if count >= 1e12 else f"{count / 1e9:,.3f} GFLOP"
