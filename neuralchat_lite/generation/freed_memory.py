"""Memory that answers have freed goes back to the system, and costs next to nothing.

The C library keeps what is freed between things that stay, and with each burst of answers it keeps
more. Returning it takes 0.04 to 1 ms. So it happens when nobody is being answered, after 100 times
as much work as it took last.
"""

from __future__ import annotations

import time

from neuralchat_lite.kernels.runtime import return_freed_memory

SHARE = 0.01  # of the work
LEAST_WORK_S = 0.1  # between two times: a single short answer frees little


class FreedMemory:
    """worked_s: seconds of work since memory was returned; took_s: what that took"""

    def __init__(self) -> None:
        self.worked_s = 0.0
        self.took_s = 0.0

    def give_back(self) -> None:
        """Return it, if that is due."""
        if self.worked_s < max(LEAST_WORK_S, self.took_s / SHARE):
            return
        start = time.perf_counter()
        return_freed_memory()
        self.took_s = time.perf_counter() - start
        self.worked_s = 0.0
