"""What a server's error means, in whatever form its version tells it."""

import pytest
from redis.exceptions import ReadOnlyError, ResponseError  # noqa: TID251 - made as redis-py does

from buffer.connection import translated
from buffer.errors import ReplayError, ReplayFull, ReplayUnavailable

SCRIPT_62 = "Error running script (call to f_0a1b): @user_script:12: "


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ReadOnlyError("You can't write against a read only replica."), ReplayUnavailable),
        (
            ResponseError(f"{SCRIPT_62}@user_script: 12: -READONLY You can't write"),
            ReplayUnavailable,
        ),
        (ResponseError(f"{SCRIPT_62}-MISCONF Redis is configured to save"), ReplayUnavailable),
        (ResponseError(f"{SCRIPT_62}NOGROUP No such key 'x' or group"), ReplayUnavailable),
        (
            ResponseError("NOGROUP No such key 'x', on @user_script:3."),
            ReplayUnavailable,
        ),
        (ResponseError("BUSY Redis is busy running a script."), ReplayUnavailable),
        (ResponseError(f"{SCRIPT_62}@user_script: 12: -OOM command not allowed"), ReplayFull),
        (ResponseError("BUSYGROUP Consumer Group name already exists"), ReplayError),
        (ResponseError(f"{SCRIPT_62}attempt to index a nil value"), ReplayError),
    ],
)
def test_an_error_is_told_by_its_kind(error: ResponseError, kind: type[ReplayError]) -> None:
    with pytest.raises(ReplayError) as caught, translated("redis://a"):
        raise error
    assert type(caught.value) is kind
