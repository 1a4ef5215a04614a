"""``python -m kvlib``."""

import sys

from kvlib.recipe.command_line import main

if __name__ == "__main__":
    sys.exit(main())
