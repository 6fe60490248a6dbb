"""What is asked of the Hub: the list of a repository's files, and the bytes of one. Errors come out as ours.

The only place that imports huggingface_hub, 20 MiB: whoever wants this module imports it where it is needed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, get_session, get_token, hf_hub_url, hf_raise_for_status
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sdcli import __version__
from sdcli.app.asked import Note, Tell
from sdcli.errors import ModelMissing, SdcliError, echo
from sdcli.models.blobs import is_digest
from sdcli.models.hub_ids import COMMIT, HubRef

TransportError: type[Exception] = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
"""The root of what its HTTP client raises, which is another client from version to version."""

TIMEOUT_S = 20.0
"""So long a server may be silent."""

TRIES, LIST_TRIES = 5, 3
"""Times that a request is made that brings nothing: for a file's content, which may be half there, and for the list."""

PAUSE_S, PAUSE_MOST_S = 1.0, 60.0

BUSY = frozenset({408, 429, 500, 502, 503, 504})
"""What a server answers that may be better in a while."""

TOO_MANY, NOT_ALLOWED = 429, frozenset({401, 403})


class Again(Exception):
    """Nothing is lost: the same request may succeed a little later. `wait_s` is what the server asks for."""

    def __init__(self, why: SdcliError, wait_s: float | None = None) -> None:
        super().__init__(str(why))
        self.why, self.wait_s = why, wait_s


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository: its size, and the name of its blob, which is its digest."""

    name: str
    size_bytes: int
    blob: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What a repository has at a commit, by name."""

    commit: str
    files: dict[str, RemoteFile]


def endpoint() -> str:
    """The address of the Hub, or of what stands in for it."""
    named = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    try:
        parts = urlsplit(named)
        if parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port):
            return named
    except ValueError:
        pass
    raise ModelMissing(f"HF_ENDPOINT is {echo(named)}, which is no address: unset it, or give one with https://")


def list_files(ref: HubRef, tell: Tell) -> Listing:
    """The files at the commit that `ref` names, with sizes and digests."""
    api = HfApi(endpoint=endpoint(), library_name="sdcli", library_version=__version__)

    def ask() -> Listing:
        with _errors_told(ref):
            info = api.model_info(ref.repo, revision=ref.revision or "main", files_metadata=True, timeout=TIMEOUT_S)
        return _listing(ref, info)

    return _patiently(ask, tell)


def _listing(ref: HubRef, info: Any) -> Listing:
    files = [_remote_file(ref, sibling) for sibling in info.siblings or ()]
    if not (isinstance(info.sha, str) and COMMIT.fullmatch(info.sha)):
        raise _no_hub(ref)
    return Listing(info.sha, {file.name: file for file in files})


def _remote_file(ref: HubRef, sibling: Any) -> RemoteFile:
    """An entry of the list, looked at with suspicion: its name becomes a path."""
    name, size = sibling.rfilename, sibling.lfs.size if sibling.lfs else sibling.size
    blob = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    if not parts or name != "/".join(parts) or parts[0] == "/" or ".." in parts or any(bad in name for bad in "\\\0:"):
        raise SdcliError(f"{ref.repo} lists a file {echo(name)}, which can be none: not fetched")
    if not (isinstance(size, int) and size >= 0 and isinstance(blob, str) and is_digest(blob)):
        raise SdcliError(f"{ref.repo} lists {echo(name)} without size or digest: what comes could not be checked")
    return RemoteFile(name, size, blob)


