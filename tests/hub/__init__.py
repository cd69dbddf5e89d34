"""A stand-in for the model hub on 127.0.0.1: true layouts at toy size, and faults. `make test-hub` runs against it.

server.py    the hub: repositories with history, uploads, a proxy for other hosts, faults
content.py   the models, data sets and archives that the study fetches, small
table.py     every fault x every kind of download, as users would see it
__main__.py  `make test-hub`: the tests, then the table
"""
