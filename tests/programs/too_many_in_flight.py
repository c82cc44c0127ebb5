"""Send more descriptors than an unprivileged user may have in flight, to a receiver that starts late."""

import os
import resource

import trio
import trio.testing

from fdpool import Connection, EventFd
from tests.support.unprivileged import own_uid

BATCH, BATCHES = 4, 24


async def main() -> None:
    left, right = Connection.pair()
    sent = received = 0

    async def send() -> None:
        nonlocal sent
        for _ in range(BATCHES):
            await left.send_message(b"header", fds=[event] * BATCH)
            sent += BATCH

    with EventFd() as event:
        async with left, right, trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            # There is plenty of room for the bytes.
            assert sent < BATCH * BATCHES, "nothing was refused"
            while received < BATCH * BATCHES:
                _, fds = await right.receive_exactly(6, allow_fds=True)
                received += len(fds)
                for fd in fds:
                    fd.close()
    print(f"the sender had to wait, then all {received} descriptors arrived")


if os.geteuid() == 0:
    # Root is exempt from the limit.
    os.setresuid(own_uid(), own_uid(), own_uid())
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
trio.run(main)
