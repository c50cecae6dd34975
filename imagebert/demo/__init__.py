"""`imagebert demo`: the whole of ImageBERT on an embedded corpus of rendered scenes, small enough for two CPU cores."""
