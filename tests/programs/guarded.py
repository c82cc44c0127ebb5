"""A script that runs functions of its own, behind the usual guard."""

import sys

import trio

import fdpool


class Point:
    def __init__(self, x):
        self.x = x


class OwnError(Exception):
    pass


def move(point, by):
    if by == 0:
        raise OwnError("not moved")
    return Point(point.x + by)


async def main():
    async with fdpool.open_pool(1) as pool:
        moved = await pool.run_sync(move, Point(1), 2)
        assert type(moved) is Point
        try:
            await pool.run_sync(move, Point(1), 0)
        except OwnError as exc:
            print(moved.x, exc, sys.argv[1:], await pool.run_sync(eval, "__import__('sys').argv[1:]"))


if __name__ == "__main__":
    trio.run(main)
