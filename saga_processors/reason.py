"""Why something went wrong, in words that can be stored and sent. Pure."""

#: Characters of a reason that are kept.
_LIMIT = 2_000


def describe(error: Exception) -> str:
    """For people; of bounded length, and without what PostgreSQL's text cannot hold: NUL, and half a surrogate pair."""
    told = f"{error.__class__.__name__}: {error}"[:_LIMIT]
    return told.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
