"""Files of which there is the old one or the new one, whenever a process or a machine dies.

And lines of one writer that are whole or not there when the disk takes no more, and errors that
say which file it was.
"""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Has an error of the system in the block name the file: that of a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A path to write to in the block, after which what was written takes the place of `path`.

    A block that raises leaves `path` as it was and nothing beside it.

    Args:
        durable: on the disk first, which can take seconds: a rename must not become true before
            what it names. Without it `path` may be torn where the machine dies.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with naming(path):
            yield partial
            if durable:
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
            partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def append_whole(path: Path, text: str) -> None:
    """Appends text in UTF-8; where that fails the file is as it was, as far as the disk lets it.

    Opened anew each time: a file server that was away may not know an open file any more.
    """
    size_bytes = path.stat().st_size if path.exists() else 0
    try:
        with naming(path), path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(path, size_bytes)
        raise


def write_whole(path: Path, text: str, *, durable: bool = True) -> None:
    """Writes text in UTF-8, as `replacing`."""
    with replacing(path, durable=durable) as partial:
        partial.write_text(text, encoding="utf-8")
