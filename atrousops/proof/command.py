"""`atrousops selfcheck`: its options, and what it prints."""

from __future__ import annotations

import argparse

from atrousops.proof import run

DESCRIPTION = """\
Runs every family of this build's kernels on one GPU: small and odd calls, held
to PyTorch in fp64 on the CPU, and a few timed beside PyTorch's operators. Each
runs in another process, so that a wrong value, an error, a crash or a hang is a
verdict on that family.

The verdicts are kept beside the measured plans, for this model of GPU, driver,
torch and build. From then on what passed runs unasked; PyTorch's operators run
in place of what did not. The exit code is 1 if a family failed.
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "selfcheck",
        parents=[common],
        help="check this package's kernels on a GPU, so that they run there",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", metavar="DEVICE", help="cuda:0, or cpu (default: the current GPU)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=run.SECONDS,
        metavar="N",
        help=f"check no more after so long (default: {run.SECONDS:.0f})",
    )
    parser.set_defaults(run=main)


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    result = run.selfcheck(args.device, args.seconds, say=lambda line: print(line, flush=True))
    print("\n".join([f"{result.gpu} ({result.device})", *result.summary()]))
    return 0 if result.ok else 1
