"""The kinds of work, one module a group, and the table of them (`table.py`)."""
