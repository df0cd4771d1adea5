"""The entry point: `python run.py` runs the demo; `python run.py --help` explains the rest.

Light on purpose: Hydra composes, `experiments.config.bind` checks, and only then is anything heavy imported.
"""

import sys

from experiments.cli.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
