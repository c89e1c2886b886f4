"""A process with a pool of the yardstick's workers that does nothing more, for tests that kill it."""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from troth.bench.guard import plain_worker

if __name__ == "__main__":
    with ProcessPoolExecutor(1, get_context("spawn"), plain_worker) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(600)
