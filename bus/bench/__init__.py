"""Benchmarks of the bus beside other servers, in one run on one machine: `manage.py bus bench`.

    run, report   the figures one after the other, as tables and as JSON
    inside        figures within one process: the write path, replay
    figures       figures over sockets, and the list of all
    processes     starts and ends the servers, ours and others
    load          the clients, in a process of their own
    tongues       how the load speaks to each server
    naive, node/  a Channels application as tutorials show it; servers on npm's ws and socket.io
    serve         runs a server on the site's settings, with room for the load

Nothing here passes or fails by time; ratios within a run are what counts. The CPU time of a server is read
from `/proc`, of its own process alone, so clients that share the machine do not count.
"""
