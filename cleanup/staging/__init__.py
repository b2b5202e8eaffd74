"""How files get into areas: contents stored once, uploads part by part, results, sources, the pipeline.

    limits    which names, types and sizes are taken (pure)
    content   a complete file becomes one content and one row of the registry
    uploads   the verbs of uploads: create, write a part, finish, give up, expire, recover

Edges (views, commands, tasks) hand in who asks; nothing here knows how somebody has shown who they are.
"""
