"""Plan of steps to packed batches: the sampler reads no data, masking knows no model, the packer decides nothing."""
