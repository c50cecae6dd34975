"""Exact retrieval: every image against every caption, R@K both ways; takes a scoring function, not a model class."""
