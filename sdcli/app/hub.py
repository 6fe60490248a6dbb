"""What is asked of the Hub: the list of a repository's files, and the bytes of one.

Imports huggingface_hub, 20 MiB: whoever wants this module imports it where it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from huggingface_hub import HfApi, get_session, get_token, hf_hub_url, hf_raise_for_status

from sdcli import __version__
from sdcli.app.asked import Tell
from sdcli.app.hub_errors import LIST_TRIES, Again, endpoint, errors_told, no_hub, pause
from sdcli.errors import SdcliError, echo
from sdcli.models.blobs import is_digest
from sdcli.models.hub_ids import COMMIT, HubRef

TIMEOUT_S = 20.0
"""So long a server may be silent."""


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


def list_files(ref: HubRef, tell: Tell) -> Listing:
    """The files at the commit that `ref` names, with sizes and digests."""
    api = HfApi(endpoint=endpoint(), library_name="sdcli", library_version=__version__)

    def ask() -> Listing:
        with errors_told(ref):
            info = api.model_info(ref.repo, revision=ref.revision or "main", files_metadata=True, timeout=TIMEOUT_S)
        return _listing(ref, info)

    return _patiently(ask, tell)


def _listing(ref: HubRef, info: Any) -> Listing:
    files = [_remote_file(ref, sibling) for sibling in info.siblings or ()]
    if not (isinstance(info.sha, str) and COMMIT.fullmatch(info.sha)):
        raise no_hub(ref)
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
    with errors_told(ref), get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S) as response:
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
