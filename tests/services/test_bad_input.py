"""What a user gets for wrong input: one clear message before anything starts, and status 2.

Every case calls the command as a user types it. One process runs them all, since starting Python
forty times takes longer than the cases; the last test starts one for the shell's side of it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from buffer.embedded import EmbeddedServer
from buffer.records import Record, record_id
from buffer.redis_replay import RedisReplay
from buffer.replay_settings import ReplaySettings

ROOT = Path(__file__).resolve().parents[2]
SMOKE = "deploy/configs/smoke.yaml"
MODEL = ("model.path={tmp}/pipeline", "model.teacher={tmp}/pipeline")

pytestmark = pytest.mark.redis


@dataclass(frozen=True)
class Case:
    """Arguments behind the preset, the environment, and pieces that the message must hold.

    `{tmp}` stands for a folder with the files below, `{url}` and `{password}` for those of a
    server that wants a password.
    """

    arguments: tuple[str, ...]
    expected: tuple[str, ...]
    environ: Mapping[str, str] = field(default_factory=dict)
    preset: str = SMOKE


FILES = {
    "pipeline/model_index.json": b"{}",
    "no-pipeline/readme.txt": b"",
    "empty.txt": b"\n  \n",
    "latin.txt": b"a caf\xe9\n",
    "alias.yaml": b"model: &a [*a]\n",
    "key.yaml": b"{[1, 2]: 3}\n",
    "object.yaml": b"model: !!python/object:os.system {}\n",
    "binary.yaml": b"\xff\xfe\x00",
    "list.yaml": b"- a\n- b\n",
    "taken/there/config.json": b"{}",
    "taken/begun/config.json": b'{"seed": 3, "method": {"kind": "lasro", "cycles": 9, '
    b'"groups_per_cycle": 8}, "rewards": {"sharp": {"kind": "sharpness"}}}',
    "taken/torn/config.json": b'{"seed": ',
    "broken_reward.py": b"1 / 0\n",
    "crooked_reward.py": b"class Crooked\n",
    "scoreless_reward.py": b"class Scoreless:\n    pass\n",
    "own_reward.py": b"class Own:\n    def __init__(self, scale=1.0): ...\n"
    b"    def score(self, images, prompts): ...\n",
}


def reward(kind: str, args: str = "{{}}") -> str:
    return f"rewards.binding={{{{kind: '{kind}', args: {args}}}}}"


CASES = {
    "misspelt keys and wrong types at once": Case(
        ("actors.cuont=2", "learner.ranks=x", "seed="),
        (
            "3 problems",
            "actors.cuont: there is no such setting; did you mean actors.count?",
            "learner.ranks: must be a valid integer",
            "seed: must be a valid integer, given nothing",
        ),
    ),
    "a batch that ranks cannot share": Case(
        ("learner.ranks=3",),
        ("3 problems", "method.policy_batch: must be divisible by learner.ranks = 3, given 4"),
    ),
    "a group without a pair": Case(("actors.group_size=1",), ("actors.group_size: must be at",)),
    "no reward at all": Case(("rewards={{}}",), ("rewards: must not be empty",)),
    "a reward without its section": Case(
        ("rewards.binding=shapes-binding",), ("rewards.binding: must be a section of settings",)
    ),
    "an adapter on nothing": Case(("model.lora_targets=[]",), ("model.lora_targets: must be",)),
    "a misspelt choice beside a list": Case(
        ("model.lora_targets=atention",), ("1 problem", "did you mean attention?")
    ),
    "an unknown method": Case(("method.kind=dpoo",), ("method.kind: must be 'lasro'",)),
    "a seed that generators do not take": Case((f"seed={2**64}",), ("seed: must be less than",)),
    "spaces around an equals sign": Case(
        ("actors.count", "=", "2"), ("override 'actors.count': must read section.key=value",)
    ),
    "an unknown flag": Case(("--chek",), ("unrecognized arguments: --chek",)),
    "a config that is not there": Case(
        (), ("no such file; deploy/configs has", "smoke.yaml"), preset="deploy/configs/smok.yaml"
    ),
    "a folder for a config": Case((), ("Is a directory",), preset="{tmp}"),
    "a YAML alias inside itself": Case((), ("inside its own anchor",), preset="{tmp}/alias.yaml"),
    "a YAML list for a key": Case((), ("a key must be a plain word",), preset="{tmp}/key.yaml"),
    "a YAML object": Case((), ("line 1: not valid YAML",), preset="{tmp}/object.yaml"),
    "bytes for a config": Case((), ("as UTF-8 text",), preset="{tmp}/binary.yaml"),
    "a list for a config": Case((), ("must hold sections",), preset="{tmp}/list.yaml"),
    "models and prompts missing at once": Case(
        (
            "model.path={tmp}/nowhere",
            "model.teacher={tmp}/no-pipeline",
            "prompts={tmp}/none.txt",
            "evaluation.prompts={tmp}",
        ),
        (
            "model.path: the folder {tmp}/nowhere does not exist",
            "model.teacher: the folder {tmp}/no-pipeline holds no model_index.json",
            "prompts.file: cannot read the prompts in {tmp}/none.txt",
            "evaluation.prompts.file: cannot read the prompts in {tmp} ",
        ),
    ),
    "prompts that are empty or not UTF-8": Case(
        ("prompts={tmp}/empty.txt", "evaluation.prompts={tmp}/latin.txt"),
        ("empty.txt holds no prompt", "latin.txt is not UTF-8: byte 0xe9 at offset 5"),
    ),
    "a reward that is not shipped": Case(
        (reward("jpg-size"),), ("unknown reward 'jpg-size'; shipped are ", "jpeg-size")
    ),
    "a reward's module that is not there": Case(
        (reward("nowhere.rewards:Mine"),), ("cannot import 'nowhere.rewards'",)
    ),
    "a reward's module that raises": Case(
        (reward("broken_reward:Mine"),), ("'broken_reward'", "raises ZeroDivisionError")
    ),
    "a reward's module that is no Python": Case(
        (reward("crooked_reward:Mine"),), ("'crooked_reward'", "raises SyntaxError")
    ),
    "a reward's class that is not there": Case(
        (reward("own_reward:Owm"),), ("'own_reward' has no class 'Owm'",)
    ),
    "a reward without a score": Case(
        (reward("scoreless_reward:Scoreless"),), ("has no method score(images, prompts)",)
    ),
    "an argument that an own reward lacks": Case(
        (reward("own_reward:Own", "{{scael: 2}}"),), ("'scael'", "it takes scale=1.0")
    ),
    "an argument of a wrong type": Case(
        (reward("jpeg-size", "{{quality: high}}"),), ("'jpeg-size' refuses its arguments",)
    ),
    "an argument out of range": Case(
        (reward("jpeg-size", "{{quality: 500}}"),), ("JPEG qualities go from 1 to 95",)
    ),
    "a run that is there already": Case(
        ("folder={tmp}/taken", "name=there"),
        ("name: {tmp}/taken/there holds a run already: continue it with --resume",),
    ),
    "a run to resume that is not there": Case(
        ("folder={tmp}", "name=gone", "--resume"), ("{tmp}/gone holds no run to resume",)
    ),
    "other settings than a run was begun with": Case(
        ("folder={tmp}/taken", "name=begun", "--resume"),
        (
            "seed: was 3, given 0: ",
            'rewards: was ["sharp"], given ["binding"]: ',
            "method.groups_per_cycle: was 8 in cycle number 1, given 4: ",
        ),
    ),
    "other settings for a scheduler that submits again": Case(
        ("folder={tmp}/taken", "name=begun", "--or-resume"), ("seed: was 3, given 0: ",)
    ),
    "a run to resume whose config is torn": Case(
        ("folder={tmp}/taken", "name=torn", "--resume"),
        ("{tmp}/taken/torn/config.json, what the run was begun with, cannot be read",),
    ),
    "a file where runs should be": Case(
        ("name=n",), ("{tmp}/empty.txt is no folder",), {"FLEETUNE_RUNS": "{tmp}/empty.txt"}
    ),
    "a run whose records are there already": Case(
        ("name=old",), ("replay.redis: there are 2 records of a run named 'old' already",),
        {"REDIS_URL": "{url}"},
    ),
    "a wrong Redis password": Case(
        (), ("replay.redis: redis://:***@", "refused the user, its password"),
        {"REDIS_URL": "{url_with_wrong_password}"},
    ),
    "an unknown Redis user": Case(
        (), ("replay.redis: redis://nobody:***@", "refused the user, its password"),
        {"REDIS_URL": "{url_with_wrong_user}"},
    ),
    "no Redis password": Case(
        (), ("replay.redis: ", "refused the user, its password"),
        {"REDIS_URL": "{url_without_password}"},
    ),
    "a URL that is not Redis's": Case(
        (), ("replay.redis: not a Redis URL: http://host",), {"REDIS_URL": "http://host"}
    ),
    "a Redis port that is no number": Case(
        (), ("replay.redis: cannot read the Redis URL",), {"REDIS_URL": "redis://host:port/0"}
    ),
    "a Redis that is not there": Case(
        (), ("127.0.0.1:1/0 does not answer",), {"REDIS_URL": "redis://me:hunter2@127.0.0.1:1/0"}
    ),
    "a Redis URL that is required": Case(
        ("replay.redis=environment",), ("the variable REDIS_URL is not set",)
    ),
}  # fmt: skip


# Reads [arguments, environment] of every case and answers with [status, stdout, stderr] of each.
PROGRAM = """
import contextlib, io, json, os, sys, traceback
from deploy.launch import main

