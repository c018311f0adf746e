"""Starts the processes of a run as torchrun does, and ends with the exit code of the first one that failed.

torchrun itself ends with 1 and a traceback of its own, whatever has happened; `train_stage.sh` uses this.
"""

import sys

INTERRUPTED = 128


def main(arguments: list[str] | None = None) -> int:
    """Flags of torchrun, script and its arguments -> exit code."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else INTERRUPTED - failure.exitcode
    except SignalException as error:  # its processes got the signal, too, and have ended
        return INTERRUPTED + error.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main())
