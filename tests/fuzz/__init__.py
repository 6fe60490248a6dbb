"""Every parser of foreign data, fed with damaged and hostile input: `python -m tests.fuzz` (see __main__.py)."""
