"""For programs under libfaketime: it makes `clock_nanosleep` fail where the steady clock is left alone, and
`time.sleep` is built upon that."""

import select
import time

time.sleep = lambda seconds: select.select([], [], [], seconds) and None
