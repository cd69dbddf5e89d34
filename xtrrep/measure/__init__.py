"""Measures of a ranking, significance of differences, and run files."""
