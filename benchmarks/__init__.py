"""Engines side by side: latency and accuracy, measured with their conditions, in JSON lines.

A room imports from those below it only; a test checks it:

    cli         the commands of `python -m benchmarks`
    report      statistics, tables and pictures of results
    accuracy    the same items for every engine      latency    engines in turns on a quiet machine
    engines     the table of engines, their environments and worker processes
    models      random models of real shapes, formats kept between runs
    rows        what a results file holds
"""
