"""Texts that name one Redis server or several: told apart, checked, and shown without passwords."""

import re
from urllib.parse import urlsplit

SCHEMES = ("redis", "rediss", "unix")
URL_HELP = (
    "it must look like redis://[user:password@]host:6379/0, rediss://... (TLS) or "
    "unix:///path/to.sock, with special characters of the password percent-encoded; several "
    "have spaces between them"
)


def urls_in(text: str) -> list[str]:
    """The URLs that have spaces between them; the path of one may hold spaces too."""
    return re.split(r"\s+(?=[a-z]+://)", text.strip(), flags=re.IGNORECASE)


def masked(text: str) -> str:
    """URLs for logs: every password in them is replaced by ***."""
    return " ".join(map(_masked, urls_in(text)))


def check_url(url: str) -> None:
    """ValueError, without the password, for what is not the URL of one server."""
    try:
        parts = urlsplit(url)
        _ = parts.port
        if _holds_another(url) and parts.scheme != "unix":
            raise ValueError
    except ValueError:
        raise ValueError(f"cannot read the Redis URL {masked(url)}; {URL_HELP}") from None
    if parts.scheme not in SCHEMES:
        raise ValueError(f"not a Redis URL: {masked(url)}; {URL_HELP}")


def _holds_another(url: str) -> bool:
    """Servers that are separated by anything but a space before a scheme would be overlooked."""
    return bool(re.search(r"\s", url)) or "," in (urlsplit(url).hostname or "")


def _masked(url: str) -> str:
    without_query = re.sub(r"(password=)[^&#]*", r"\1***", url, flags=re.IGNORECASE)
    # The last @: a password that was not percent-encoded may hold one.
    return re.sub(r"^([a-z]+://)([^:@/]*):.*@", r"\1\2:***@", without_query, flags=re.IGNORECASE)