def ask(arguments, environ):
    out, err, before = io.StringIO(), io.StringIO(), dict(os.environ)
    os.environ.update(environ)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(["--check", *arguments])
        except SystemExit as end:
            status = end.code
        except BaseException:
            status = 1
            traceback.print_exc()
    os.environ.clear()
    os.environ.update(before)
    return status, out.getvalue(), err.getvalue()

answers = [ask(*case) for case in json.load(sys.stdin)]
json.dump(answers, sys.__stdout__)
"""


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What the braces of a case stand for."""
    tmp = tmp_path_factory.mktemp("bad-input")
    for name, content in FILES.items():
        (tmp / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp / name).write_bytes(content)
    with EmbeddedServer(transport="tcp") as server:
        address = server.url.rpartition("@")[2]
        _old_run(server.url, "old")
        yield {
            "tmp": str(tmp),
            "password": server.url.split(":")[2].rpartition("@")[0],
            "url": server.url,
            "url_without_password": f"redis://{address}",
            "url_with_wrong_password": f"redis://:hunter2@{address}",
            "url_with_wrong_user": f"redis://nobody:hunter2@{address}",
        }


@pytest.fixture(scope="module")
def answers(words: dict[str, str]) -> dict[str, Answer]:
    """Every case, asked with --check."""
    cases = [_filled(case, words) for case in CASES.values()]
    done = _python("-c", PROGRAM, text=json.dumps(cases), path=words["tmp"])
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, (Answer(*each) for each in json.loads(done.stdout)), strict=True))


