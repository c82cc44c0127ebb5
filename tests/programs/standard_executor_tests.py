"""The standard library's own tests of executors, run against fdpool's.

Left out is what is about the standard executors' own names and processes: tests that start a script with a
class name of theirs, and those that look at attributes of theirs.
"""

from test.test_concurrent_futures.executor import ExecutorTest
from test.test_concurrent_futures.test_as_completed import AsCompletedTests
from test.test_concurrent_futures.test_shutdown import ExecutorShutdownTest
from test.test_concurrent_futures.test_wait import WaitTests
from test.test_concurrent_futures.util import BaseTestCase, ExecutorMixin

import fdpool


class FdpoolMixin(ExecutorMixin):
    executor_type = fdpool.Executor


class FdpoolExecutorTest(FdpoolMixin, ExecutorTest, BaseTestCase):
    pass


class FdpoolWaitTest(FdpoolMixin, WaitTests, BaseTestCase):
    pass


class FdpoolAsCompletedTest(FdpoolMixin, AsCompletedTests, BaseTestCase):
    pass


class FdpoolShutdownTest(FdpoolMixin, ExecutorShutdownTest, BaseTestCase):
    # Scripts that name the class of a standard executor.
    test_interpreter_shutdown = None
    test_submit_after_interpreter_shutdown = None
    test_hang_gh83386 = None
    # Expects calls to count as running before a worker has even started; here they can still be cancelled then.
    test_cancel_futures = None


del ExecutorTest, AsCompletedTests, ExecutorShutdownTest, WaitTests, BaseTestCase
