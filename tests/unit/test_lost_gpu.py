"""Which errors say that CUDA fails in a process for good."""

import pytest

from buffer.lost_gpu import is_gpu_lost, telling_line, tells_lost_gpu


@pytest.mark.parametrize(
    ("text", "is_lost"),
    [
        ("CUDA error: an illegal memory access was encountered", True),
        ("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported", True),
        ("CUDA error: uncorrectable ECC error encountered", True),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`", True),
        ("CUDA error: out of memory", False),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", False),
        ("CUDA error: no kernel image is available for execution on the device", False),
        ("CUDA error: invalid device ordinal\nGPU device may be out of range", False),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", False),
        ("shapes do not match", False),
    ],
)
def test_an_error_of_cuda_is_one_unless_a_new_process_would_not_help(
    text: str, is_lost: bool
) -> None:
    assert is_gpu_lost(RuntimeError(text)) is is_lost
    assert tells_lost_gpu(f"not decoded: RuntimeError: {text}") is is_lost


def raise_from_a_lost_gpu() -> None:
    try:
        raise RuntimeError("CUDA error: unspecified launch failure")
    except RuntimeError as error:
        raise ValueError("the step failed") from error


def test_an_error_that_was_raised_from_one_is_one() -> None:
    with pytest.raises(ValueError, match="the step failed") as raised:
        raise_from_a_lost_gpu()
    assert is_gpu_lost(raised.value)


_OF_CUDA = (
    "CUDA error: an illegal memory access was encountered\n"
    "CUDA kernel errors might be asynchronously reported at some other API call.\n"
    "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (_OF_CUDA, "CUDA error: an illegal memory access was encountered"),
        ("Traceback:\n  a line\nOSError: no such weights\n", "OSError: no such weights"),
        ("", ""),
    ],
)
def test_the_line_that_tells_most_is_the_last_or_that_of_cuda(text: str, line: str) -> None:
    assert telling_line(text) == line
