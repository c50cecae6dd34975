"""`python -m imagebert` is `imagebert`: what torchrun and the deepspeed launcher start."""

import sys

from imagebert.cli import main

if __name__ == "__main__":
    sys.exit(main())
