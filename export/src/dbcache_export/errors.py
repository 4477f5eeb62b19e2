"""The one error that users see, and the one warning."""

from __future__ import annotations

__all__ = ["ExportError", "ExportWarning", "listed"]

from collections.abc import Iterable


class ExportError(Exception):
    """Something that the user can act on; printed as `error: message; remedy`."""

    def __init__(self, message: str, remedy: str) -> None:
        """Message and remedy: lower case, one line, no full stop."""
        super().__init__(f"{message}; {remedy}")


class ExportWarning(UserWarning):
    """Something that the user should know and that ends nothing; printed as `warning: message`."""


def listed(names: Iterable[str], most: int = 8) -> str:
    """The names, sorted and comma separated; of many only the first and how many more."""
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more
