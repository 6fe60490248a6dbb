"""Making of the built-in model: pictures drawn by our own program, two networks trained on them, and the measures.

`STARTED` is the moment this process began to load, so that a budget of minutes counts the imports too.
"""

import time

STARTED = time.monotonic()
