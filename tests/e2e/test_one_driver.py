"""Two drivers of one run: the second is refused, and the first goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploy.local_head import LocalHead

if TYPE_CHECKING:
    from tests.e2e.conftest import Ended

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]
NAME = "taken"


@pytest.fixture
def holder(head: LocalHead) -> Iterator[str]:
    """Id of a job that holds the name, stopped afterwards."""
    command = head.submit_command(
        [sys.executable, "-m", "hold_name", NAME], job="holder", folder=ROOT, env_vars={}
    )
    client = subprocess.Popen(
        command, env=head.client_environ(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert client.stdout is not None
    try:
        said = []
        for line in client.stdout:
            said.append(line)
            if b"the name is held" in line:
                break
        else:
            pytest.fail(b"".join(said).decode())
        yield "holder"
        head.request("POST", "/api/jobs/holder/stop")
    finally:
        client.kill()
        client.communicate()


def test_a_second_driver_of_a_run_is_refused(
    holder: str, head: LocalHead, run_job: Callable[..., Ended], runs: Path
) -> None:
    ended = run_job(NAME)
    assert ended.status == 2, ended.output
    assert f"a run named '{NAME}' is under way on this cluster: stop it first" in ended.output
    assert not (runs / NAME).exists()
    assert head.request("GET", f"/api/jobs/{holder}")["status"] == "RUNNING"
