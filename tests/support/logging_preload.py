"""A module that sets logging up when it is imported, as modules should not, and registers for the end."""

from __future__ import annotations

import atexit
import logging

logging.basicConfig(format="by the module: %(message)s")
atexit.register(logging.getLogger("tests.preload").warning, "from a preloaded module's atexit")
