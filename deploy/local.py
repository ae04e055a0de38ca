"""`python -m deploy.local --run NAME -- CONFIG a.b=value ...`: one run on this machine.

Starts a Ray head of its own, submits `deploy.launch` to it as a job, shows the job's log and ends
the head. Ctrl-C asks the job to stop, which gives it time for a checkpoint; a second one ends it
at once. The exit status is the job's.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TextIO

from deploy.local_head import JOB_STOP_WAIT_S, HeadError, LocalHead, end_process, start_child
from deploy.settings.problems import ConfigError

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
_READY_TIMEOUT_S = 120.0
_FAILED, _USAGE_ERROR = 1, 2
_NO_SUCH_JOB = 404
_UNFINISHED = ("PENDING", "RUNNING")
_LOOK_S = 1.0
# Around the job's own lines, `ray job submit` prints these; after the last one it repeats the log.
_TAILING = "Tailing logs until the job exits"
_CLOSING = r"(.* -- )?Job '{job}' (succeeded|failed|was stopped)$"
_CHATTER = re.compile(
    r"[\d:, -]+\s(INFO|SUCC|ERR|WARN) (cli|sdk|job_\w+)\.py:\d+ -- "
    r"|Running entrypoint for job |-{8,}$"
)


class StopRequest:
    """Counts the signals that ask this process to end; remembers the first."""

    def __init__(self) -> None:
        self.count = 0
        self.signal_number = signal.SIGINT

    def is_set(self) -> bool:
        return self.count > 0

    def is_urgent(self) -> bool:
        """Asked a second time."""
        return self.count > 1

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._received)

    def _received(self, number: int, _frame: object) -> None:
        self.signal_number = signal.Signals(number) if not self.count else self.signal_number
        self.count += 1


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    options = _options(arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a log may hold what a terminal has no sign for
        sys.stdout.reconfigure(errors="replace")
    stop = StopRequest()
    stop.listen()
    if options.check:
        command = [sys.executable, "-m", "deploy.launch", *launch_arguments(options)]
        return subprocess.run(command, cwd=ROOT).returncode
    found = _checked(options)
    if found is None:
        return _USAGE_ERROR
    runs, facts = found
    options.run = facts["run"]  # a name that is made from the time is made once
    entrypoint = [sys.executable, "-m", "deploy.launch", *launch_arguments(options)]
    try:
        return run_job(
            entrypoint,
            run=options.run,
            runs=runs,
            num_cpus=options.cpus,
            stop=stop,
            token=secrets.token_urlsafe(24) if options.token else None,
            facts=facts,
        )
    except HeadError as error:
        log.error("%s", error)
        return 1


def launch_arguments(options: argparse.Namespace) -> list[str]:
    """What `deploy.launch` is called with."""
    flags = [f"--{flag}" for flag in ("check", "resume") if getattr(options, flag)]
    return [*flags, str(Path(options.config).resolve()), *_name(options), *options.overrides]


def _name(options: argparse.Namespace) -> list[str]:
    # Quoted, so that a name such as `true` stays a text.
    return [f"name={json.dumps(options.run)}"] if options.run else []


def _checked(options: argparse.Namespace) -> tuple[Path, dict[str, str]] | None:
    """Where runs are written, and facts of this one; None: something is wrong, and it was said.

    The job looks again. Here it is only to report an error before seconds are spent on Ray.
    """
    from deploy.run.plan import check_environment
    from deploy.settings.run_config import load_config

    try:
        config = load_config(options.config, [*_name(options), *options.overrides])
    except ConfigError as error:
        log.error("%s", error)
        return None
    # Paths in a config are relative to the repository, which the job's working directory copies.
    with contextlib.chdir(ROOT):
        problems = check_environment(config, os.environ, resume=options.resume)
        runs = config.run_folder(os.environ).resolve().parent
    for problem in problems:
        log.error("%s", problem)
    facts = {
        "run": config.name,
        "preset": Path(options.config).name,
        "method": config.method.kind,
        "seed": str(config.seed),
    }
    return None if problems else (runs, facts)


def run_job(
    entrypoint: Sequence[str],
    *,
    run: str,
    runs: Path,
    num_cpus: int | None,
    stop: StopRequest,
    token: str | None = None,
    facts: Mapping[str, str] | None = None,
) -> int:
    """Runs an entrypoint as a Ray job on a head of its own; the job's exit status.

    Args:
        facts: the job's metadata in the dashboard.
    """
    with LocalHead(num_cpus=num_cpus, environ=os.environ, token=token) as head:
        if not head.wait_ready(timeout_s=_READY_TIMEOUT_S, should_stop=stop.is_set):
            return _stopped_status(stop)
        log.info("Ray dashboard: %s", head.url)
        if token:
            log.info("for whoever is to use it: RAY_AUTH_MODE=token RAY_AUTH_TOKEN=%s", token)
        job = f"{run}-{secrets.token_hex(3)}"
        command = head.submit_command(
            entrypoint, job=job, folder=ROOT, env_vars=_job_environ(runs), metadata=facts
        )
        client = start_child(command, environ=head.client_environ(), stdout=subprocess.PIPE)
        try:
            _follow(client, head, job, stop)
        finally:
            end_process(client, timeout_s=5)
        status = _stopped_status(stop) if stop.is_set() else _exit_status(head, job)
        if status:
            _keep_logs(head, runs / run, status=status)
        return status


def _follow(
    client: "subprocess.Popen[bytes]", head: LocalHead, job: str, stop: StopRequest
) -> None:
    """Shows the job's log until the job ends, and passes a stop request on to it.

    What follows the log may end before the job does, such as when Ray is too busy to answer it.
    """
    assert client.stdout is not None
    reader = threading.Thread(
        target=_copy_lines, args=(client.stdout, sys.stdout, job), daemon=True
    )
    reader.start()
    stop_by: float | None = None
    is_asked = is_shown = False
    while not stop.is_urgent():
        reader.join(0.2)
        if not reader.is_alive():
            if not _is_running(head, job):
                return
            if not is_shown:
                log.warning("the job goes on, but its log cannot be followed; see %s", head.url)
                is_shown = True
            time.sleep(_LOOK_S)
        if stop.is_set() and stop_by is None:
            log.info("Stopping the run; once more to end it at once")
            stop_by = time.monotonic() + JOB_STOP_WAIT_S + 10
        if stop_by is not None and not is_asked:
            try:
                head.request("POST", f"/api/jobs/{job}/stop")
                is_asked = True
            except HeadError as error:
                if error.status == _NO_SUCH_JOB or not head.is_alive:
                    return
        if stop_by is not None and time.monotonic() > stop_by:
            log.warning("the job did not end within %d s", JOB_STOP_WAIT_S + 10)
            return


def _copy_lines(source: BinaryIO, sink: TextIO, job: str) -> None:
    lines = (raw.decode(errors="replace").rstrip("\n") for raw in source)
    for line in job_lines(lines, job=job):
        with contextlib.suppress(OSError):
            sink.write(f"{line}\n")
            sink.flush()


def job_lines(lines: Iterable[str], *, job: str) -> Iterator[str]:
    """The job's own lines out of what `ray job submit` prints.

    Where it never came to follow a log, all lines: they say why.
    """
    closing = re.compile(_CLOSING.format(job=re.escape(job)))
    before: list[str] | None = []
    for line in lines:
        if before is not None:
            before.append(line)
            before = None if _TAILING in line else before
        elif closing.match(line):
            break
        elif not _CHATTER.match(line):
            yield line
    yield from before or ()


def _is_running(head: LocalHead, job: str) -> bool:
    """Whether the job has not ended; it may have, where a head that lives does not answer."""
    try:
        return head.request("GET", f"/api/jobs/{job}").get("status") in _UNFINISHED
    except HeadError as error:
        return error.status != _NO_SUCH_JOB and head.is_alive


def _exit_status(head: LocalHead, job: str) -> int:
    try:
        info = head.request("GET", f"/api/jobs/{job}")
    except HeadError as error:
        log.error("Ray no longer answers: %s\nIts head's last words:\n%s", error, head.tail())
        return _FAILED
    if info.get("status") == "STOPPED":  # by `ray job stop` or the dashboard
        return 128 + signal.SIGINT
    code = info.get("driver_exit_code")
    if code is None:
        log.error("the job did not start: %s", info.get("message"))
        return _FAILED
    # A shell reports a signal as 128 and more; Python as a negative number.
    return int(code) if code >= 0 else 128 - int(code)


def _stopped_status(stop: StopRequest) -> int:
    return 128 + stop.signal_number


def _job_environ(runs: Path) -> dict[str, str]:
    """Environment of the job, which the dashboard shows: no secret belongs here."""
    environ = {"FLEETUNE_RUNS": str(runs), "PYTHONUNBUFFERED": "1"}
    stamp = Path(sys.prefix) / ".setup_s"
    with contextlib.suppress(OSError):
        environ["FLEETUNE_SETUP_S"] = stamp.read_text(encoding="utf-8").strip()
    return environ


def _keep_logs(head: LocalHead, run_folder: Path, *, status: int) -> None:
    """Copies Ray's logs of a run that failed or was stopped, as they vanish with the head.

    Where a run failed before it had a folder, they lie beside where that would be: in it, they
    would be taken for a run that has begun.
    """
    target = run_folder / "ray-logs"
    if not run_folder.is_dir():
        if status != _FAILED:
            return
        target = run_folder.with_name(f"{run_folder.name}-ray-logs")
    shutil.rmtree(target, ignore_errors=True)
    with contextlib.suppress(OSError, shutil.Error):
        shutil.copytree(head.logs, target, ignore_dangling_symlinks=True)
        log.info("Ray's logs: %s", target)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description=__doc__)
    parser.add_argument("--run", default="", help="name of the run (default: from the time)")
    parser.add_argument("--resume", action="store_true", help="continue the run of that name")
    parser.add_argument("--check", action="store_true", help="check the config and print the plan")
    parser.add_argument(
        "--token", action="store_true", help="ask everybody who uses this Ray for a token"
    )
    parser.add_argument("--cpus", type=int, help="CPUs that Ray may give out (default: all)")
    parser.add_argument("config", help="a preset, such as deploy/configs/shapes-lasro.yaml")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="replaces one setting")
    options = parser.parse_args(arguments)
    if options.resume and not options.run:
        parser.error("--resume needs --run NAME, the run to continue")
    return options


if __name__ == "__main__":
    sys.exit(main())
