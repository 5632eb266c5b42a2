"""From a bundle and files to scores: predictor, runtimes and tables of predictions."""
