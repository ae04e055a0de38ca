"""What a server with damaged keys says, read so that an odd one harms only its own record."""

import logging
from collections.abc import Mapping
from typing import Any

from buffer.codec import decode_entry, decode_record
from buffer.errors import CodecError
from buffer.records import FailedEntry, LogEntry, Record, parse_record_id

log = logging.getLogger(__name__)


def record_name(name: bytes) -> str | None:
    """The id as text; None if it is none."""
    text = name.decode("ascii", "replace")
    try:
        parse_record_id(text)
    except ValueError:
        return None
    return text


def entry_or_failed(position: bytes, fields: Mapping[bytes, bytes]) -> LogEntry:
    """A log entry. A damaged one counts as a failed record, so that nobody waits for it."""
    try:
        return decode_entry(position, fields)
    except CodecError as error:
        name = record_name(fields.get(b"id", b""))
        if name is None:
            raise
        log.warning("the log entry of %s is unreadable: %s", name, error)
        ticket, member = parse_record_id(name)
        return FailedEntry(
            position=position.decode(),
            record_id=name,
            ticket=ticket,
            member=member,
            reason=f"unreadable log entry: {error}",
        )


def record_named(name: str, fields: Any) -> Record:
    """The record of that name; CodecError for an error in its place, or for another record."""
    if isinstance(fields, Exception):
        raise CodecError(str(fields))
    record = decode_record(fields)
    if record.record_id != name:
        raise CodecError(f"it is record {record.record_id}, put in the place of {name}")
    return record
