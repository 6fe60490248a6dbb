"""What goes wrong between here and the Hub, as lines of ours: what may pass is asked again a little later.

Imports huggingface_hub, 20 MiB: whoever wants this module imports it where it is needed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sdcli.app.asked import Note, Tell
from sdcli.errors import ModelMissing, SdcliError, echo
from sdcli.models.hub_ids import HubRef

TransportError: type[Exception] = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
"""The root of what its HTTP client raises, which is another client from version to version."""

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


def pause(lack: Again, tries: int, tell: Tell) -> None:
    """Wait before the next try, longer each time, or as long as the server asks; a long wait is told."""
    wait_s = PAUSE_S * 2**tries if lack.wait_s is None else lack.wait_s
    if wait_s > PAUSE_MOST_S:
        raise lack.why from lack
    if wait_s > 2 * PAUSE_S:
        tell(Note(f"{lack.why.args[0].partition(':')[0]}: the next try is in {wait_s:.0f} s"))
    time.sleep(wait_s)


@contextmanager
def errors_told(ref: HubRef) -> Iterator[None]:
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
        raise no_hub(ref) from error


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


def no_hub(ref: HubRef) -> ModelMissing:
    """What to say of a server whose answers are not the Hub's."""
    return ModelMissing(f"{endpoint()} does not answer as the Hub does for {ref.repo}: check HF_ENDPOINT and the proxy")


def offline(ref: HubRef) -> ModelMissing:
    """What to say where the environment forbids the network."""
    return ModelMissing(f"{ref} cannot be fetched while HF_HUB_OFFLINE is set: unset it, or give a path")


def is_offline() -> bool:
    """Whether the environment forbids the network."""
    return constants.HF_HUB_OFFLINE
