"""Pre-training and fine-tuning: what a recipe means, and the loop that carries it out."""
