"""Entries of the log: what the scripts wrote is read, and nothing else is."""

import pytest

from buffer.codec import decode_entry, encode_header, encode_scores
from buffer.errors import CodecError
from buffer.records import EvictedEntry, FailedEntry, IndexEntry, Scores
from tests.unit.codec_examples import RECORD, SCORES

COMMITTED = {
    b"k": b"c",
    b"id": RECORD.record_id.encode(),
    b"h": encode_header(RECORD),
    b"s": encode_scores(SCORES),
    b"b": b"reward-0.1",
    b"q": b"1700000000123",
    b"a": b"1700000001456",
}


def test_a_committed_entry_joins_header_and_rewards() -> None:
    entry = decode_entry(b"17-2", COMMITTED)
    assert isinstance(entry, IndexEntry)
    assert (entry.position, entry.record_id, entry.rewards) == (
        "17-2",
        RECORD.record_id,
        SCORES.rewards,
    )
    assert (entry.sampler, entry.scorer) == ("sampler-2.0", "reward-0.1")
    assert (entry.queued_ms, entry.committed_ms) == (1700000000123, 1700000001456)


def test_a_failed_entry_has_its_reason() -> None:
    fields = {b"k": b"f", b"id": b"0000000007.001", b"reason": "kaputt: ü".encode()}
    entry = decode_entry(b"17-2", fields)
    assert entry == FailedEntry(
        position="17-2", record_id="0000000007.001", ticket=7, member=1, reason="kaputt: ü"
    )


def test_an_evicted_entry_names_its_records() -> None:
    entry = decode_entry(b"17-2", {b"k": b"e", b"ids": b"0000000007.001 0000000008.000"})
    names = ("0000000007.001", "0000000008.000")
    assert entry == EvictedEntry(position="17-2", record_ids=names)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {b"k": b"x"},
        {b"k": b"e"},
        {b"k": b"e", b"ids": b""},
        {b"k": b"e", b"ids": b"0000000007.001  0000000008.000"},
        {b"k": b"e", b"ids": b"7.1"},
        {b"k": b"e", b"ids": b"0000000007.001", b"more": b""},
        {b"k": b"f", b"id": b"7.1", b"reason": b""},
        {b"k": b"f", b"id": b"0000000007.001", b"reason": b"\xff"},
        {**COMMITTED, b"s": encode_scores(Scores({"a": (1.0,)}))},
        {**COMMITTED, b"id": b"0000000099.000"},
        {**COMMITTED, b"q": b"-1"},
        {**COMMITTED, b"a": b"1" * 16},
        {**COMMITTED, b"b": b"x" * 201},
        {**COMMITTED, b"b": b"\xff"},
        {name: data for name, data in COMMITTED.items() if name != b"id"},
    ],
)
def test_a_malformed_log_entry_is_refused(fields: dict[bytes, bytes]) -> None:
    with pytest.raises(CodecError):
        decode_entry(b"17-2", fields)


def test_a_malformed_position_is_refused() -> None:
    with pytest.raises(CodecError):
        decode_entry(b"17", {b"k": b"e", b"ids": b"0000000007.001"})
