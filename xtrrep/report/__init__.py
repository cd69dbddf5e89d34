"""Tables and figures from data frames; nothing here computes a score."""
