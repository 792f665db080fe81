"""Run the demonstration; exit 0 only if every step did what it should."""

from __future__ import annotations

import signal
import sys
from types import FrameType

from tests.support.demo.narrator import Disappointment, Narrator
from tests.support.demo.story import play
from tests.support.netlab import CommandFailedError, EndedAtOnceError, NeverHappenedError, missing_for_lab


def leave(number: int, _frame: FrameType | None) -> None:
    """Make an exception of a signal, so that the lab is taken down."""
    sys.exit(128 + number)


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    narrator = Narrator()
    missing = missing_for_lab()
    if missing:
        narrator.say("The demonstration needs:", *(f"  {what}" for what in missing))
        return 2
    try:
        play(narrator)
    except Disappointment as error:
        narrator.failed(error)
        return 1
    except (CommandFailedError, EndedAtOnceError, NeverHappenedError) as error:
        narrator.failed(Disappointment("the lab did not come up", str(error)))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
