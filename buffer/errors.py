"""What can go wrong in `buffer`.

    ReplayError
    ├── CodecError           bytes that are not what we wrote
    ├── ReplayUnavailable    nobody answers at the URL
    ├── ReplayAccessDenied   wrong password, or the user may not run a command
    ├── ReplayFull           the server's memory limit is reached
    ├── ReplayUnfit          the server answers but must not be used for a run
    └── EmbeddedServerError  our own server did not start

All carry one message, so they stay picklable when Ray brings them to another process.
"""


class ReplayError(Exception):
    """Base of every error of this package."""


class CodecError(ReplayError):
    """Bytes from Redis are malformed, truncated, damaged or of another version."""


class ReplayUnavailable(ReplayError):  # noqa: N818 - reads as the state that it is
    """The server did not answer in time."""


class ReplayAccessDenied(ReplayError):  # noqa: N818
    """The server refused the password, the user, or a command of this user."""


class ReplayFull(ReplayError):  # noqa: N818
    """The server's memory limit is reached; nothing of the refused command was applied."""


class ReplayUnfit(ReplayError):  # noqa: N818
    """The server is too old, a cluster, deletes records by itself, or holds another run."""


class EmbeddedServerError(ReplayError):
    """The embedded server could not be started or stopped."""
