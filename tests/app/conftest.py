from tests.host.conftest import no_worker_left, script
from tests.support import counts_at_hand

__all__ = ["counts_at_hand", "no_worker_left", "script"]
