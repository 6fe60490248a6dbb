"""Pages of runs. What matplotlib says of its caches as it is imported is nobody's concern here."""

import logging

logging.getLogger("matplotlib").setLevel(logging.ERROR)
