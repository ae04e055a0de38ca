"""Time and memory of one call on one device, and what the device can do at most.

Times are of the wall, with the device's work done. Memory is what torch itself allocates for
tensors, which is what `deploy.doctor` plans: work space of kernels that they allocate by
themselves, what the allocator sets aside, and a context come on top.
Shape suffixes: R repeats.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from deploy.bench.timing import Row, Way, again_and_again, spread, timed

GIB = 2**30
_SIDE = {"cuda": 8192, "cpu": 256}
"""Of the square matrices of a ceiling: as large as products of large networks, and larger."""
_TERA = 1e12


@dataclass(frozen=True)
class Measured:
    """What calls of one kind took.

    Args:
        seconds_R: of one call each, after a first one that is not counted.
        held: bytes of tensors that are there between two calls; None on a CPU.
        peak: most bytes at once; None on a CPU.
    """

    seconds_R: list[float]
    held: int | None
    peak: int | None


@contextmanager
def emptied(device: str) -> Iterator[None]:
    """Neither finds nor leaves a tensor on the device that nobody holds.

    At the end of a block that raises, its error still holds some, so the next one looks again.
    """
    _empty(device)
    try:
        yield
    finally:
        _empty(device)


def _empty(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def measured(call: Callable[[], object], *, repeats: int, device: str, before: int) -> Measured:
    """Times a call, after a first one that compiles, chooses kernels and makes what stays.

    Args:
        before: bytes on the device that are not the call's and what it needs.

    Raises:
        torch.OutOfMemoryError: there is not enough of it.
    """
    way = Way("fleetune", again_and_again(lambda: _finished(call, device)))
    way.prepare(1)()
    if device != "cuda":
        return Measured([timed(way, 1) for _ in range(repeats)], None, None)
    gc.collect()
    held = torch.cuda.memory_allocated() - before
    torch.cuda.reset_peak_memory_stats()
    seconds_R = [timed(way, 1) for _ in range(repeats)]
    return Measured(seconds_R, held, torch.cuda.max_memory_allocated() - before)


def allocated(device: str) -> int:
    """Bytes of tensors on the device now; 0 on a CPU."""
    return torch.cuda.memory_allocated() if device == "cuda" else 0


def ceilings(device: str, *, repeats: int) -> dict[str, list[float]]:
    """Operations a second of large products of matrices, of every repeat, by what is multiplied.

    `tf32` are float32 matrices whose products may be rounded to ten bits, where a device has it.
    """
    side = _SIDE[device]
    before = torch.get_float32_matmul_precision()
    found = {}
    try:
        for name, kind, allowed in (
            ("bf16", torch.bfloat16, "highest"),
            ("tf32", torch.float32, "high"),
            ("fp32", torch.float32, "highest"),
        ):
            torch.set_float32_matmul_precision(allowed)
            found[name] = _products(side, kind, device, repeats)
    finally:
        torch.set_float32_matmul_precision(before)
    return found


def _products(side: int, kind: torch.dtype, device: str, repeats: int) -> list[float]:
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, device=device, generator=generator).to(kind) for _ in range(2))
    calls = 10

    def products() -> None:
        for _ in range(calls):
            torch.mm(a, b)

    way = Way(str(kind), again_and_again(lambda: _finished(products, device)))
    way.prepare(1)()
    return [calls * 2 * side**3 / timed(way, 1) for _ in range(repeats)]


def ceiling_rows(found: dict[str, list[float]], device: str) -> list[Row]:
    """As rows of a result."""
    work = f"product of two {_SIDE[device]:,}² matrices"
    return [
        Row(work, name, "TFLOP/s", spread([rate / _TERA for rate in rates]), None)
        for name, rates in found.items()
    ]


def utilisation_rows(
    work: str,
    seconds_R: list[float],
    flops: dict[str, int],
    ceiling: dict[str, float],
    *,
    computed: dict[str, int],
) -> list[Row]:
    """Operations a second beside the ceiling's for the same mix of precisions.

    The ratio is MFU, and where something is computed again HFU as well, which counts that too
    (Korthikanti et al. 2022, arXiv:2205.05198, section 6.3).

    Args:
        flops: of one call, by precision, as if activations were kept.
        ceiling: operations a second, by precision.
        computed: of one call with what checkpointing computes again.
    """
    rows = [_utilisation_row(work, "fleetune", seconds_R, flops, ceiling)]
    if computed != flops:
        way = "fleetune, computed again as well"
        rows.append(_utilisation_row(work, way, seconds_R, computed, ceiling))
    most = sum(flops.values()) / _least_s(flops, ceiling) / _TERA
    return [*rows, Row(work, "products of matrices", "TFLOP/s", spread([most]), None)]


def _utilisation_row(
    work: str, way: str, seconds_R: list[float], flops: dict[str, int], ceiling: dict[str, float]
) -> Row:
    rates = [sum(flops.values()) / seconds / _TERA for seconds in seconds_R]
    used = [_least_s(flops, ceiling) / seconds for seconds in seconds_R]
    return Row(work, way, "TFLOP/s", spread(rates), spread(used))


def _least_s(flops: dict[str, int], ceiling: dict[str, float]) -> float:
    return sum(count / ceiling[precision] for precision, count in flops.items())


def memory_rows(work: str, found: Measured, plan: dict[str, int]) -> list[Row]:
    """Measured memory beside the doctor's plan; a ratio above 1 is what the plan leaves out.

    Args:
        plan: bytes `held` between two calls, and those of a call's own `activations`.
    """
    planned = {"held": plan["held"], "activations": plan["activations"]}
    planned["peak"] = sum(planned.values())
    told: dict[str, int] = {}
    if found.held is not None and found.peak is not None:
        told = {"held": found.held, "activations": found.peak - found.held, "peak": found.peak}
    rows = []
    for name, bytes_ in planned.items():
        if name in told:
            ratio = spread([told[name] / bytes_]) if bytes_ else None
            rows.append(
                Row(f"{work}: {name}", "measured", "GiB", spread([told[name] / GIB]), ratio)
            )
        rows.append(Row(f"{work}: {name}", "plan", "GiB", spread([bytes_ / GIB]), None))
    return rows


def _finished(call: Callable[[], object], device: str) -> None:
    call()
    if device == "cuda":
        torch.cuda.synchronize()
