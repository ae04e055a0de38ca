"""One of two ranks, the second of which is lost after a first exchange.

    python lost_rank_program.py RANK PORT HOW TIMEOUT_S

HOW is `dies` or `hangs`, or `hangs-in-step`, where DeepSpeed's own group waits. Rank 0 prints its
error and the seconds that it took to notice.
"""

import os
import sys
import time

import torch
import torch.distributed as dist

from learner.engine import groups, join_ranks


def main() -> None:
    rank, port, how, timeout_s = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
    join_ranks(rank, 2, "127.0.0.1", port, timeout_s=timeout_s)
    dist.all_reduce(torch.ones(4))
    group = groups._clone_world_group() if how == "hangs-in-step" else None
    if rank == 1:
        if how != "dies":
            time.sleep(600)
        os._exit(1)
    began = time.monotonic()
    try:
        dist.all_reduce(torch.ones(4), group=group)
    except RuntimeError as error:
        sys.stdout.write(f"{time.monotonic() - began:.1f} {str(error).splitlines()[0]}\n")


if __name__ == "__main__":
    main()
