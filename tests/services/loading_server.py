"""A server on a Unix socket that answers LOADING for a while, as Valkey does with much data.

FLEETUNE_TEST_LOADS_S=8 loading_server.py - < CONFIG        below 0: it then ends
"""

import os
import re
import socket
import sys
import threading
import time

_LOADS_S = float(os.environ["FLEETUNE_TEST_LOADS_S"])
_BEGUN = time.monotonic()


def serve(client: socket.socket) -> None:
    with client:
        while received := client.recv(65536):
            is_loading = time.monotonic() - _BEGUN < abs(_LOADS_S)
            answer = b"-LOADING Valkey is loading the dataset in memory\r\n"
            commands = len(re.findall(rb"^\*\d+\r$", received, re.MULTILINE))
            client.sendall((answer if is_loading else b"+PONG\r\n") * max(1, commands))


def main() -> None:
    found = re.search(r'^unixsocket "(.*)"$', sys.stdin.read(), re.MULTILINE)
    assert found is not None
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(found.group(1))
        server.listen()
        if _LOADS_S < 0:
            threading.Timer(-_LOADS_S, os._exit, [1]).start()
        while True:
            threading.Thread(target=serve, args=[server.accept()[0]], daemon=True).start()


if __name__ == "__main__":
    main()
