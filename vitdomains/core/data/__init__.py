"""From files to batches: manifests, splits, preprocessing, augmentation, data sets, loading."""
