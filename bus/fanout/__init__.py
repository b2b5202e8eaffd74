"""The read path: from what was committed to the sockets of those who read it.

hub           this process's topics and who reads them; feeds pass events on, each once and in order
feeds, sending, lives    a topic with its readers, the queue of each reader, lives of a topic
tending, openings        what is done each second, and how many topics a reader may bring about
"""
