"""`python -m deploy.drills.fuzz`: damaged bytes and damaged keys, by the million.

    --frames N    damaged frames to decode (default 1,000,000)
    --states N    damaged states of a run's keys in Redis to work with (default 10,000)
    --seed S

A frame is a header, a latent, scores, a whole record or an entry of the log, damaged by a few of:
flipped, cut, doubled, moved or random bytes, another magic or version, and, with its checksum made
right again, another length, type, name or number inside. A state is a run with records at every
stage of their life, of which keys or fields are gone, of another type, of another run, cut or
random; then every operation of the replay is called. The last line of stdout is JSON:

    frames, states     that were tried
    refused            frames that were refused with CodecError; the others were still right
    crashes            anything raised that is no documented error, and calls that hung
    wrongly_accepted   values that came out and are not what stands in the bytes, and records that
                       came out and are not those that were put in

Exit status 0 without crashes and wrong acceptances, else 1.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence

from deploy.drills.fuzz_frames import fuzz_frames
from deploy.drills.fuzz_states import fuzz_states


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.drills.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--states", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.ERROR, format="%(asctime)s %(message)s")
    begun = time.monotonic()
    figures = fuzz_frames(options.frames, options.seed)
    figures.update(fuzz_states(options.states, options.seed))
    named = ("frames", "states", "refused", "crashes", "wrongly_accepted")
    line: dict[str, float] = {name: figures[name] for name in named}
    line["wall_s"] = round(time.monotonic() - begun, 1)
    sys.stdout.write(json.dumps(line) + "\n")
    return 0 if not figures["crashes"] and not figures["wrongly_accepted"] else 1


if __name__ == "__main__":
    sys.exit(main())
