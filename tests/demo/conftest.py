from tests.cli.conftest import asked, sdcli, work
from tests.support import quick

__all__ = ["asked", "quick", "sdcli", "work"]