@contextmanager
def bytes_of(
    ref: HubRef, commit: str, file: RemoteFile, begin: int
) -> Iterator[tuple[int, int | None, Iterator[bytes]]]:
    """The content from `begin` on: where it really begins, how long the whole is if the server says, and the pieces.

    The token goes to the Hub alone, not to where it redirects. Raises Again for a connection that breaks.
    """
    url = hf_hub_url(ref.repo, file.name, revision=commit, endpoint=endpoint())
    headers = {"user-agent": f"sdcli/{__version__}", "accept-encoding": "identity"}
    headers |= {"range": f"bytes={begin}-"} if begin else {}
    token = get_token()
    headers |= {"authorization": f"Bearer {token}"} if token else {}
    with _errors_told(ref), get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S) as response:
        if response.status_code == 416:  # there is nothing from there on
            yield begin, begin, iter(())
            return
        hf_raise_for_status(response)
        whole = response.headers.get("content-range", "").removeprefix("bytes ")
        at, _, length = whole.partition("/")
        at = at.partition("-")[0]
        if response.status_code == 206 and at.isdecimal():
            yield int(at), int(length) if length.isdecimal() else None, response.iter_bytes()
        else:
            length = response.headers.get("content-length", "")
            yield 0, int(length) if length.isdecimal() else None, response.iter_bytes()


def _patiently(ask: Callable[[], Listing], tell: Tell) -> Listing:
    """What `ask` gives, asked again a few times where it may be better in a while."""
    for tries in range(LIST_TRIES - 1):
        try:
            return ask()
        except Again as lack:
            pause(lack, tries, tell)
    try:
        return ask()
    except Again as lack:
        raise lack.why from lack


def pause(lack: Again, tries: int, tell: Tell) -> None:
    """Wait before the next try, longer each time, or as long as the server asks; a long wait is told."""
    wait_s = PAUSE_S * 2**tries if lack.wait_s is None else lack.wait_s
    if wait_s > PAUSE_MOST_S:
        raise lack.why from lack
    if wait_s > 2 * PAUSE_S:
        tell(Note(f"{lack.why.args[0].partition(':')[0]}: the next try is in {wait_s:.0f} s"))
    time.sleep(wait_s)


@contextmanager
def _errors_told(ref: HubRef) -> Iterator[None]:
    """Errors of the library and its client as lines of ours. Those that may pass are wrapped in Again."""
    at = f" at {echo(ref.revision)}" if ref.revision else ""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise offline(ref) from error
    except GatedRepoError as error:
        where = f"{endpoint()}/{ref.repo}"
        raise ModelMissing(f"{ref.repo} is given on request only: ask at {where}, then set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise ModelMissing(f"{ref.repo} has nothing{at}: give a commit, tag or branch that it has") from error
    except RepositoryNotFoundError as error:
        what = f"there is no {ref.repo} at {endpoint()}, or it is private"
        raise ModelMissing(f"{what}: check the name, or set HF_TOKEN") from error
    except HfHubHTTPError as error:
        raise _answered(ref, error) from error
    except TransportError as error:
        what = f"the connection to {endpoint()} fails ({echo(str(error) or type(error).__name__)})"
        raise Again(ModelMissing(f"{what}: check the network, HF_ENDPOINT and the proxy; what came is kept")) from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise _no_hub(ref) from error


def _answered(ref: HubRef, error: HfHubHTTPError) -> Exception:
    """What an answer that is none means."""
    status, asked = error.response.status_code, error.response.headers.get("retry-after", "")
    if status == TOO_MANY:
        when = f"in {asked} s" if asked.isdecimal() else "later"
        why = ModelMissing(f"the Hub wants no more requests for a while (429): try again {when}, or set HF_TOKEN")
    elif status in NOT_ALLOWED:
        return ModelMissing(f"the Hub does not give {ref.repo} to this user ({status}): set HF_TOKEN")
    else:
        why = ModelMissing(f"the Hub answers {status} for {ref.repo}: try again later")
    return Again(why, float(asked) if asked.isdecimal() else None) if status in BUSY else why


def _no_hub(ref: HubRef) -> SdcliError:
    return ModelMissing(f"{endpoint()} does not answer as the Hub does for {ref.repo}: check HF_ENDPOINT and the proxy")


def offline(ref: HubRef) -> ModelMissing:
    """What to say where the environment forbids the network."""
    return ModelMissing(f"{ref} cannot be fetched while HF_HUB_OFFLINE is set: unset it, or give a path")


def is_offline() -> bool:
    """Whether the environment forbids the network."""
    return constants.HF_HUB_OFFLINE
