"""What the pages of every list have in common: their size, and the way to the next one. Pure."""

from urllib.parse import urlencode

from pydantic import BaseModel

from web.problems import Malformed


def page_limit(wanted: int | None, usual: int, most: int) -> int:
    """How many entries a page has; raises Malformed for more than ``most``."""
    limit = wanted or usual
    if limit > most:
        raise Malformed([("limit", f"is at most {most}")])
    return limit


def next_page(path: str, query: BaseModel, following: str | None) -> str | None:
    """Path and query of the page that begins at the cursor ``following``; None if there is none."""
    if following is None:
        return None
    pairs = query.model_dump(mode="json", exclude_none=True) | {"cursor": following}
    return f"{path}?{urlencode(pairs, doseq=True)}"
