"""Engines, evidence and ranking: from a query's vectors to ranked documents."""
