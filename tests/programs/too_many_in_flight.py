"""Send more descriptors than an unprivileged user may have in flight, to a receiver that starts late."""

import os
import resource

import trio
import trio.testing

from fdpool import Connection, EventFd

BATCH, BATCHES = 4, 24


async def main() -> None:
    left, right = Connection.pair()
    pauses = 0

    class CountPauses(trio.abc.Instrument):
        def task_scheduled(self, task: trio.lowlevel.Task) -> None:
            nonlocal pauses
            pauses += task.name == "send"

    async def send() -> None:
        for _ in range(BATCHES):
            await left.send_message(b"header", fds=[event] * BATCH)

    received = 0
    with EventFd() as event:
        async with left, right, trio.open_nursery() as nursery:
            nursery.start_soon(send, name="send")
            # The limit is reached after 68 descriptors; from there on the sender only wakes to try again.
            before = BATCHES
            trio.lowlevel.add_instrument(CountPauses())
            while pauses <= before:
                await trio.lowlevel.checkpoint()
            for _ in range(BATCHES):
                header, fds = await right.receive_exactly(6, allow_fds=True)
                assert header == b"header"
                received += len(fds)
                for fd in fds:
                    fd.close()
    print(f"refused 1 or more times, then all {received} descriptors arrived")


if os.geteuid() == 0:
    # Root is exempt from the limit. An id of its own, since the count is per user.
    os.setresuid(65531, 65531, 65531)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
trio.run(main)
