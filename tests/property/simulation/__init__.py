"""A simulation of the bus in virtual time: real hubs, feeds, replay, send queues, links and log; a played
world.

    seed --> world (when what happens) --> hubs, links, log --> history (what every client saw) --> violations

`loop` is an event loop whose clock jumps, `network` a channel layer that delays, reorders, repeats, drops and
freezes, `world` the processes, publishers and clients, `history` the judge, `mutants` the wrong designs that
the judge has to find. One thread, no real time: a seed gives the same run again.
"""
