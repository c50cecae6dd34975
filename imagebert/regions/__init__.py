"""Raw images to regions: decode, detect, pool, store (paper, section 3: RoIs of a detector, features frozen)."""
