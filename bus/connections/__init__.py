"""Who is connected, on whichever server.

manager       `ConnectionManager`: the single source of truth of a process
live, leases, heartbeats, reaper    a connection in memory, its rows, their renewal and their end
places, admission                   limits, and the gate before the handshake
orders, messages, inboxes           what others ask of a connection, and what it is told
presence      who is in which topic
gathering     small writes of many, in few transactions
"""
