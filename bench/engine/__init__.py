"""From a checked config to a record: training and evaluation by Lightning, on one process or many, stoppable."""
