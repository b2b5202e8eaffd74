"""Benchmarks of the retention engine: `manage.py cleanup bench`.

    run       every figure after the other, printed when it is there
    figures   what is measured, against whom, and what it is to reach
    rivals    `find`, `systemd-tmpfiles`, `tmpreaper`: other programs that do the same work
    child     our side, each time in a fresh process, so that its memory is its own
    jobs      what a child does with the engine alone, `rows` what it does with a database
    trees     files to be found and removed

Compare ratios within a run, not numbers between machines. Nothing passes or fails by time.
"""
