"""A driver that holds a run's name as a controller does, until it is stopped: `hold_name NAME`."""

import sys
import threading

import ray

from deploy.fleet.desk import DESK, FleetDesk


def main() -> None:
    ray.init(address="auto", namespace=sys.argv[1])
    held = ray.remote(FleetDesk).options(name=DESK, num_cpus=0).remote()
    ray.get(held.page.remote())
    sys.stdout.write("the name is held\n")
    sys.stdout.flush()
    threading.Event().wait()


if __name__ == "__main__":
    main()
