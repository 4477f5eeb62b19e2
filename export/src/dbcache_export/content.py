"""SHA-256 of files, while something else runs."""

from __future__ import annotations

__all__ = ["ContentHashes"]

import hashlib
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import TracebackType

_CHUNK = 1 << 20  # bytes


class ContentHashes:
    """Hashes files one after another in a thread of its own; leaving the context stops it."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Starts at once."""
        self._stop = Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self._hashes: dict[Path, Future[str]] = {path: self._pool.submit(self._hash, path) for path in paths}

    def __enter__(self) -> ContentHashes:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the thread, finished or not."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def __getitem__(self, path: Path) -> str:
        """Waits for the hash of a file."""
        return self._hashes[path].result()

    def _hash(self, path: Path) -> str:
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(_CHUNK))  # one for all reads: fresh memory would cost as much as the hash
        with path.open("rb", buffering=0) as file:
            while (length := file.readinto(buffer)) and not self._stop.is_set():
                digest.update(buffer[:length])
        return digest.hexdigest()
