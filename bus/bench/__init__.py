"""Benchmarks of the bus beside other servers, in one run on one machine: `manage.py bus bench`.

    figures   what is measured, and the rows it gives       servers   starts and ends the servers, ours and others
    load      the clients, a process of their own           tongues   how the load speaks to each server
    naive     a Channels application as tutorials show it   site      settings of the servers that Django runs

Nothing here passes or fails by time; ratios within a run are what counts. The CPU time of a server is read
from `/proc`, of its own process alone, so clients that share the machine do not count.
"""
