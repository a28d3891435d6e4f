"""From a checked config to a record: resumable training and evaluation with Lightning, in one process or several."""
