"""A grid of cells, compared and judged."""
