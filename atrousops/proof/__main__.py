"""`python -m atrousops.proof DEVICE`: the answering side of `worker`."""

import sys

from atrousops.proof.worker import main

if __name__ == "__main__":
    main(sys.argv[1])
