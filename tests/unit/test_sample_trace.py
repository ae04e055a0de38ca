"""From a ticket to the updates: what is written of every sample, and how it is read again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from buffer.records import EvictedEntry, FailedEntry, IndexEntry, record_id
from deploy.trace import in_words, life_of, main
from learner.sample_trace import SampleTrace


def committed(ticket: int, place: str, *, member: int = 0, prompt: str = "a circle") -> IndexEntry:
    return IndexEntry(
        position=place,
        record_id=record_id(ticket, member),
        ticket=ticket,
        member=member,
        prompt=prompt,
        policy_version=5,
        seed=2**63,
        steps=(1, 2),
        scored=(0, 1),
        rewards={"binding": (0.25, 0.5)},
        sampler="sampler-2.0",
        scorer="reward-1.0",
        queued_ms=1_700_000_000_000,
        committed_ms=1_700_000_003_400,
    )


def failed(ticket: int, place: str) -> FailedEntry:
    return FailedEntry(
        position=place, record_id=record_id(ticket, 0), ticket=ticket, member=0, reason="no score"
    )


def test_a_life_goes_from_the_sampler_to_every_draw(tmp_path: Path) -> None:
    entry = committed(123, "1-0", member=4, prompt="ein Kreis: größer")
    first, second = SampleTrace(tmp_path, 0), SampleTrace(tmp_path, 1)
    first.told([entry, committed(12, "2-0")])
    second.told([entry])  # only the first rank tells what is scored
    first.drawn(5, 10, [entry])
    second.drawn(6, 12, [committed(12, "2-0"), entry, entry])
    life = life_of(tmp_path, record_id(123, 4))
    assert life["scored"]["prompt"] == "ein Kreis: größer"
    assert life["scored"]["rewards"] == {"binding": [0.25, 0.5]}
    assert [(d["rank"], d["version"], d["times"]) for d in life["draws"]] == [(0, 5, 1), (1, 6, 2)]
    said = list(in_words(life))
    assert said[0] == "0000000123.004   ein Kreis: größer"
    assert "sampled by sampler-2.0 with policy version 5" in said[1]
    assert "scored by reward-1.0 after 3.4 s: binding 0.25 0.5" in said[2]
    assert said[3].endswith("by learner-0 after 5 cycles, so by the policy 0 versions later")
    assert said[4].endswith(
        "drawn 2 times by learner-1 after 6 cycles, so by the policy 1 version later"
    )


def test_a_resumed_run_that_reads_its_log_again_writes_nothing_twice(tmp_path: Path) -> None:
    entries = [committed(0, "1-0"), EvictedEntry(position="2-0", record_ids=(record_id(0, 0),))]
    SampleTrace(tmp_path, 0).told([*entries, committed(1, "3-0")])
    again = SampleTrace(tmp_path, 0)
    again.told([*entries, committed(1, "3-0"), failed(2, "4-0")])
    again.told([failed(2, "4-0")])
    lines = (tmp_path / "samples" / "scored.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"][:10] for line in lines] == [f"{n:010d}" for n in (0, 1, 2)]
    assert life_of(tmp_path, record_id(2, 0))["scored"]["failed"] == "no score"


def test_a_record_that_failed_and_was_released_has_its_rewards(tmp_path: Path) -> None:
    SampleTrace(tmp_path, 0).told([failed(3, "1-0"), committed(3, "2-0")])
    assert life_of(tmp_path, record_id(3, 0))["scored"]["rewards"] == {"binding": [0.25, 0.5]}


def test_draws_of_cycles_that_are_made_once_more_are_left_out(tmp_path: Path) -> None:
    entry, other = committed(3, "1-0"), committed(4, "2-0")
    trace = SampleTrace(tmp_path, 0)
    for version in (5, 6, 6, 7):
        trace.drawn(version, 2 * version, [entry])
    SampleTrace(tmp_path, 0)  # a start that drew nothing
    again = SampleTrace(tmp_path, 0)
    again.drawn(6, 12, [other])
    again.drawn(8, 16, [entry])
    draws = life_of(tmp_path, entry.record_id)["draws"]
    assert [draw["version"] for draw in draws] == [5, 8]


def test_what_an_adapted_surrogate_drew_before_the_checkpoint_stays(tmp_path: Path) -> None:
    entry, other = committed(3, "1-0"), committed(4, "2-0")
    trace = SampleTrace(tmp_path, 0)
    trace.drawn(0, -1, [entry])  # the fit
    trace.drawn(5, 9, [entry])  # the end of cycle 4, whose policy has the version of cycle 5
    trace.drawn(5, 10, [entry])
    SampleTrace(tmp_path, 0).drawn(5, 10, [other])
    draws = life_of(tmp_path, entry.record_id)["draws"]
    assert [draw["version"] for draw in draws] == [0, 5]


def test_a_full_disk_ends_the_trace_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trace = SampleTrace(tmp_path, 0)
    (tmp_path / "samples" / "scored.jsonl").mkdir()  # nothing can be appended there
    trace.told([committed(0, "1-0")])
    trace.told([committed(1, "2-0")])
    trace.drawn(0, 0, [committed(0, "1-0")])
    assert caplog.text.count("no more samples are traced") == 1


def test_positions_on_several_servers_are_known_again(tmp_path: Path) -> None:
    SampleTrace(tmp_path, 0).told([committed(0, "5-0,0-0"), committed(1, "5-0,7-0")])
    SampleTrace(tmp_path, 0).told([committed(1, "5-0,7-0"), committed(2, "6-0,7-0")])
    lines = (tmp_path / "samples" / "scored.jsonl").read_text().splitlines()
    assert len(lines) == 3


def test_a_line_that_a_crash_tore_is_cut_off_and_written_again(tmp_path: Path) -> None:
    trace = SampleTrace(tmp_path, 0)
    trace.told([committed(0, "1-0"), committed(1, "2-0")])
    trace.drawn(0, 0, [committed(0, "1-0")])
    for name in ("scored.jsonl", "drawn-0.jsonl"):
        path = tmp_path / "samples" / name
        path.write_bytes(path.read_bytes()[:-5])
    again = SampleTrace(tmp_path, 0)
    again.told([committed(0, "1-0"), committed(1, "2-0")])
    assert life_of(tmp_path, record_id(1, 0))["scored"]["position"] == "2-0"
    assert life_of(tmp_path, record_id(0, 0))["draws"] == []
    lines = (tmp_path / "samples" / "scored.jsonl").read_text().splitlines()
    assert len(lines) == 2


def test_a_damaged_line_hides_no_other(tmp_path: Path) -> None:
    SampleTrace(tmp_path, 0).told([committed(0, "1-0"), committed(1, "2-0")])
    path = tmp_path / "samples" / "scored.jsonl"
    path.write_bytes(b'\xff{"0000000001.000"\n' + path.read_bytes())
    assert life_of(tmp_path, record_id(1, 0))["scored"] is not None


def test_the_command_tells_a_life(tmp_path: Path) -> None:
    SampleTrace(tmp_path, 0).told([committed(7, "1-0")])
    command = [sys.executable, "-m", "deploy.trace", str(tmp_path)]
    done = subprocess.run([*command, "7", "--json"], capture_output=True, text=True)
    assert (done.returncode, json.loads(done.stdout)["id"]) == (0, "0000000007.000")
    done = subprocess.run([*command, "0000000007.000"], capture_output=True, text=True)
    assert done.stdout.startswith("0000000007.000   a circle\n")


def test_what_is_not_known_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SampleTrace(tmp_path, 0).told([committed(7, "1-0")])
    assert main([str(tmp_path), "8"]) == 1
    assert "is not scored yet" in capsys.readouterr().out
    for arguments, message in (
        ([str(tmp_path), "eight"], "is no id"),
        ([str(tmp_path / "nowhere"), "7"], "has no folder samples/"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err
