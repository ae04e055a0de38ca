"""A head that asks for a token: who has none is turned away, who has it runs jobs."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local_head import HeadError, LocalHead

pytestmark = [pytest.mark.slow, pytest.mark.ray]
TOKEN = "an-own-random-text-of-some-length"
# An actor's answer shows that the workers were let in too.
JOB = """
import ray
ray.init(address="auto")
print("sum", ray.get(ray.remote(lambda: 3 + 4).remote(), timeout=60))
"""


@pytest.fixture(scope="module")
def head() -> Iterator[LocalHead]:
    with LocalHead(num_cpus=1, environ=os.environ, token=TOKEN) as running:
        assert running.wait_ready(timeout_s=120, should_stop=lambda: False)
        yield running


def submit(head: LocalHead, folder: Path, job: str, environ: dict[str, str]) -> tuple[int, str]:
    (folder / "job.py").write_text(JOB)
    command = head.submit_command(
        [sys.executable, "job.py"], job=job, folder=folder, env_vars={"PYTHONUNBUFFERED": "1"}
    )
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=180)
    return done.returncode, done.stdout + done.stderr


def test_a_job_with_the_token_runs(head: LocalHead, tmp_path: Path) -> None:
    status, output = submit(head, tmp_path, "with", head.client_environ())
    assert status == 0, output
    assert "sum 7" in output


def test_a_job_without_the_token_is_refused(head: LocalHead, tmp_path: Path) -> None:
    environ = {k: v for k, v in head.client_environ().items() if not k.startswith("RAY_AUTH")}
    status, output = submit(head, tmp_path, "without", {**environ, "HOME": str(tmp_path)})
    assert status != 0
    assert "sum 7" not in output


def test_the_jobs_are_not_shown_without_the_token(head: LocalHead) -> None:
    head._headers = {}
    with pytest.raises(HeadError, match="401"):
        head.request("GET", "/api/jobs/")
