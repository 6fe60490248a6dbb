from tests.host.conftest import no_worker_left, script

__all__ = ["no_worker_left", "script"]
