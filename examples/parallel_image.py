"""Several workers sharpen tiles of one photograph-sized image, all of them writing into the same output array.

    python examples/parallel_image.py [--size WIDTHxHEIGHT] [--workers N] [--directory DIR]

Writes before.png, after.png and, with matplotlib, timing.png. Neither image is ever copied: the workers get slices
of memory that they all map, and fill slices of memory that they all share.
"""

import argparse
import pathlib
import struct
import time
import zlib

import numpy as np
import trio

import fdpool

TILE_ROWS = 256
RADIUS = 4


def sharpen(source: np.ndarray, target: np.ndarray, above: int) -> None:
    """Fill *target* with *source*, sharpened; *source* has *above* rows more than that above; runs in a worker."""
    blurred = source.astype(np.float32)
    shifts = range(-RADIUS, RADIUS + 1)
    for axis in (0, 1):
        blurred = np.mean([np.roll(blurred, shift, axis) for shift in shifts], axis=0)
    sharp = source + 1.5 * (source - blurred)
    target[:] = np.clip(sharp, 0, 255)[above : above + len(target)]


def photograph(width: int, height: int) -> np.ndarray:
    """Make up an image, in memory that workers can map."""
    image: np.ndarray = fdpool.empty((height, width, 3), "u1")
    across, down = np.meshgrid(np.linspace(0, 40, width), np.linspace(0, 30, height))
    for channel, (stretch, phase) in enumerate([(1.0, 0), (1.3, 2), (0.7, 4)]):
        waves = np.sin(across * stretch + np.sin(down + phase)) * np.cos(down * stretch) + np.sin(across * down / 60)
        image[..., channel] = 128 + 60 * waves
    return image


async def sharpen_all(pool: fdpool.Pool, image: np.ndarray, result: np.ndarray) -> float:
    """Have the workers of *pool* fill *result*; return the seconds it took."""
    started = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for top in range(0, len(image), TILE_ROWS):
            first = max(top - RADIUS, 0)
            source = image[first : top + TILE_ROWS + RADIUS]
            nursery.start_soon(pool.run_sync, sharpen, source, result[top : top + TILE_ROWS], top - first)
    return time.perf_counter() - started


def write_png(path: pathlib.Path, image: np.ndarray) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = image.shape
    rows = np.concatenate([np.zeros((height, 1), "u1"), image.reshape(height, -1)], axis=1)  # a filter byte each
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows.tobytes(), 1)), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def plot(seconds: dict[int, float], path: pathlib.Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    axes.bar([str(workers) for workers in seconds], list(seconds.values()))
    axes.set(xlabel="workers", ylabel="seconds")
    figure.savefig(path)


async def main(size: str, workers: int, directory: pathlib.Path) -> None:
    image = photograph(*map(int, size.split("x")))
    result = fdpool.zeros(image.shape, "u1", shared=True)
    seconds = {}
    for count in range(1, workers + 1):
        async with fdpool.open_pool(count) as pool:
            await sharpen_all(pool, image[:TILE_ROWS], result)  # imports NumPy in a worker
            seconds[count] = await sharpen_all(pool, image, result)
        print(f"{size}, {count} workers: {seconds[count]:.2f} s")
    write_png(directory / "before.png", image)
    write_png(directory / "after.png", result)
    plot(seconds, directory / "timing.png")
    print(f"contrast {image.std():.1f} before, {result.std():.1f} after; see {directory}/after.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="6000x4000")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--directory", type=pathlib.Path, default=pathlib.Path())
    options = parser.parse_args()
    trio.run(main, options.size, options.workers, options.directory)
