"""Many cells at once: cells.py says which, units.py what work that is, control.py hands it out, work.py does it."""
