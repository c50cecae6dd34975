"""ImageBERT (Qi et al., 2020, arXiv 2001.07966) as a training and retrieval system."""

__version__ = "0.1.0"
