"""A program whose event loops end while other threads make sync calls over them.

Whatever a loop is given last, it begins and does not end: asyncio and aiosqlite complain about
that, which is why this is a program of its own.

Usage: python late_calls.py URL closed|stopped
"""

import asyncio
import sys
import threading

from storing import config, put

from checkpointer import AsyncSQLAlchemySaver, CheckpointerError, create_saver

LOOPS = 12
THREADS = 4


def main(url: str, end: str) -> None:
    """Print what ended the calls of each thread, or that one of them waits for ever."""
    raised: list[str] = []

    def call(saver: AsyncSQLAlchemySaver) -> None:
        try:
            while True:
                saver.get_tuple(config())
        except CheckpointerError as exc:
            raised.append(type(exc).__name__)

    async def use() -> list[threading.Thread]:
        saver = create_saver(url)
        await put(saver, config(), "1")
        threads = [threading.Thread(target=call, args=[saver], daemon=True) for _ in range(THREADS)]
        for one in threads:
            one.start()
        await asyncio.sleep(0.02)
        return threads

    for _ in range(LOOPS):
        runner = asyncio.Runner()
        threads = runner.run(use())
        if end == "closed":
            runner.close()
        for one in threads:
            one.join(10)
            if one.is_alive():
                print("a call waits for ever")  # noqa: T201 - what the test reads
                return
        runner.close()
    print(*sorted(set(raised)), len(raised))  # noqa: T201 - what the test reads


if __name__ == "__main__":
    main(*sys.argv[1:])
