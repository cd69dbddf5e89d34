"""The crash matrix: every stage stopped at its own file system calls, run again, compared with an unbroken run.

    python -m faults [--only CASE]      from tests/, or `make test-faults`

syscalls.py supervises a process and stops it at a chosen call, stages.py says what is run, matrix.py stops and
compares. Stopped means: SIGKILL at a call or a moment, a disk that is full from a call on, Ctrl-C.
"""
