"""Time limits that count only the time in which this process ran.

A suspended laptop, a frozen container and SIGSTOP stop the peers of a wait together with the process that waits. On
continuing, the clock shows the whole pause at once, and a limit by the clock would blame a peer that was never given
the chance to answer.
"""

import time

SLICE_SECONDS = 0.05  # the longest that a caller blocks between two looks at the time
PAUSE_SECONDS = 1.0  # a look that comes this much later than the one before was held up by a pause


class RunningTime:
    """Seconds since the start, without pauses of this process. Ask at least every ``SLICE_SECONDS``.

    After a pause the peers may be continued later than this process, so a pause is also taken off what had been
    counted before: whoever is continued within a limit of this process is never too late.
    """

    def __init__(self) -> None:
        self._counted = 0.0
        self._looked = time.monotonic()

    def restart(self) -> None:
        """Count from now."""
        self._counted = 0.0
        self._looked = time.monotonic()

    def seconds(self) -> float:
        """What has been counted so far."""
        now = time.monotonic()
        passed = now - self._looked
        self._looked = now
        if passed < PAUSE_SECONDS:
            self._counted += passed
        else:
            self._counted = max(self._counted - passed, 0.0)
        return self._counted
