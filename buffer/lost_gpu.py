"""Errors after which CUDA fails in a process whatever is asked: only a new process helps.

Told by their text, so that nobody has to import torch: the context of a process is gone with an
illegal address, a lost device or an ECC error, and every later call repeats the first one's error.
"""

_NOT_LOST = ("out of memory", "ALLOC_FAILED", "no kernel image", "invalid device ordinal")
"""Of CUDA's errors: memory that runs out is free again later, and a GPU that torch has no kernels
for, or that is not there, is the same to a new process."""


def is_gpu_lost(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, says that."""
    cause = error.__cause__ or error.__context__
    return tells_lost_gpu(str(error)) or (cause is not None and is_gpu_lost(cause))


def tells_lost_gpu(text: str) -> bool:
    """Whether the text of an error says that, or a reason that was made of one."""
    return "CUDA error" in text and not any(words in text for words in _NOT_LOST)


def telling_line(text: str) -> str:
    """The line of an error's text that tells most: the last, or CUDA's, as torch's advice follows.

    Tracebacks, and what Ray says of an actor, end with what happened.
    """
    lines = text.strip().splitlines() or [""]
    return next((line for line in reversed(lines) if "CUDA error" in line), lines[-1]).strip()