def _old_run(url: str, name: str) -> None:
    """Leaves two records of a run."""
    replay = RedisReplay.connect(
        ReplaySettings(url=url, run=name, capacity_records=8, capacity_bytes=2**20)
    )
    replay.admit(limit=1, policy_version=0)
    ticket = replay.lease_ticket("sampler", lease_s=60.0)
    assert ticket is not None
    latents = np.zeros((4, 2, 2), np.float16)
    records = [
        Record(
            record_id=record_id(ticket.number, member),
            ticket=ticket.number,
            member=member,
            prompt="a cat",
            policy_version=0,
            seed=0,
            steps=(1,),
            scored=(0,),
            latents=(latents,),
        )
        for member in range(2)
    ]
    assert replay.put_group(ticket.number, records)
    replay.close()


def _filled(case: Case, words: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    overrides = (*(MODEL if case.preset == SMOKE else ()), *case.arguments)
    arguments = [text.format(**words) for text in (case.preset, *overrides)]
    return arguments, {key: text.format(**words) for key, text in case.environ.items()}


def _python(*arguments: str, text: str, path: str) -> "subprocess.CompletedProcess[str]":
    environ = {k: v for k, v in os.environ.items() if k not in ("REDIS_URL", "FLEETUNE_RUNS")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**environ, "PYTHONPATH": path},
        input=text,
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.parametrize("name", CASES)
def test_wrong_input_is_explained(
    name: str, answers: dict[str, Answer], words: dict[str, str]
) -> None:
    answer = answers[name]
    missing = [
        piece for text in CASES[name].expected if (piece := text.format(**words)) not in answer.err
    ]
    assert missing == [], answer.err


@pytest.mark.parametrize("name", CASES)
def test_wrong_input_ends_with_the_status_of_a_usage_error(
    name: str, answers: dict[str, Answer]
) -> None:
    assert (answers[name].status, answers[name].out) == (2, ""), answers[name].err


@pytest.mark.parametrize("name", CASES)
def test_wrong_input_shows_no_traceback_and_no_password(
    name: str, answers: dict[str, Answer], words: dict[str, str]
) -> None:
    err = answers[name].err
    assert [text for text in ("Traceback", "hunter2", words["password"]) if text in err] == [], err


def test_a_checked_run_leaves_nothing_behind(
    answers: dict[str, Answer], words: dict[str, str]
) -> None:
    there = {path.name for path in Path(words["tmp"]).iterdir()} - {"__pycache__"}
    assert there == {name.split("/")[0] for name in FILES}
    assert [name for name in FILES if (Path(words["tmp"]) / name).read_bytes() != FILES[name]] == []


def test_the_shell_gets_the_same_status_and_message(
    answers: dict[str, Answer], words: dict[str, str]
) -> None:
    arguments, _ = _filled(CASES["a group without a pair"], words)
    done = _python("-m", "deploy.launch", "--check", *arguments, text="", path=words["tmp"])
    answer = Answer(done.returncode, done.stdout, done.stderr)
    assert answer == answers["a group without a pair"]
