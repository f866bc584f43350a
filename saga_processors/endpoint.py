"""Where an HTTP step is called: a path at a service, or an absolute address. Pure: standard library only.

Whether an address may be called at all (the allow-list) is asked where calls are made and where requests come in; here
is only what an endpoint can look like. The characters are those of RFC 3986, so that nobody's URL parser reads
another host into one than ours.
"""

import re

#: Characters, at most.
MAX_LENGTH = 2_000

_CHARACTERS = r"(?:[A-Za-z0-9._~:/?@!$&'()*+,;=\[\]-]|%[0-9A-Fa-f]{2})"
#: No ``//`` in front (it would begin with a host), no ``name:`` (it would be a scheme).
_PATH = re.compile(rf"(?!//)(?![A-Za-z][A-Za-z0-9+.-]*:){_CHARACTERS}+")
_URL = re.compile(
    rf"(?P<origin>(?i:https?)://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)(?::(?P<port>[0-9]{{1,5}}))?)"
    rf"(?P<path>(?:[/?]{_CHARACTERS}*)?)"
)


def broken_rule(endpoint: str) -> str | None:
    """Return which rule ``endpoint`` breaks, for people; ``None`` if it may be used."""
    if len(endpoint) > MAX_LENGTH:
        return f"has at most {MAX_LENGTH} characters; this one has {len(endpoint)}"
    if (url := _URL.fullmatch(endpoint)) is not None:
        port = url["port"]
        return None if port is None or 1 <= int(port) <= 65_535 else f"has a port from 1 to 65535; got {port}"
    if _PATH.fullmatch(endpoint):
        return None
    return (
        "is a path at the service, as /reserve, or http(s)://host[:port]/path; without user, fragment, spaces or "
        f"control characters, others than ASCII percent-encoded; got {endpoint[:120]!r}"
    )


def split(endpoint: str) -> tuple[str | None, str]:
    """Return the origin, ``None`` for a path, and the path with its leading slash and its query."""
    url = _URL.fullmatch(endpoint)
    origin, path = (None, endpoint) if url is None else (url["origin"], url["path"])
    return origin, path if path.startswith("/") else f"/{path}"
