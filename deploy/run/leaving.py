"""The end of a process that Ray or torch.distributed has been at work in."""

import atexit
import logging
import os
import sys
from typing import NoReturn


def leave(status: int) -> NoReturn:
    """Ends this process with `status`, after its exit handlers and all that it has to write.

    Threads of Ray's, gRPC's and gloo's live on after `ray.shutdown` and `destroy_process_group`.
    Where the interpreter and the C++ libraries take themselves apart beside them, a process that
    has done all its work ends with a segmentation fault now and then, and a job that trained for a
    week is called failed.
    """
    atexit._run_exitfuncs()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
