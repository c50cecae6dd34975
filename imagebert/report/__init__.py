"""A run's folder as one page: what it tells of itself (folder.py), and how that is shown (write.py)."""
