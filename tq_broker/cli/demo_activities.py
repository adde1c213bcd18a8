"""The activities of ``tq-broker demo``: download, process and upload one file.

Each runs on some host and works in a directory of that host only. ``download`` runs wherever a
worker is free and says where that was; the other two need the file that it has left there.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import timedelta
from http.client import HTTPException
from pathlib import Path

from tq_broker import activity
from tq_broker.common import RetryPolicy
from tq_broker.exceptions import ApplicationError

BYTES_MAX = 100_000_000
HTTP_TIMEOUT_S = 10.0
CHUNK_BYTES = 1 << 16
PAUSE_S = 0.15
"""What a disk and a network would take at least: small files are done before one can look."""


@dataclass(frozen=True)
class Work:
    """One file of one run of the demo.

    Attributes:
        name: Unique in the run, and safe as a file's name.
        source: A path or an ``http(s)`` URL.
        directory: Holds a directory for each host, and ``uploads``.
    """

    name: str
    source: str
    directory: str

    def on(self, host: str) -> Path:
        """Where ``host`` keeps the file."""
        return Path(self.directory) / host / self.name

    @property
    def uploaded(self) -> Path:
        """What is there in the end."""
        return Path(self.directory) / "uploads" / f"{self.name}.gz"


@dataclass(frozen=True)
class Downloaded:
    """``host`` is where the file is now; ``attempt`` counts lost and failed ones, too."""

    host: str
    attempt: int
    sha256: str


@dataclass(frozen=True)
class Processed:
    """What `process` has found."""

    attempt: int
    words: int


@dataclass(frozen=True)
class Uploaded:
    """What `upload` has written."""

    attempt: int
    path: str


_retries = RetryPolicy(initial_interval=timedelta(milliseconds=200), maximum_attempts=4)
_attempt = timedelta(seconds=30)
_all_in_all = timedelta(seconds=90)


@activity.defn(
    retry_policy=_retries,
    start_to_close_timeout=_attempt,
    schedule_to_close_timeout=_all_in_all,
)
def download(work: Work) -> Downloaded:
    """Copy the file from its source into this host's directory."""
    _pause()
    here = activity.info()
    target = work.on(here.host)
    if not Path(work.directory).is_dir():
        raise ApplicationError("this run of the demo is over", non_retryable=True)
    target.parent.mkdir(exist_ok=True)
    try:
        if is_url(work.source):
            _get(work.source, target)
        else:
            shutil.copyfile(work.source, target)
    except urllib.error.HTTPError as error:
        # 5xx may be over soon; with 4xx the server says that it is our fault.
        raise ApplicationError(
            f"HTTP status {error.code} {error.reason}", non_retryable=error.code < 500
        ) from error
    except (urllib.error.URLError, HTTPException, TimeoutError) as error:
        raise ApplicationError(f"no download: {getattr(error, 'reason', error)}") from error
    except OSError as error:
        raise ApplicationError(f"cannot be read: {error.strerror}", non_retryable=True) from error
    return Downloaded(here.host, here.attempt, sha256_of(target.read_bytes()))


@activity.defn(
    retry_policy=_retries,
    start_to_close_timeout=_attempt,
    schedule_to_close_timeout=_all_in_all,
)
def process(work: Work) -> Processed:
    """Count the words of the downloaded file and compress it, on the host that has it."""
    _pause()
    here = activity.info()
    local = work.on(here.host)
    data = local.read_bytes()
    local.with_name(f"{local.name}.gz").write_bytes(gzip.compress(data, mtime=0))
    return Processed(here.attempt, len(data.split()))


@activity.defn(
    retry_policy=_retries,
    start_to_close_timeout=_attempt,
    schedule_to_close_timeout=_all_in_all,
)
def upload(work: Work) -> Uploaded:
    """Bring the compressed file from this host to where all uploads are."""
    _pause()
    here = activity.info()
    local = work.on(here.host)
    work.uploaded.parent.mkdir(exist_ok=True)
    # An activity runs at least once: a second run replaces the same file, and nobody ever sees
    # half of one.
    partial = work.uploaded.with_name(f"{here.host}-{work.uploaded.name}.partial")
    shutil.copyfile(local.with_name(f"{local.name}.gz"), partial)
    partial.replace(work.uploaded)
    return Uploaded(here.attempt, str(work.uploaded))


ACTIVITIES = (download, process, upload)


def is_url(source: str) -> bool:
    """Whether ``source`` is fetched over HTTP."""
    return source.lower().startswith(("http://", "https://"))


def sha256_of(data: bytes) -> str:
    """The checksum that the demo shows."""
    return hashlib.sha256(data).hexdigest()


def _get(url: str, target: Path) -> None:
    with urllib.request.urlopen(url, timeout=HTTP_TIMEOUT_S) as response, target.open("wb") as file:
        size = 0
        while chunk := response.read(CHUNK_BYTES):
            size += len(chunk)
            if size > BYTES_MAX:
                raise ApplicationError(
                    f"is larger than {BYTES_MAX // 1_000_000} MB", non_retryable=True
                )
            file.write(chunk)


def _pause() -> None:
    # Not a sleep: a cancelled attempt goes on at once, into its cancellation.
    activity.wait_for_cancelled_sync(PAUSE_S)
