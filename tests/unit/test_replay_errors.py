"""What a server says of its state, in our words, whether a command of its own or a script met it.

A server of 7.0 or newer begins a script's error with its code; an older one puts it behind where
the script was.
"""

import pytest

from buffer.connection import ResponseError, translated
from buffer.errors import ReplayError, ReplayUnavailable

OLD = "ERR Error running script (call to f_9bd4): @user_script:2: @user_script: 2: -"
NEW = " script: 9bd4, on @user_script:2."


def told(text: str) -> ReplayError:
    with pytest.raises(ReplayError) as caught, translated("redis://me:secret@host:1/0"):
        raise ResponseError(text)
    return caught.value


@pytest.mark.parametrize(
    "text",
    [
        "MISCONF Errors writing to the AOF file: No space left on device",
        "NOREPLICAS Not enough good replicas to write.",
        "UNBLOCKED force unblock from blocking operation, instance state changed",
        f"MISCONF Unable to persist to disk,{NEW}",
        f"{OLD}MISCONF Redis is configured to save RDB snapshots, but it is not able to",
        f"{OLD}NOREPLICAS Not enough good replicas to write.",
        f"{OLD}READONLY You can't write against a read only replica.",
    ],
)
def test_a_server_that_takes_no_writes_for_now_is_unavailable(text: str) -> None:
    error = told(text)
    assert (type(error), text in str(error)) == (ReplayUnavailable, True)
    assert "takes no writes now" in str(error)


@pytest.mark.parametrize("before", ["", "ERR Error running script (call to f_9): @user_script:9: "])
def test_a_server_without_the_run_s_keys_is_unavailable(before: str) -> None:
    error = told(f"{before}NOGROUP No such key 'fleetune:{{x}}:pending' or consumer group")
    assert isinstance(error, ReplayUnavailable)
    assert "has lost this run's keys (was it flushed?)" in str(error)


def test_another_error_that_names_a_state_is_not_taken_for_it() -> None:
    error = told("WRONGTYPE of a key that somebody called MISCONF NOGROUP READONLY")
    assert type(error) is ReplayError


def test_no_error_shows_the_password() -> None:
    assert "secret" not in str(told("MISCONF disk"))
