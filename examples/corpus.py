"""Which names does a body of source code use most? Counted by workers in memory that they share.

    python examples/corpus.py [FILE_OR_FOLDER …]

Without arguments it reads the standard library of the running Python. The text goes into one memfd, once;
every worker maps it and tokenizes its own ranges of the mapped bytes.
"""

import keyword
import os
import re
import sys
import sysconfig
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path

import trio

import fdpool

try:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table
except ImportError:
    sys.exit("this example draws with rich: pip install 'fdpool[demo]'")

RANGE_BYTES = 1 << 20
STRING = rb'"""(?:[^\\]|\\.)*?"""|\'\'\'(?:[^\\]|\\.)*?\'\'\'|"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\''
TOKEN = re.compile(rb"#[^\n]*|[rbfuRBFU]{0,2}(?:" + STRING + rb")|([A-Za-z_\x80-\xff][\w\x80-\xff]*)", re.DOTALL)
KEYWORDS = {word.encode() for word in keyword.kwlist}


def count_mapped(memfd: fdpool.MemFd, start: int, end: int) -> Counter[bytes]:
    """Count the names in one range of the mapped text; runs in a worker."""
    with memfd, memfd.map() as text:
        return Counter(name for match in TOKEN.finditer(text, start, end) if (name := match[1]))


def count_copied(text: bytes) -> Counter[bytes]:
    """Count the names in a text of its own."""
    return Counter(name for match in TOKEN.finditer(text) if (name := match[1]))


def read_texts(paths: list[Path]) -> list[bytes]:
    """Read every Python file among *paths* and in the folders among them."""
    files = [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    return [file.read_bytes() + b"\n" for file in files if "site-packages" not in file.parts]


def cut(texts: list[bytes]) -> list[tuple[int, int]]:
    """Return ranges of about `RANGE_BYTES` of the joined texts, each ending where a file ends."""
    ends, position = [0], 0
    for text in texts:
        position += len(text)
        if position - ends[-1] >= RANGE_BYTES:
            ends.append(position)
    return list(pairwise(ends if ends[-1] == position else [*ends, position]))


async def with_fdpool(text: bytes, ranges: list[tuple[int, int]], progress: Progress) -> list[Counter[bytes]]:
    with fdpool.MemFd.from_bytes(text, name="corpus") as memfd:
        starts, ends = zip(*ranges, strict=True)
        async with fdpool.open_pool() as pool:
            async with pool.map_sync(count_mapped, [memfd] * len(ranges), starts, ends) as results:
                bar = progress.add_task("fdpool", total=len(ranges))
                return [progress.advance(bar) or names async for names in results]  # type: ignore[func-returns-value]


def with_executor(text: bytes, ranges: list[tuple[int, int]], progress: Progress) -> list[Counter[bytes]]:
    with ProcessPoolExecutor() as executor:
        results = executor.map(count_copied, (text[start:end] for start, end in ranges))
        return list(progress.track(results, total=len(ranges), description="ProcessPoolExecutor"))


def main(paths: list[Path]) -> None:
    texts = read_texts(paths)
    if not texts:
        sys.exit(f"no Python files in {', '.join(map(str, paths))}")
    text, ranges = b"".join(texts), cut(texts)
    console = Console()
    console.print(
        f"{len(texts)} files, {len(text) / 1e6:.1f} MB, {len(ranges)} ranges, {len(os.sched_getaffinity(0))} workers"
    )
    with Progress(console=console) as progress:
        started = time.perf_counter()
        counts = trio.run(with_fdpool, text, ranges, progress)
        between = time.perf_counter()
        others = with_executor(text, ranges, progress)
        ended = time.perf_counter()
    sample = [count_copied(text[start:end]) for start, end in ranges[:: max(1, len(ranges) // 5)]]
    if counts[:: max(1, len(ranges) // 5)] != sample or counts != others:
        sys.exit("the counts differ")

    table = Table("name", "uses", title="the names used most")
    names = sum(counts, Counter())
    for name in KEYWORDS:
        del names[name]
    for name, uses in names.most_common(15):
        table.add_row(name.decode("utf-8", "replace"), f"{uses:,}")
    console.print(table)
    console.print(f"fdpool {between - started:.2f} s, ProcessPoolExecutor {ended - between:.2f} s")
    console.print(f"{len(sample)} of the ranges counted serially as well: all equal")


if __name__ == "__main__":
    arguments = [Path(argument) for argument in sys.argv[1:]]
    main(arguments or [Path(sysconfig.get_path("stdlib"))])
