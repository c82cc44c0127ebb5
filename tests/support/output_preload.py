"""A module that prints and sets a warning filter when it is imported."""

import sys
import warnings

print("loading")
print("and not done", end="")
print("to errors, not done either", end="", file=sys.stderr)
warnings.filterwarnings("ignore", "of the preloaded module")
