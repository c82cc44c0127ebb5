"""How workers start, die, and what they weigh: both starts of fdpool beside ProcessPoolExecutor, in one run.

    python -m benchmarks.start [--workers N] [--deaths N] [--orphans N]

This module is loaded again by every worker of the executors, and so does nothing but call the one that measures.
"""

if __name__ == "__main__":
    from benchmarks.start_measures import main

    main()
