"""Who stands behind a request, and what it may: proofs, rules, rates, and whether both still hold.

credentials   a token, a key or a session is found in a request and becomes a proof
tokens, keys, logins, revocation    the three kinds of grounds, and what was taken back
permissions   the rules of `BUS["TOPICS"]`: who may do what with which topic
grants, rates what a subscription token has opened, and how fast one may publish
rights        looks again and again whether the grounds of live connections still hold
"""
