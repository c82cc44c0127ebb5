"""joblib on fdpool's workers: `register()`, then `joblib.parallel_backend("fdpool")` or `Parallel(backend="fdpool")`.

Needs joblib: `pip install 'fdpool[joblib]'`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, ClassVar

try:
    from joblib import register_parallel_backend
    from joblib._parallel_backends import (
        AutoBatchingMixin,
        FallbackToBackend,
        ParallelBackendBase,
        SequentialBackend,
    )
except ImportError as exc:
    raise ImportError("fdpool.joblib needs joblib: pip install 'fdpool[joblib]'") from exc

from fdpool.executor import Executor
from fdpool.process.cpus import default_workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from fdpool.executor import CallFuture


class FdpoolBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """A joblib backend whose workers live on between calls, and lose only the batch that kills them.

    Arrays travel in shared memory and arrive writable, and there are no temporary files: *max_nbytes*, *mmap_mode* and
    *temp_folder* of `Parallel` have nothing to do and are ignored.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = False

    # Shared by all calls of this process that ask for as many workers; starting them costs more than most calls.
    _executors: ClassVar[dict[tuple[int, int], Executor]] = {}

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many workers *n_jobs* means: negative numbers count down from all processors.

        Raises:
          ValueError: it is 0.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        return n_jobs if n_jobs > 0 else max(default_workers() + 1 + n_jobs, 1)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_memmapping: Any) -> int:
        """Get the workers ready; return how many there are."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        key = (os.getpid(), n_jobs)
        if key not in self._executors:
            self._executors[key] = Executor(n_jobs)
        self._executor = self._executors[key]
        self._futures: set[CallFuture[Any]] = set()
        return n_jobs

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], None] | None = None) -> CallFuture[Any]:
        """Have a batch run."""
        future = self._executor.submit(func)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: CallFuture[Any]) -> Any:
        """Return what a batch returned, or raise what it raised."""
        return out.result()

    def terminate(self) -> None:
        """End one call of `Parallel`; the workers stay for the next one."""
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancel every batch, also those that run. The workers are ready for more either way."""
        for future in list(self._futures):
            future.cancel()


def register(*, make_default: bool = False) -> None:
    """Make the backend known to joblib as "fdpool".

    Args:
      make_default: Whether `Parallel` uses it where no backend is named.
    """
    register_parallel_backend("fdpool", FdpoolBackend, make_default=make_default)
