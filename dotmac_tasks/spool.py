"""
Request bodies that are digested while they pass, and kept where they must be read again.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from errno import errorcode
from io import BytesIO
from tempfile import SpooledTemporaryFile
from typing import IO

from dotmac_tasks.fingerprint import CHUNK, BodyDigester, Readable, raw_stream_digest

__all__ = ["DigestingStream", "Spool", "SpoolError"]


class SpoolError(Exception):
    """
    A body could not be written to a temporary file: the disk is full, or the like.

    Immutable. Its text is the name of the system's error, such as ENOSPC, and tells no path.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(errorcode.get(error.errno or 0, type(error).__name__))


class Spool:
    """
    A request body, read once, digested on the way and kept to be read again.

    Belongs to the thread that handles the request. Small bodies stay in memory, larger ones go to
    a temporary file, which `close` removes. The file has no name, so that nothing of it is left
    of a process that was killed either.

    Args:
        stream: Where the body comes from.
        length: How many bytes to read and never more; None reads to the end, which only a stream
            that the server ends by itself has.
        content_type: The value of the Content-Type header; empty if there is none.
        ignored_fields: Names of form fields that do not count.
        max_memory: Bytes above which a file is used.
        directory: Where the file goes; None is where the system keeps temporary files.

    Raises:
        SpoolError: The file cannot be written; errors of the stream pass as they are.

    Attributes:
        file: The body, at its beginning.
        digest: What `body_digest` returns for it.
        length: How many bytes were read.
        is_complete: False where the stream ended before `length` bytes.
    """

    def __init__(
        self,
        stream: Readable,
        length: int | None,
        content_type: str,
        *,
        ignored_fields: Collection[str] = frozenset(),
        max_memory: int = 256 * 1024,
        directory: str | None = None,
    ) -> None:
        # Most bodies are known to be small, and then no temporary file has to be ready for them.
        self.file: IO[bytes] = (
            BytesIO()
            if length is not None and length <= max_memory
            else SpooledTemporaryFile(  # noqa: SIM115 - outlives the call
                max_size=max_memory, dir=directory
            )
        )
        try:
            self.length, self.digest = self._fill(
                stream,
                length,
                BodyDigester(content_type, self._read_again, ignored_fields=ignored_fields),
            )
        except BaseException:
            # On a full disk closing fails as well, for what waits to be written.
            with suppress(OSError):
                self.file.close()
            raise
        self.is_complete = length is None or self.length == length

    def close(self) -> None:
        """
        Remove the temporary file; may be called twice.
        """
        self.file.close()

    def _fill(
        self, stream: Readable, length: int | None, digester: BodyDigester
    ) -> tuple[int, bytes]:
        done = 0
        while length is None or done < length:
            chunk = stream.read(CHUNK if length is None else min(CHUNK, length - done))
            if not chunk:
                break
            digester.update(chunk)
            self._keep(chunk)
            done += len(chunk)
        self._rewind()
        return done, digester.digest()

    def _read_again(self) -> bytes:
        digest = raw_stream_digest(self.file)
        self.file.seek(0)
        return digest

    def _keep(self, chunk: bytes) -> None:
        try:
            self.file.write(chunk)
        except OSError as error:
            raise SpoolError(error) from error

    def _rewind(self) -> None:
        # Writes what is still buffered.
        try:
            self.file.seek(0)
        except OSError as error:
            raise SpoolError(error) from error


class DigestingStream:
    """
    A request body that is digested while somebody else reads it; nothing of it is kept.

    Belongs to the thread that handles the request. Whoever reads only a part leaves the rest
    unread, and the digest is that of the part.

    Args:
        stream: Where the body comes from.
        content_type: The value of the Content-Type header; empty if there is none.
        ignored_fields: Names of form fields that do not count.

    Attributes:
        stream: Where the body comes from.
        length: How many bytes were read by now.
        has_ended: Whether a reader has met the end.
    """

    def __init__(
        self, stream: IO[bytes], content_type: str, *, ignored_fields: Collection[str] = frozenset()
    ) -> None:
        self.stream = stream
        self.length = 0
        self.has_ended = False
        self._digester = BodyDigester(content_type, ignored_fields=ignored_fields)

    def read(self, size: int = -1, /) -> bytes:
        """
        Read at most so many bytes; all of them without a size.
        """
        return self._note(self.stream.read(size), size)

    def readline(self, size: int = -1, /) -> bytes:
        """
        Read a line, or at most so many bytes of it.
        """
        return self._note(self.stream.readline(size), size)

    def seekable(self) -> bool:
        """
        Tell that there is no way back.
        """
        return False

    def close(self) -> None:
        """
        Close the stream.
        """
        self.stream.close()

    def digest(self) -> bytes:
        """
        Return what `body_digest` returns for the bytes that were read by now.
        """
        return self._digester.digest()

    def _note(self, chunk: bytes, size: int) -> bytes:
        self._digester.update(chunk)
        self.length += len(chunk)
        if not chunk and size != 0:
            self.has_ended = True
        return chunk
