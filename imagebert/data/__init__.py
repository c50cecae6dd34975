"""Floor 2: what lies on disk. Records, stores of them, and corpora made of stores; nothing here knows a batch."""
